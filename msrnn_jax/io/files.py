"""Files that people name, one by one or by their folder, and what stands in them: bytes, text, rows of JSON lines."""

import contextlib
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from msrnn_jax.io.json_fields import parse_json

OnProblem = Callable[[str], None]  # what is told of a problem, for instance `refuse`
T = TypeVar("T")
STDIN = "-"


def refuse(problem: str) -> NoReturn:
    """Leaves nothing out.

    Raises:
      ValueError: the problem.
    """
    raise ValueError(problem) from None


@contextlib.contextmanager
def skipping(unreadable: OnProblem) -> Iterator[None]:
    """Tells of what cannot be read in the block, and goes on behind it."""
    try:
        yield
    except ValueError as error:
        unreadable(str(error))


def read_remaining(read: Callable[[OnProblem], Iterable[T]], unreadable: OnProblem) -> list[T]:
    """All that can be read.

    Args:
      read: reads, and tells the one it is given of what it leaves out.
      unreadable: is told of that, too.

    Raises:
      ValueError: with the first problem, where nothing remains.
    """
    problems: list[str] = []

    def told(problem: str) -> None:
        problems.append(problem)
        unreadable(problem)

    found = list(read(told))
    if not found:
        raise ValueError(": ".join(["there is nothing to read", *problems[:1]]))
    return found


def file_label(path: str | pathlib.Path, kind: str = "text file") -> str:
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
    name = file_label(path, kind)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{name} is not a file")
        return pathlib.Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{name} does not exist") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None


def files_below(folder: str, suffixes: Sequence[str], kind: str, unreadable: OnProblem) -> list[pathlib.Path]:
    """All below a folder whose names end in one of `suffixes`, in any case, in the order of their paths.

    Args:
      kind: what they are called in messages.
      unreadable: called with every folder below that cannot be opened.

    Raises:
      ValueError: for a folder that cannot be opened itself, or has nothing of such a name below it.
    """

    def told(error: OSError) -> None:
        problem = f"folder {str(error.filename)!r} cannot be read: {error.strerror}"
        (refuse if error.filename == folder else unreadable)(problem)

    names = [pathlib.Path(place, name) for place, _, names in os.walk(folder, onerror=told) for name in names]
    found = sorted(name for name in names if name.suffix.lower() in suffixes)
    if not found:
        raise ValueError(f"{kind.split()[0]} folder {folder!r} has no {' or '.join(suffixes)} file in it")
    return found


def read_each(
    paths: Sequence[str],
    suffixes: Sequence[str],
    kind: str,
    read: Callable[[str, bool], Iterable[T]],
    unreadable: OnProblem,
) -> Iterator[T]:
    """What stands in files, and in those of folders that end in one of `suffixes`.

    Args:
      kind: what files are called in messages.
      read: one file, given its path and whether it was named itself; raises ValueError for what cannot be read.
      unreadable: called with what is wrong with a file of a folder, that it was read before for instance; it is left
        out.

    Raises:
      ValueError: for a folder as `files_below`, and for what is wrong with a file that was named itself: it is meant.
    """
    seen: dict[str, str] = {}
    for path in paths:
        if path != STDIN and os.path.isdir(path):
            for file in files_below(path, suffixes, kind, unreadable):
                with skipping(unreadable):
                    _once(str(file), seen, kind)
                    yield from read(str(file), False)
        else:
            _once(path, seen, kind)
            yield from read(path, True)


def _once(path: str, seen: dict[str, str], kind: str) -> None:
    """Refuses a file that was read before, by whatever name; `seen` has those, and gets this one."""
    place = path if path == STDIN else os.path.realpath(path)
    if place in seen:
        raise ValueError(f"{file_label(path, kind)} is read already, as {seen[place]!r}; it counts once")
    seen[place] = path


def decode_utf8(where: str, content: bytes) -> str:
    """UTF-8 as text, line ends as `\\n`.

    Raises:
      ValueError: for what is not UTF-8, naming the byte.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_rows(name: str, content: bytes, unreadable: OnProblem = refuse) -> Iterator[tuple[int, str, Any]]:
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
        with skipping(unreadable):
            yield number, where, parse_json(decode_utf8(where, line), where)
