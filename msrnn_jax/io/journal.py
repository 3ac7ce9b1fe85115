"""Results as JSON lines, appended batch by batch, so that a run that was cut off goes on where it was."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import filelock

from msrnn_jax.io.atomic import check_writable, finite

Line = dict[str, Any]


class Journal:
    """The lines of a file, and of this run, which are written to it as they come.

    Attributes:
      lines: all of them, oldest first, as they are read back from JSON.
    """

    def __init__(self, path: pathlib.Path | None, lines: Sequence[Line] = ()):
        self.path = path
        self.lines = list(lines)

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Adds lines, all by one write; on return they are the operating system's to keep."""
        texts = [json.dumps(finite(dict(line)), allow_nan=False) for line in lines]
        if self.path is not None and texts:
            content = "".join(text + "\n" for text in texts).encode("ascii")
            try:
                with open(self.path, "ab", buffering=0) as file:
                    while content:  # a full disk may take a part before it says so
                        content = content[file.write(content) :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.lines += map(json.loads, texts)  # numbers are the same whether they were on disk or not


@contextlib.contextmanager
def open_journal(path: str | os.PathLike[str] | None, kinds: Sequence[str], name: str = "out") -> Iterator[Journal]:
    """Reads a file of results and keeps other processes from writing to it meanwhile.

    A last line without its end was torn when its process was killed, and is cut off.

    Args:
      path: a .jsonl file, made at the first line written; None keeps the lines in memory.
      kinds: what the key `kind`, the first of every line, may say.
      name: what the path is called, for errors.

    Raises:
      ValueError: for a path that cannot be written, that another process writes now, or that holds anything else.
    """
    if path is None:
        yield Journal(None)
        return
    _check(name, pathlib.Path(path))
    file = pathlib.Path(os.path.realpath(path))  # whatever links lead to it, there is one lock
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(file.with_name(f".{file.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(f"{name} is {str(path)!r}, which another process is writing") from None
    try:
        yield Journal(file, _read(name, file, kinds) if file.exists() else ())
    finally:
        lock.release()


def _check(name: str, path: pathlib.Path) -> None:
    if path.suffix != ".jsonl":
        raise ValueError(f"{name} is {str(path)!r}; it must end in .jsonl")
    check_writable(name, path)


def read_journal(path: pathlib.Path, kinds: Sequence[str]) -> list[Line]:
    """Reads a file of results as it is, also while a process writes to it: what has no end yet is left out.

    Raises:
      ValueError: for a file that holds anything else.
    """
    return _parse("results", path, kinds)[0]


def _read(name: str, path: pathlib.Path, kinds: Sequence[str]) -> list[Line]:
    lines, whole = _parse(name, path, kinds)
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return lines


def _parse(name: str, path: pathlib.Path, kinds: Sequence[str]) -> tuple[list[Line], int]:
    """The lines of a file, and their bytes, after which there may be a torn one."""
    content = path.read_bytes()
    *whole, torn = content.split(b"\n")
    lines = []
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or line.get("kind") not in kinds:
            raise ValueError(f"{name} is {str(path)!r}, whose line {number} is no {' or '.join(kinds)}")
        lines.append(line)
    if torn:
        beginnings = [f'{{"kind": {json.dumps(kind)}'.encode() for kind in kinds]
        if not any(torn.startswith(beginning) or beginning.startswith(torn) for beginning in beginnings):
            raise ValueError(f"{name} is {str(path)!r}, whose line {len(whole) + 1} is no {' or '.join(kinds)}")
    return lines, len(content) - len(torn)
