"""What stories are asked for: rows of a file or one instruction, each with how often it was asked for before."""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common.console import last_part
from msrnn_jax.io.files import OnProblem, file_label, read_bytes, read_remaining, refuse, skipping
from msrnn_jax.io.files import read_rows as read_lines
from msrnn_jax.io.json_fields import check_filled, check_kind, field, field_names

KIND = "prompts"
FIELDS = ("prompt", "turns")  # that are recognised, in this order
STORY = (
    "Write a very long story, of 4,000 words or more. Give names to twenty characters or more. The story should lead "
    "through three countries and nine cities, and be told in ten chapters or more. Let its plot take turns that nobody "
    "expects."
)


class Row(NamedTuple):
    """A prompt in words."""

    name: str
    where: str  # for errors
    text: str


class Prompt(NamedTuple):
    """A story that is asked for."""

    name: str  # of its row
    text: str
    tokens: np.ndarray  # [T] int32
    draw: int  # stories of the same tokens before it

    @property
    def document(self) -> str:
        return f"{self.name}#{self.draw}"

    @property
    def sha256(self) -> str:
        """Of the tokens and the number of the draw, 16 hex digits."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes() + f"#{self.draw}".encode()).hexdigest()[:16]


def read_rows(path: str, field: str | None = None, unreadable: OnProblem = refuse) -> list[Row]:
    """Reads a file of JSON lines, a prompt in each; of a list of turns the first.

    Args:
      field: of a row, which holds its prompt, a text or a list of texts; None: the first of `FIELDS` in which the first
        row that has any holds one.
      unreadable: called with what is wrong with a row that is no JSON object with text in that field; it is left out.

    Raises:
      ValueError: for a file that cannot be read, or has no prompt.
    """
    return read_remaining(functools.partial(_read_rows, path, field), unreadable)


def _read_rows(path: str, field: str | None, unreadable: OnProblem) -> Iterator[Row]:
    name = last_part(path)
    for number, where, row in read_lines(file_label(path, KIND), read_bytes(path, KIND), unreadable):
        with skipping(unreadable):
            check_kind(row, dict, where)
            named = _recognise(where, row) if field is None else field
            prompt = Row(f"{name}:{number}", where, _prompt(where, row, named))
            field = named
            yield prompt


def _recognise(where: str, row: dict[str, Any]) -> str:
    found = [field for field in FIELDS if field in row]
    if not found:
        wanted = " nor ".join(map(repr, FIELDS))
        raise ValueError(f"{where} has neither {wanted}; give the field of its prompt, one of {field_names(row)}")
    return next((field for field in found if row[field]), found[0])


def _prompt(where: str, row: dict[str, Any], name: str) -> str:
    text = field(row, name, (str, list), where)
    if isinstance(text, list):
        if not text:
            raise ValueError(f"{where}: field {name!r} is an empty list; it must have a text")
        text = text[0]
    check_kind(text, str, f"{where}: field {name!r}")
    return check_filled(text, f"{where}: field {name!r}")


def make_prompts(
    rows: Sequence[Row], count: int, encode: Callable[[str], list[int]], most: int, unreadable: OnProblem = refuse
) -> list[Prompt]:
    """So many prompts in tokens: the first rows, and where there are fewer, all of them again and again.

    Args:
      encode: a text in tokens, by the chat template or without.
      most: tokens that a prompt may have.
      unreadable: called with what is wrong with a prompt that the template refuses or that is longer; it is left out.

    Raises:
      ValueError: where no prompt is left.
    """
    encoded = read_remaining(functools.partial(_encode, rows, count, encode, most), unreadable)
    seen: Counter[bytes] = Counter()
    prompts = []
    for index in range(count):
        row, tokens = encoded[index % len(encoded)]
        prompts.append(Prompt(row.name, row.text, tokens, seen[tokens.tobytes()]))
        seen[tokens.tobytes()] += 1
    return prompts


def _encode(
    rows: Sequence[Row], count: int, encode: Callable[[str], list[int]], most: int, unreadable: OnProblem
) -> Iterator[tuple[Row, np.ndarray]]:
    """The first rows that can be prompts, at most so many."""
    found = 0
    for row in rows:
        if found == count:
            return
        with skipping(unreadable):
            try:
                tokens = np.asarray(encode(row.text), np.int32)
            except ValueError as error:
                raise ValueError(f"{row.where}: {error}") from None
            if not 0 < len(tokens) <= most:
                raise ValueError(f"{row.where} has {len(tokens):,} tokens; a prompt must have from 1 to {most:,}")
            found += 1
            yield row, tokens


def without_template(text: str) -> str:
    """An instruction for models that have no chat template, in the form that the paper's prompts have."""
    return f"### Instruction:\n{text}\n\n### Response:\n"
