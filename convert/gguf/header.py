"""The header of a GGUF file: its metadata, and where its tensors lie. Nothing that it says is believed unchecked."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..problems import shown
from .cursor import Cursor, unreadable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
MAX_KEY = 2**16 - 1  # bytes, as the format says
MAX_AXES = 4
MAX_ALIGNMENT = 2**20  # bytes; writers use 32

_SMALLEST_ENTRY = 8 + 4 + 1  # bytes of a key's length, the type of its value, and that
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # bytes of a name's length, the number of axes, one of them, type and offset


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


def read_header(path: Path) -> Header:
    """Reads the header of a file, version 2 or 3, little endian.

    Raises:
      ValueError: the header is damaged, or tensors overlap, are misaligned or lie outside the file.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        cursor = Cursor(file, path, size)
        _check_version(cursor)
        tensor_count = cursor.number("<Q", "the number of tensors")
        key_count = cursor.number("<Q", "the number of keys")
        cursor.check_count(key_count, _SMALLEST_ENTRY, f"the metadata of {key_count} keys")
        metadata = _read_metadata(cursor, key_count)
        alignment = _read_alignment(cursor, metadata)
        cursor.check_count(tensor_count, _SMALLEST_TENSOR, f"the list of {tensor_count} tensors")
        found = [_read_tensor(cursor, path, alignment) for _ in range(tensor_count)]
        start = -(-cursor.position // alignment) * alignment
    tensors = tuple(tensor._replace(offset=start + tensor.offset) for tensor in found)
    _check_places(path, tensors, size)
    return Header(metadata, tensors)


def _check_version(cursor: Cursor) -> None:
    magic = cursor.take(4, "the first word")
    if magic != MAGIC:
        raise cursor.fail(f"it starts with {magic!r}, not with {MAGIC!r}")
    version = cursor.take(4, "the version")
    if int.from_bytes(version, "little") in VERSIONS:
        return
    if int.from_bytes(version, "big") in VERSIONS:
        raise cursor.fail("it is big endian; only little-endian files are read")
    number = int.from_bytes(version, "little")
    raise cursor.fail(f"it is of version {number}; the version must be {' or '.join(map(str, VERSIONS))}")


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for number in range(count):
        key = cursor.text(f"the name of key {number}")
        if len(key) > MAX_KEY:
            raise cursor.fail(f"the name of key {number} is longer than {MAX_KEY} characters")
        if key in metadata:
            raise cursor.fail(f"the key {shown(key)} is there twice")
        what = f"the key {shown(key)}"
        metadata[key] = cursor.value(cursor.kind(what), what)
    return metadata


def _read_alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get(ALIGNMENT, 32)
    good = type(alignment) is int and 0 < alignment <= MAX_ALIGNMENT and alignment.bit_count() == 1
    if not good:
        raise cursor.fail(f"{ALIGNMENT} is {shown(alignment)}; it must be a power of two up to {MAX_ALIGNMENT}")
    return alignment


def _read_tensor(cursor: Cursor, path: Path, alignment: int) -> Tensor:
    """One entry of the list; its offset is still that from the start of the data."""
    name = cursor.text("the name of a tensor")
    what = f"the tensor {shown(name)}"
    axes = cursor.number("<I", what)
    if not 1 <= axes <= MAX_AXES:
        raise cursor.fail(f"{what} has {axes} axes; it must have 1 to {MAX_AXES}")
    lengths = [cursor.number("<Q", what) for _ in range(axes)]  # that of a row first
    number, offset = cursor.number("<I", what), cursor.number("<Q", what)
    if 0 in lengths:
        raise cursor.fail(f"{what} has shape {lengths[::-1]}; no axis may be 0")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise cursor.fail(f"{what} has type {number}, which the installed gguf package does not know") from None
    block, block_size = GGML_QUANT_SIZES[kind]
    if lengths[0] % block:
        raise cursor.fail(f"{what} has rows of {lengths[0]}, no multiple of the {block} in a block of {kind.name}")
    if offset % alignment:
        raise cursor.fail(f"{what} starts at {offset}, no multiple of {ALIGNMENT} {alignment}")
    size = math.prod(lengths) // block * block_size
    return Tensor(path, name, kind.name, tuple(reversed(lengths)), offset, size)


def _check_places(path: Path, tensors: Iterable[Tensor], size: int) -> None:
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise unreadable(path, f"the tensor {shown(tensor.name)} is there twice")
        names.add(tensor.name)
        if tensor.offset + tensor.size > size:
            place = f"bytes {tensor.offset} to {tensor.offset + tensor.size}"
            raise unreadable(path, f"the tensor {shown(tensor.name)} takes {place}, but the file ends at {size}")
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise unreadable(path, f"the tensors {shown(before)} and {shown(tensor.name)} overlap")
        end, before = tensor.offset + tensor.size, tensor.name
