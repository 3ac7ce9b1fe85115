"""From named tensors, stored as [out, in] matrices, to our params."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from msrnn_jax.checkpoint.orbax import LazyArray
from msrnn_jax.config import Config
from msrnn_jax.params import Params, param_axes, shape_of

from .problems import shorten
from .progress import Watch

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # by the files' names of them

EMBEDDING = "V D"  # the one matrix that is stored as ours is; others are stored as [out, in]
BLOCK_BYTES = 2**25  # of a tensor in our dtype, read at once


def row_blocks(shape: tuple[int, ...], itemsize: int, unit: int = 1) -> Iterator[slice]:
    """All rows of a tensor, as many at a time as make a block, and whole units of them."""
    row = math.prod(shape[1:]) * itemsize * unit
    step = unit * max(1, BLOCK_BYTES // max(1, row))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


class Stored(NamedTuple):
    """A tensor in a file; rows of it are read only when `read` is called."""

    kind: str  # as the file says: "BF16", "Q4_1"
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]  # rows start to stop of the first axis, in memory of their own
    unit: int = 1  # rows that are read together: start is a multiple of it, and stop unless it is the end

    def blocks(self, itemsize: int) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows, a few at a time: where they stand and what they are."""
        for rows in row_blocks(self.shape, itemsize, self.unit):
            yield rows, self.read(rows.start, rows.stop)


class Findings:
    """What only reading all values tells; filled while weights are read."""

    def __init__(self):
        self.infinite: list[str] = []  # tensors that hold infinities or NaNs
        self.overflowed: list[str] = []  # tensors that would, in the dtype asked for
        self.vanished: list[str] = []  # tensors in which values other than 0 become 0


def name_tree(config: Config, names: Mapping[str, str]) -> Params:
    """The stored name of every weight, as a tree shaped like the params.

    Args:
      names: by field of `Params` and `LayerParams`; `{layer}` stands for the layer's number.
    """

    def name(path, axes):
        del axes
        return names[path[-1].name].format(layer=path[1].idx if len(path) == 3 else None)

    return jax.tree_util.tree_map_with_path(name, param_axes(config))


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
    wanted = dict(zip(jax.tree.leaves(name_tree(config, names)), jax.tree.leaves(param_axes(config)), strict=True))
    shapes = {name: stored_shape(config, axes) for name, axes in wanted.items()}
    found = {name: tensor for name, tensor in stored.items() if name in wanted}
    if stored and not found:
        first, expected = next(iter(stored)), next(iter(wanted))
        return [f"none of the {len(stored)} tensors is of a model of this family: {first!r}, not {expected!r}"]
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


def deferred(
    config: Config,
    names: Mapping[str, str],
    stored: Mapping[str, Stored],
    findings: Findings,
    watch: Watch,
) -> Params:
    """Params, in the config's dtype, that are read from checked tensors one by one, a block of rows at a time.

    Args:
      findings: are added to as weights are read.
      watch: called with the bytes that each block has become.
    """
    dtype = jnp.dtype(config.dtype)

    def weight(name: str, axes: str) -> LazyArray:
        shape = shape_of(config, axes)

        def read() -> np.ndarray:
            return _read(name, stored[name], shape, axes, dtype, findings, watch)

        return LazyArray(shape, dtype, read)

    return jax.tree.map(weight, name_tree(config, names), param_axes(config))


def _read(
    name: str,
    stored: Stored,
    shape: tuple[int, ...],
    axes: str,
    dtype: np.dtype,
    findings: Findings,
    watch: Watch,
) -> np.ndarray:
    ours = np.empty(shape, dtype)
    rows = as_stored(ours, axes)
    finite = fits = kept = True
    for where, block in stored.blocks(dtype.itemsize):
        with np.errstate(over="ignore", invalid="ignore"):
            rows[where] = block
            good = bool(np.isfinite(rows[where]).all())
            finite = finite and (good or bool(np.isfinite(block).all()))
        fits = fits and good
        kept = kept and (block.dtype == dtype or np.count_nonzero(rows[where]) == np.count_nonzero(block))
        watch(rows[where].nbytes)
    if not finite:
        findings.infinite.append(name)
    elif not fits:
        findings.overflowed.append(name)
    elif not kept:
        findings.vanished.append(name)
    return ours


def stored_shape(config: Config, axes: str) -> tuple[int, ...]:
    """The shape of the stored tensor whose axes are these in our params."""
    shape = shape_of(config, axes)
    return shape if axes == EMBEDDING else shape[::-1]


def as_stored(ours: np.ndarray, axes: str) -> np.ndarray:
    """The stored tensor, seen through the memory of our weight."""
    return ours if axes == EMBEDDING else ours.T
