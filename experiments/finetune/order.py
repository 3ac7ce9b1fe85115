"""Which tokens every step of training reads: a function of the step, so that a run can go on anywhere."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.books import Book


class Reading(NamedTuple):
    """What one step reads."""

    tokens: np.ndarray  # [B, S + 1] int32: every token predicts the one after it
    begins: bool  # whether it is the beginning of a stretch, before which there is an empty state


class Order:
    """Stretches of books in an order drawn from a seed, a few side by side, segment by segment.

    A book is cut into stretches of `length` tokens and the one after, whose last token is the first of the next
    stretch; the last stretch of a book ends with it and may overlap the one before. In every epoch each stretch is read
    once, in an order of its own. Row b of a step goes through one stretch, in `length / segment` steps.

    Attributes:
      stretches: of all books.
    """

    def __init__(self, books: Sequence[Book], length: int, segment: int, batch: int, seed: int):
        if length % segment:
            raise ValueError(f"length is {length}; it must be a multiple of the segment, {segment}")
        self.stretches = [
            book.tokens[start : start + length + 1] for book in books for start in _starts(len(book.tokens) - 1, length)
        ]
        self._segment, self._batch, self._seed = segment, batch, seed
        self._segments = length // segment

    def at(self, step: int) -> Reading:
        """What the step reads; the first step is 0."""
        group, part = divmod(step, self._segments)
        rows = [self._stretch(group * self._batch + row) for row in range(self._batch)]
        begin = part * self._segment
        return Reading(np.stack([row[begin : begin + self._segment + 1] for row in rows]), part == 0)

    def _stretch(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, len(self.stretches))
        return self.stretches[_drawn(self._seed, epoch, len(self.stretches))[place]]


@functools.lru_cache(maxsize=4)
def _drawn(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _starts(count: int, length: int) -> list[int]:
    """Of the stretches of a book with so many tokens that have a next one."""
    starts = list(range(0, count - length + 1, length))
    return starts if not starts or starts[-1] + length == count else [*starts, count - length]
