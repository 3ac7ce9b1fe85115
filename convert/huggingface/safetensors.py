"""safetensors files: opened without keeping them in memory, and written a block of rows at a time."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from ..tensors import DTYPES, Stored

WRITER = "msrnn_jax"
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}  # by our names
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def open_file(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name.

    Raises:
      ValueError: the header is damaged, or the file is not as long as it says.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:  # reads the header, and maps the rest
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return {name: _stored(path, name, part) for name, part in slices.items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def _stored(path: Path, name: str, part: Any) -> Stored:
    def read(start: int, stop: int) -> np.ndarray:
        # Opened again for every block: pages of an open map that were once read count as memory.
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.get_slice(name)[start:stop]

    return Stored(part.get_dtype(), tuple(part.get_shape()), read)


def is_written_here(path: Path) -> bool:
    """Whether `write_file` made this file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("writer") == WRITER
    except (safetensors.SafetensorError, OSError):
        return False


class Tensor(NamedTuple):
    """A tensor to be written."""

    dtype: jnp.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(path: Path, tensors: Mapping[str, Tensor], blocks: Iterable[np.ndarray]) -> None:
    """Writes a file whose values come as blocks of rows: all of the first tensor, then all of the second, and so on."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "writer": WRITER}}  # transformers asks for the format
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": KINDS[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # values are aligned
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        start = file.tell()
        for block in blocks:
            file.write(np.ascontiguousarray(block).view(np.uint8).data)
        assert file.tell() - start == end, path


def write_shards(
    folder: Path, tensors: Mapping[str, Tensor], most: int, blocks: Callable[[str], Iterable[np.ndarray]]
) -> None:
    """Writes tensors in their order, as many into each file as fit.

    Args:
      most: bytes of values in a file, unless a single tensor has more.
      blocks: the values of a tensor by its name, a block of rows after the other.
    """
    shards = _shards(tensors, most)
    for file, names in shards.items():
        held = {name: tensors[name] for name in names}
        write_file(folder / file, held, (block for name in names for block in blocks(name)))
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        places = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, Tensor], most: int) -> dict[str, list[str]]:
    """The names of tensors by file."""
    groups: list[list[str]] = [[]]
    room = most
    for name, tensor in tensors.items():
        if tensor.nbytes > room and groups[-1]:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= tensor.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": names for number, names in enumerate(groups, 1)}
