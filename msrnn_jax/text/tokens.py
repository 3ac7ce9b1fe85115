"""Token numbers: those a model has, and rows of any length as one array."""

from collections.abc import Sequence

import numpy as np


def pad(rows: Sequence[Sequence[int] | np.ndarray], least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows as `generate` and measurements take them: [B, T] int32, zeros on the right, and lengths [B] int32.

    Args:
      least: T is the longest row, and no less than this.
    """
    lengths = np.asarray([len(row) for row in rows], np.int32)
    padded = np.zeros((len(rows), max(least, int(lengths.max()))), np.int32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded, lengths


def check_tokens(vocab_size: int, name: str, tokens: np.ndarray) -> None:
    """Refuses token numbers without a row in the embedding: a gather would take another row, or NaN, without a word."""
    if not tokens.size:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} holds the token {wrong}; it must be from 0 to {vocab_size - 1}")
