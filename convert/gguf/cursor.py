"""Typed values read one after another from a GGUF header, every length checked before anything is made of it."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGUFValueType

from ..problems import shown

MAX_HEADER = 2**28  # bytes; real headers, vocabulary included, have some 10 million
MAX_DEPTH = 4  # of arrays in arrays; real files have none
CHUNK = 2**20  # bytes read at once

_NUMBERS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<B",
}
_SMALLEST = {GGUFValueType.STRING: 8, GGUFValueType.ARRAY: 12}  # bytes of the empty one


def unreadable(path: Path, problem: str) -> ValueError:
    """The error for a file that is damaged, or is no GGUF at all."""
    return ValueError(f"{path} is not a readable GGUF file: {problem}")


class Cursor:
    """A place in a file's header, which moves forward as values are read.

    All reads raise `ValueError` where the file does not hold what it announces; `what` is the part that
    the error then names.
    """

    def __init__(self, file: BinaryIO, path: Path, size: int):
        self._file = file
        self._path = path
        self._end = min(size, MAX_HEADER)
        self._cut = "the file ends" if size <= MAX_HEADER else f"a header takes at most {MAX_HEADER} bytes"
        self._buffer = b""
        self._at = 0  # in the buffer
        self._start = 0  # of the buffer, in the file

    @property
    def position(self) -> int:
        """Bytes from the start of the file."""
        return self._start + self._at

    def fail(self, problem: str) -> ValueError:
        """The error for this file."""
        return unreadable(self._path, problem)

    def check_count(self, count: int, smallest: int, what: str) -> None:
        """Raises unless `count` things of at least `smallest` bytes each can follow."""
        left = self._end - self.position
        if count * smallest > left:
            raise self.fail(f"{what} needs at least {count * smallest} bytes, but {self._cut} after {left} more")

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        self.check_count(count, 1, what)
        at = self._at
        if at + count > len(self._buffer):
            rest = self._buffer[at:]
            wanted = max(count, CHUNK) - len(rest)
            self._start, self._at, at = self.position, 0, 0
            self._buffer = rest + self._file.read(min(wanted, self._end - self._start - len(rest)))
            if len(self._buffer) < count:
                raise self.fail(f"it became shorter while {what} was read")
        self._at = at + count
        return self._buffer[at : at + count]

    def number(self, kind: str, what: str) -> Any:
        """The next number, of a kind of `struct`."""
        return struct.unpack(kind, self.take(struct.calcsize(kind), what))[0]

    def text(self, what: str) -> str:
        """The next string."""
        raw = self.take(int.from_bytes(self.take(8, what), "little"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} holds text that is not UTF-8: {shown(raw)}") from None

    def kind(self, what: str) -> GGUFValueType:
        """The next number, as the type of a value."""
        number = self.number("<I", what)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.fail(f"{what} has a value of type {number}, which does not exist") from None

    def value(self, kind: GGUFValueType, what: str, depth: int = 0) -> Any:
        """The next value: an int, a float, a bool, a str, or a list of one of these."""
        if kind == GGUFValueType.STRING:
            return self.text(what)
        if kind == GGUFValueType.ARRAY:
            return self._array(what, depth + 1)
        return self._numbers(kind, 1, what)[0]

    def _array(self, what: str, depth: int) -> list[Any]:
        if depth > MAX_DEPTH:
            raise self.fail(f"{what} holds arrays in arrays, more than {MAX_DEPTH} deep")
        kind = self.kind(what)
        count = self.number("<Q", what)
        if kind in _NUMBERS:
            return self._numbers(kind, count, what)
        self.check_count(count, _SMALLEST[kind], what)
        if kind == GGUFValueType.STRING:
            return [self.text(what) for _ in range(count)]
        return [self._array(what, depth + 1) for _ in range(count)]

    def _numbers(self, kind: GGUFValueType, count: int, what: str) -> list[Any]:
        dtype = np.dtype(_NUMBERS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize, what), dtype).tolist()
        if kind != GGUFValueType.BOOL:
            return values
        if not set(values) <= {0, 1}:
            raise self.fail(f"{what} is {shown(values)}; a boolean must be 0 or 1")
        return [value == 1 for value in values]
