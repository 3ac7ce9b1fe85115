"""Texts to measure perplexity on: files, folders, rows of JSON lines, standard input."""

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msrnn_jax.json_rows import field, parse, sound

STDIN = "-"
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
    if path == STDIN:
        if sys.stdin is None:
            raise ValueError("standard input is closed")
        return _filled("standard input", _decoded("standard input", sys.stdin.buffer.read()))
    return _filled(f"text file {path!r}", _read(pathlib.Path(path)))


def read_documents(paths: Sequence[str], field: str = "text") -> list[Document]:
    """Reads UTF-8 texts, line ends as `\\n`.

    Args:
      paths: files, one document each; `.jsonl` files, one document a row; folders, for every .txt and .jsonl
        below them in the order of their paths; `-` for standard input. None at all: Python's help topics.
      field: of a row, which holds its text.

    Raises:
      ValueError: for a path that is missing, empty or not UTF-8, a folder without texts, and a row that is no
        JSON object with text in that field.
    """
    if not paths:
        return [Document("pydoc_data.topics", default_text())]
    if "" in paths:
        raise ValueError("text '' is no path; it must be a file or a folder")
    if list(paths).count(STDIN) > 1:
        raise ValueError("text '-' is given twice; standard input can be read once")
    return [document for path in paths for document in _below(path, field)]


def _below(path: str, field: str) -> Iterator[Document]:
    place = pathlib.Path(path)
    if path == STDIN:
        yield Document(path, read_text(path))
    elif place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise ValueError(f"text folder {path!r} has no .txt or .jsonl file in it")
        for file in files:
            yield from _rows(file, field) if _has_rows(file) else [Document(str(file), _read(file))]
    elif _has_rows(place):
        rows = list(_rows(place, field))
        if not rows:
            raise ValueError(f"text file {path!r} is empty")
        yield from rows
    else:
        yield Document(path, read_text(path))


def _has_rows(path: pathlib.Path) -> bool:
    return path.suffix.lower() == ".jsonl"


def _rows(path: pathlib.Path, name: str) -> Iterator[Document]:
    for number, line in enumerate(_bytes(path).split(b"\n"), 1):
        where = f"text file {str(path)!r}, line {number}"
        if line.strip():
            text = field(parse(_decoded(where, line), where), name, str, where)
            yield Document(f"{path}:{number}", sound(text, f"{where}: field {name!r}"))


def _read(path: pathlib.Path) -> str:
    return _decoded(f"text file {str(path)!r}", _bytes(path))


def _bytes(path: pathlib.Path) -> bytes:
    if not path.exists():
        raise ValueError(f"text file {str(path)!r} does not exist")
    if not path.is_file():
        raise ValueError(f"text file {str(path)!r} is not a file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"text file {str(path)!r} cannot be read: {error.strerror}") from error


def _decoded(where: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _filled(where: str, text: str) -> str:
    if not text.strip():
        raise ValueError(f"{where} is empty")
    return text
