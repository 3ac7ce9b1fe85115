"""What stands in files that people name: bytes, text, rows of JSON lines."""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from msrnn_jax.json_rows import parse
from msrnn_jax.leaving_out import Note, left_out, refuse

STDIN = "-"


def called(path: str | pathlib.Path, kind: str = "text file") -> str:
    """What messages call a file."""
    return "standard input" if path == STDIN else f"{kind} {str(path)!r}"


def read_bytes(path: str | pathlib.Path, kind: str = "text file") -> bytes:
    """What a file holds, or standard input, which is `-`.

    Raises:
      ValueError: where it is missing or cannot be read; `kind` is what it is called there.
    """
    if path == STDIN:
        if sys.stdin is None:
            raise ValueError("standard input is closed")
        return sys.stdin.buffer.read()
    place, name = pathlib.Path(path), called(path, kind)
    if not place.exists():
        raise ValueError(f"{name} does not exist")
    if not place.is_file():
        raise ValueError(f"{name} is not a file")
    try:
        return place.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error


def decoded(where: str, content: bytes) -> str:
    """UTF-8 as text, line ends as `\\n`.

    Raises:
      ValueError: for what is not UTF-8, naming the byte.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_rows(name: str, content: bytes, unreadable: Note = refuse) -> Iterator[tuple[int, str, Any]]:
    """Reads JSON lines, UTF-8; empty ones do not count.

    Args:
      name: of the file, for messages.
      unreadable: called with what is wrong with a line, which is then left out.

    Yields:
      Of every line its number from 1 on, its name for messages, and its value.

    Raises:
      ValueError: for an empty file.
    """
    if not content.strip():
        raise ValueError(f"{name} is empty")
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        with left_out(unreadable):
            yield number, where, parse(decoded(where, line), where)
