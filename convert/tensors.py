"""From named tensors, stored as [out, in] matrices, to our params."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from msrnn_jax.config import Config
from msrnn_jax.params import Params, axes, sizes

from .problems import shorten

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # by the files' names of them

# The axes of a stored tensor, by those of ours. Heads and their width (NH, KH) are one axis there.
STORED_AXES = {
    "VD": "VD",
    "DV": "VD",
    "DNH": "NHD",
    "DKH": "KHD",
    "NHD": "DNH",
    "DF": "FD",
    "FD": "DF",
    "NH": "NH",
    "KH": "KH",
    "D": "D",
    "H": "H",
    "F": "F",
}


class Stored(NamedTuple):
    """A tensor in a file; its values are read only when `read` is called."""

    kind: str  # as the file says: "BF16", "Q4_1"
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def name_tree(config: Config, names: Mapping[str, str]) -> Params:
    """The stored name of every weight, as a tree shaped like the params.

    Args:
      names: by field of `Params` and `LayerParams`; `{layer}` stands for the layer's number.
    """

    def name(path, letters):
        del letters
        return names[path[-1].name].format(layer=path[1].idx if len(path) == 3 else None)

    return jax.tree_util.tree_map_with_path(name, axes(config))


def widest(dtypes: Collection[str]) -> str:
    """The narrowest dtype that holds all of these without loss."""
    if {"bfloat16", "float16"} <= set(dtypes):
        dtypes = [*dtypes, "float32"]
    return max(dtypes, key=lambda dtype: jnp.dtype(dtype).itemsize)


def check(config: Config, names: Mapping[str, str], stored: Mapping[str, Stored], kinds: Collection[str]) -> list[str]:
    """What is missing, left over, or of the wrong shape or type; no values are read.

    Args:
      names: as for `name_tree`.
      kinds: the types that can be read.
    """
    length = sizes(config)
    wanted = dict(zip(jax.tree.leaves(name_tree(config, names)), jax.tree.leaves(axes(config)), strict=True))
    shapes = {name: stored_shape(letters, length) for name, letters in wanted.items()}
    found = {name: tensor for name, tensor in stored.items() if name in wanted}
    return [
        *shorten((f"missing tensor {name!r}" for name in wanted if name not in stored), "missing tensors"),
        *shorten(
            (
                f"unexpected tensor {name!r} {list(tensor.shape)}"
                for name, tensor in stored.items()
                if name not in wanted
            ),
            "unexpected tensors",
        ),
        *shorten(
            (
                f"tensor {name!r} has shape {list(tensor.shape)}; it must be {list(shapes[name])}"
                for name, tensor in found.items()
                if tensor.shape != shapes[name]
            ),
            "tensors of a wrong shape",
        ),
        *shorten(
            (
                f"tensor {name!r} has type {tensor.kind}; it must be one of {', '.join(kinds)}"
                for name, tensor in found.items()
                if tensor.kind not in kinds
            ),
            "tensors of an unknown type",
        ),
    ]


def load(config: Config, names: Mapping[str, str], stored: Mapping[str, Stored], problems: list[str]) -> Params:
    """Reads checked tensors one by one into params of numpy arrays in the config's dtype.

    Tensors that hold infinities or NaNs, or would in that dtype, are added to `problems`.
    """
    length = sizes(config)
    dtype = jnp.dtype(config.dtype)

    def weight(name: str, letters: str) -> np.ndarray:
        array = stored[name].read()
        finite = bool(np.isfinite(array).all())
        order = STORED_AXES[letters]
        split = array.reshape([length[letter] for letter in order])
        with np.errstate(over="ignore"):
            ours = np.array(split.transpose([order.index(letter) for letter in letters]), dtype, order="C")
        if not finite:
            problems.append(f"tensor {name!r} holds values that are not finite")
        elif not np.isfinite(ours).all():
            problems.append(f"tensor {name!r} holds values too large for {config.dtype}")
        return ours

    return jax.tree.map(weight, name_tree(config, names), axes(config))


def stored_shape(letters: str, length: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of the stored tensor whose axes are these letters in our params."""
    joined = re.findall("[NK]H|.", STORED_AXES[letters])
    return tuple(math.prod(length[letter] for letter in group) for group in joined)
