"""The header of a GGUF file: its metadata, and where its tensors lie. Nothing that it says is believed unchecked."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from ..problems import shown

VERSIONS = (2, 3)
MAX_HEADER = 2**28  # bytes; real headers, vocabulary included, have some 10 million
ALIGNMENT = "general.alignment"
MAX_ALIGNMENT = 2**20  # bytes; writers use 32
NUMBERS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "<u1",
}


class Tensor(NamedTuple):
    """Where a tensor lies."""

    path: Path  # of the file
    name: str
    kind: str  # "BF16", "Q4_1"
    shape: tuple[int, ...]  # rows first
    offset: int  # bytes from the start of the file
    size: int  # bytes


class Header(NamedTuple):
    """All that a file says before its data."""

    metadata: dict[str, Any]  # ints, floats, bools, strings, and lists of these
    tensors: tuple[Tensor, ...]


def unreadable(path: Path, problem: str) -> ValueError:
    """The error for a file that is damaged, or is no GGUF at all."""
    return ValueError(f"{path} is not a readable GGUF file: {problem}")


def read_header(path: Path) -> Header:
    """Reads the header of a file, version 2 or 3, little endian.

    Raises:
      ValueError: the header is damaged, or tensors overlap, are misaligned or lie outside the file.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        cursor = Cursor(path, file, size)
        magic = cursor.take(4)
        if magic != b"GGUF":
            raise unreadable(path, f"it starts with {magic!r}, not with b'GGUF'")
        version = cursor.number("<u4")
        if version not in VERSIONS:  # of a big-endian file this is a large number
            raise unreadable(path, f"it is of version {version}; it must be little endian and of version 2 or 3")
        tensor_count, key_count = cursor.number("<u8"), cursor.number("<u8")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):  # ends with the file, whatever the count
            key = cursor.text()
            if key in metadata:
                raise unreadable(path, f"the key {shown(key)} is there twice")
            metadata[key] = cursor.value()
        alignment = metadata.get(ALIGNMENT, 32)
        if type(alignment) is not int or alignment.bit_count() != 1 or not 0 < alignment <= MAX_ALIGNMENT:
            wrong = f"{ALIGNMENT} is {shown(alignment)}; it must be a power of two up to {MAX_ALIGNMENT}"
            raise unreadable(path, wrong)
        found = [_read_tensor(cursor, path, alignment) for _ in range(tensor_count)]
        start = -(-cursor.at // alignment) * alignment
    tensors = tuple(tensor._replace(offset=start + tensor.offset) for tensor in found)
    _check_places(path, tensors, size)
    return Header(metadata, tensors)


class Cursor:
    """A place in a header; every length is compared with what is left of the file before anything is made of it."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self._path, self._file, self._end = path, file, min(size, MAX_HEADER)
        self.at = 0  # bytes from the start of the file

    def take(self, count: int) -> bytes:
        """The next bytes."""
        raw = self._file.read(count) if count <= self._end - self.at else b""
        if len(raw) < count:
            raise unreadable(self._path, f"{count} bytes must follow at {self.at}, but it ends before")
        self.at += count
        return raw

    def numbers(self, dtype: str, count: int) -> list[Any]:
        """The next numbers, of a dtype of NumPy."""
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype).tolist()

    def number(self, dtype: str) -> Any:
        """The next number."""
        return self.numbers(dtype, 1)[0]

    def text(self) -> str:
        """The next string."""
        raw = self.take(int.from_bytes(self.take(8), "little"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise unreadable(self._path, f"the text {shown(raw)} before {self.at} is not UTF-8") from None

    def value(self) -> Any:
        """The next value, after its type: an int, a float, a bool, a str, or a list of one of these."""
        kind, count = self.number("<u4"), None
        if kind == GGUFValueType.ARRAY:
            kind, count = self.number("<u4"), self.number("<u8")
        if kind == GGUFValueType.STRING:
            return self.text() if count is None else [self.text() for _ in range(count)]
        if kind not in NUMBERS:
            raise unreadable(self._path, f"a value before {self.at} has type {kind}, of which there are none")
        values = self.numbers(NUMBERS[kind], 1 if count is None else count)
        if kind == GGUFValueType.BOOL:
            values = list(map(bool, values))
        return values[0] if count is None else values


def _read_tensor(cursor: Cursor, path: Path, alignment: int) -> Tensor:
    """One entry of the list; its offset is still that from the start of the data."""
    name = cursor.text()
    lengths = cursor.numbers("<u8", cursor.number("<u4"))  # that of a row first
    number, offset = cursor.number("<u4"), cursor.number("<u8")
    what, shape = f"the tensor {shown(name)}", tuple(reversed(lengths))
    if 0 in shape or not 1 <= len(shape) <= 4:
        raise unreadable(path, f"{what} has shape {shown(list(shape))}; it must have 1 to 4 axes, none of them 0")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise unreadable(path, f"{what} has type {number}, which the installed gguf package does not know") from None
    block, block_size = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise unreadable(path, f"{what} has rows of {shape[-1]}, no multiple of the {block} in a block of {kind.name}")
    if offset % alignment:
        raise unreadable(path, f"{what} starts at {offset}, no multiple of {ALIGNMENT} {alignment}")
    return Tensor(path, name, kind.name, shape, offset, math.prod(shape) // block * block_size)


def _check_places(path: Path, tensors: Iterable[Tensor], size: int) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise unreadable(path, f"the tensors {shown(before)} and {shown(tensor.name)} overlap")
        end, before = tensor.offset + tensor.size, tensor.name
        if end > size:
            place = f"bytes {tensor.offset} to {end}"
            raise unreadable(path, f"the tensor {shown(before)} takes {place}, but the file ends at {size}")
