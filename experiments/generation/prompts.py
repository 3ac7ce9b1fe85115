"""What stories are asked for: rows of a file or one instruction, each with how often it was asked for before."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.names import last_part
from msrnn_jax.json_rows import check, field, filled, names_of, parse
from msrnn_jax.texts import read_text

FIELDS = ("prompt", "turns")  # that are recognised, in this order


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


def read_rows(path: str, field: str | None = None) -> list[Row]:
    """Reads a file of JSON lines, a prompt in each; of a list of turns the first.

    Args:
      field: of a row, which holds its prompt, a text or a list of texts; None: the first of `FIELDS` that the first
        row has.

    Raises:
      ValueError: for a file that cannot be read, and for a row that is no JSON object with text in that field.
    """
    name = last_part(path)
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"prompts {path!r}, line {number}"
        row = parse(line, where)
        check(row, dict, where)
        field = _recognise(where, row) if field is None else field
        rows.append(Row(f"{name}:{number}", where, _prompt(where, row, field)))
    return rows


def _recognise(where: str, row: dict[str, Any]) -> str:
    found = [field for field in FIELDS if field in row]
    if not found:
        wanted = " nor ".join(map(repr, FIELDS))
        raise ValueError(f"{where} has neither {wanted}; give the field of its prompt, one of {names_of(row)}")
    return found[0]


def _prompt(where: str, row: dict[str, Any], name: str) -> str:
    text = field(row, name, (str, list), where)
    if isinstance(text, list):
        if not text:
            raise ValueError(f"{where}: field {name!r} is an empty list; it must have a text")
        text = text[0]
    check(text, str, f"{where}: field {name!r}")
    return filled(text, f"{where}: field {name!r}")


def make_prompts(rows: Sequence[Row], count: int, encode: Callable[[str], list[int]], most: int) -> list[Prompt]:
    """So many prompts in tokens: the first rows, and where there are fewer, all of them again and again.

    Args:
      encode: a text in tokens, by the chat template or without.
      most: tokens that a prompt may have.

    Raises:
      ValueError: for a prompt that the template refuses, and for one that is longer.
    """
    encoded = []
    for row in rows[:count]:
        try:
            tokens = np.asarray(encode(row.text), np.int32)
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from None
        if not 0 < len(tokens) <= most:
            raise ValueError(f"{row.where} has {len(tokens):,} tokens; a prompt must have from 1 to {most:,}")
        encoded.append(tokens)
    seen: Counter[bytes] = Counter()
    prompts = []
    for index in range(count):
        row, tokens = rows[index % len(encoded)], encoded[index % len(encoded)]
        prompts.append(Prompt(row.name, row.text, tokens, seen[tokens.tobytes()]))
        seen[tokens.tobytes()] += 1
    return prompts
