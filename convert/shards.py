"""Weights in as many safetensors files as their size asks for, with the index that says which is where."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from .huggingface import INDEX, SINGLE
from .safetensors_file import Tensor, write_file


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
