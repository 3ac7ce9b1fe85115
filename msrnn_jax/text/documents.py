"""Texts to measure perplexity on: files, folders, rows of JSON lines, standard input."""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msrnn_jax.io.files import (
    STDIN,
    OnProblem,
    decode_utf8,
    file_label,
    read_bytes,
    read_each,
    read_remaining,
    read_rows,
    refuse,
    skipping,
)
from msrnn_jax.io.json_fields import field

KIND = "text file"
SUFFIXES = (".txt", ".jsonl")  # what is taken from a folder


class Document(NamedTuple):
    """A text and what to call it: its path as given, with the line where it is one row of many."""

    name: str
    text: str


def default_text() -> str:
    """About 465,000 characters of English that every Python brings along: its help topics.

    The text differs between Python versions; say its hash beside a number.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def read_text(path: str) -> str:
    """Reads one UTF-8 text, line ends as `\\n`: a file of any name, or `-` for standard input.

    Raises:
      ValueError: where it is missing, empty or not UTF-8.
    """
    text = decode_utf8(file_label(path), read_bytes(path))
    if not text.strip():
        raise ValueError(f"{file_label(path)} is empty")
    return text


def read_documents(paths: Sequence[str], field: str = "text", unreadable: OnProblem = refuse) -> list[Document]:
    """Reads UTF-8 texts, line ends as `\\n`.

    Args:
      paths: files, one document each; `.jsonl` files, one document a row; folders, for every .txt and .jsonl
        below them in the order of their paths; `-` for standard input. None at all: Python's help topics.
      field: of a row, which holds its text.
      unreadable: called with what is wrong with a row, or with a file of a folder, one that was read before among
        them; these are then left out. What is named itself is always refused.

    Raises:
      ValueError: for a path that is missing, empty, not UTF-8 or read before, a folder without texts, and a row that is
        no JSON object with text in that field; and where nothing can be read.
    """
    if not paths:
        return [Document("pydoc_data.topics", default_text())]
    if "" in paths:
        raise ValueError("text '' is no path; it must be a file or a folder")
    if list(paths).count(STDIN) > 1:
        raise ValueError("text '-' is given twice; standard input can be read once")
    return read_remaining(functools.partial(_all, paths, field), unreadable)


def _all(paths: Sequence[str], field: str, unreadable: OnProblem) -> Iterator[Document]:
    def read(path: str, is_named: bool) -> Iterator[Document]:
        place = pathlib.Path(path)
        if place.suffix.lower() == ".jsonl":
            yield from _rows(place, field, unreadable)
        elif is_named:
            yield Document(path, read_text(path))
        else:  # an empty one is a document without tokens
            yield Document(path, decode_utf8(file_label(path), read_bytes(path)))

    return read_each(paths, SUFFIXES, KIND, read, unreadable)


def _rows(path: pathlib.Path, name: str, unreadable: OnProblem) -> Iterator[Document]:
    for number, where, row in read_rows(file_label(path), read_bytes(path), unreadable):
        with skipping(unreadable):
            yield Document(f"{path}:{number}", field(row, name, str, where))
