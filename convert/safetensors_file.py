"""safetensors files: opened without keeping them in memory, and written a block of rows at a time."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from .tensors import DTYPES, Stored

WRITER = "msrnn_jax"
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}  # by our names


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
