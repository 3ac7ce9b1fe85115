"""Texts to measure perplexity on: files, folders, rows of JSON lines, standard input."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from msrnn_jax.json_rows import field, parse, sound

STDIN = "-"
SUFFIXES = (".txt", ".jsonl")  # what is taken from a folder


Note = Callable[[str], None]  # what is told of a problem


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


def read_documents(paths: Sequence[str], field: str = "text", unreadable: Note | None = None) -> list[Document]:
    """Reads UTF-8 texts, line ends as `\\n`.

    Args:
      paths: files, one document each; `.jsonl` files, one document a row; folders, for every .txt and .jsonl
        below them in the order of their paths; `-` for standard input. None at all: Python's help topics.
      field: of a row, which holds its text.
      unreadable: called with what is wrong with a row, or with a file of a folder; these are then left out. Without
        it they are refused, as is always what is named itself.

    Raises:
      ValueError: for a path that is missing, empty or not UTF-8, a folder without texts, and a row that is no
        JSON object with text in that field; and where nothing can be read.
    """
    if not paths:
        return [Document("pydoc_data.topics", default_text())]
    if "" in paths:
        raise ValueError("text '' is no path; it must be a file or a folder")
    if list(paths).count(STDIN) > 1:
        raise ValueError("text '-' is given twice; standard input can be read once")
    problems: list[str] = []

    def left_out(problem: str) -> None:
        problems.append(problem)
        if unreadable is not None:
            unreadable(problem)

    skip = None if unreadable is None else left_out
    documents = [document for path in paths for document in _below(path, field, skip)]
    if not documents:
        raise ValueError(f"there is nothing to read: {problems[0]}")
    return documents


@contextlib.contextmanager
def _left_out(unreadable: Note | None) -> Iterator[None]:
    """Tells of what cannot be read, instead of refusing it."""
    try:
        yield
    except ValueError as error:
        if unreadable is None:
            raise
        unreadable(str(error))


def _below(path: str, field: str, unreadable: Note | None) -> Iterator[Document]:
    place = pathlib.Path(path)
    if path == STDIN:
        yield Document(path, read_text(path))
    elif place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise ValueError(f"text folder {path!r} has no .txt or .jsonl file in it")
        for file in files:
            with _left_out(unreadable):
                if _has_rows(file):
                    yield from _rows(file, _bytes(file), field, unreadable)
                else:
                    yield Document(str(file), _read(file))
    elif _has_rows(place):
        content = _bytes(place)
        if not content.strip():
            raise ValueError(f"text file {path!r} is empty")
        yield from _rows(place, content, field, unreadable)
    else:
        yield Document(path, read_text(path))


def _has_rows(path: pathlib.Path) -> bool:
    return path.suffix.lower() == ".jsonl"


def _rows(path: pathlib.Path, content: bytes, name: str, unreadable: Note | None) -> Iterator[Document]:
    for number, line in enumerate(content.split(b"\n"), 1):
        where = f"text file {str(path)!r}, line {number}"
        if not line.strip():
            continue
        with _left_out(unreadable):
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
