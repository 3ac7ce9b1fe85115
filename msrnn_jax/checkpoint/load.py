"""Reading a checkpoint: weights at once, one by one, or shared out over a mesh."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from msrnn_jax.checkpoint.layout import PARAMS_FOLDER, existing, read_config, read_config_in, with_dtype
from msrnn_jax.checkpoint.orbax import (
    LazyArray,
    from_tree,
    path_names,
    read_weight,
    read_weights,
    stored_shapes,
    to_tree,
)
from msrnn_jax.config import Config
from msrnn_jax.devices.processes import is_lost
from msrnn_jax.devices.sharding import shardings
from msrnn_jax.io.errors import first_line
from msrnn_jax.model.lora import merge_weight
from msrnn_jax.params import (
    Adapter,
    LowRank,
    Params,
    abstract_params,
    is_low_rank,
    param_axes,
    shapes_by_head,
    without_adapters,
)
from msrnn_jax.policies import Full
from msrnn_jax.recurrence.checks import adapter_problems


def load(path: str | os.PathLike[str], *, dtype: str | None = None, sharding: Any = None) -> tuple[Config, Params]:
    """Reads a checkpoint.

    Args:
      path: a folder written by `save` or `msrnn convert`.
      dtype: cast the weights to it; by default they stay as they are.
      sharding: where the weights go: a `jax.sharding.Sharding` for all, or a tree of them shaped like the params
        (or like the top of that tree). Every device reads its own part only, straight from the files. By default
        all go to the default device.

    Returns:
      The config, its dtype that of the weights, and the weights.

    Raises:
      ValueError: where the folder is missing, incomplete or damaged, naming what is wrong, and for a sharding
        that does not fit the weights.
    """
    folder = existing(path)
    config = with_dtype(read_config_in(folder), dtype)
    # Without a sharding, restored to the host and from there to the default device: arrays that Orbax puts on a device
    # are committed to it, so that the first step's state, which is not, and the second's, which is, would be compiled
    # for apart.
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    shapes = _stored_params(path, folder, config)
    placed = shapes if sharding is None else _with_sharding(shapes, sharding)
    wanted = to_tree(_by_head(config, placed, host))
    with _weights_of(path):
        try:
            found = read_weights(folder / PARAMS_FOLDER, wanted)
        except Exception:
            _find_damage(folder, wanted)  # Orbax does not say where it is
            raise
    likes, tree = jax.tree.flatten(placed)
    leaves = jax.tree.leaves(from_tree(shapes, found))
    del found
    for index, like in enumerate(likes):  # one by one, so that there are not two of all
        leaves[index] = _as_matrix(leaves[index], like)
    return config, jax.tree.unflatten(tree, leaves)


def load_deferred(path: str | os.PathLike[str]) -> tuple[Config, Params]:
    """`load`, with weights that are read one by one, to numpy arrays, when their `read` is called.

    Adapters are merged into what is read.
    """
    folder = existing(path)
    config = read_config_in(folder)  # of a dtype that JAX may not hold

    def read(where: Any, leaf: Any) -> np.ndarray:
        with _weights_of(path):
            return read_weight(folder / PARAMS_FOLDER, path_names(where), leaf.dtype).reshape(leaf.shape)

    def deferred(where: Any, leaf: Any) -> LazyArray:
        def value() -> np.ndarray:
            parts = jax.tree_util.tree_map_with_path(lambda below, part: read((*where, *below), part), leaf)
            return merge_weight(parts, np.matmul) if is_low_rank(leaf) else parts

        return LazyArray(leaf.shape, leaf.dtype, value)

    shapes = _stored_params(path, folder, config)
    return config, jax.tree_util.tree_map_with_path(deferred, shapes, is_leaf=is_low_rank)


def stored_params(path: str | os.PathLike[str], config: Config) -> Params:
    """Shapes and dtypes of a checkpoint's weights and adapters; nothing of them is read.

    Args:
      config: the checkpoint's, of any dtype.

    Raises:
      ValueError: where they are missing, damaged, or not those of the config.
    """
    return _stored_params(path, existing(path), config)


def _stored_params(path: str | os.PathLike[str], folder: pathlib.Path, config: Config) -> Params:
    with _weights_of(path):
        stored = stored_shapes(folder / PARAMS_FOLDER)
        shapes = _with_adapters(abstract_params(config), stored)
        _compare(to_tree(_by_head(config, shapes)), stored)
        if problems := adapter_problems(shapes):
            raise ValueError("; ".join(problems))
    return shapes


def _with_adapters(shapes: Params, stored: Mapping[str, Any]) -> Params:
    """The config's weights, low-rank ones where something is stored beside them."""

    def low_rank(where: Any, leaf: Any) -> Any:
        node: Any = stored
        for name in (*path_names(where), "adapter"):
            node = node.get(name) if isinstance(node, Mapping) else None
        found = node if isinstance(node, Mapping) else {}
        halves = {name: half.shape for name, half in found.items() if hasattr(half, "shape")}
        if halves.keys() != {"down", "up"}:
            return leaf
        shapes = (*leaf.shape[:1], *halves["down"][-1:]), (*halves["up"][:1], *leaf.shape[1:])
        down, up = (jax.ShapeDtypeStruct(shape, leaf.dtype) for shape in shapes)
        return LowRank(leaf, Adapter(down, up))  # pyright: ignore[reportArgumentType]

    return jax.tree_util.tree_map_with_path(low_rank, shapes)


def _with_sharding(shapes: Params, sharding: Any) -> Params:
    try:
        spread = jax.tree.broadcast(sharding, without_adapters(shapes))
    except ValueError as error:
        raise ValueError(f"sharding is no tree shaped like the params: {first_line(error)}") from None

    def put(where: Any, leaf: Any, place: Any) -> Any:
        if is_low_rank(leaf):
            halves = jax.tree.map(functools.partial(_everywhere, place), leaf.adapter)
            return LowRank(put(where, leaf.weight, place), halves)
        name = jax.tree_util.keystr(where)
        if not isinstance(place, jax.sharding.Sharding):
            raise ValueError(f"sharding of params{name} is {place!r}; it must be a jax.sharding.Sharding")
        try:
            place.shard_shape(leaf.shape)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"sharding of params{name} {list(leaf.shape)} does not fit: {first_line(error)}") from None

    return jax.tree_util.tree_map_with_path(put, shapes, spread, is_leaf=is_low_rank)


def _everywhere(sharding: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """An adapter is small: every device of its weight has all of it."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        sharding = sharding.update(spec=jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _by_head(config: Config, shapes: Params, host: Any = None) -> Params:
    """The same weights as they lie in files, where heads and their width are two axes.

    Args:
      host: where a weight is read to whose sharding cuts through a head.
    """

    def weight(axes: str, leaf: Any, shape: Any) -> Any:
        if is_low_rank(leaf):  # of an adapter every device has all
            adapter = jax.tree.map(functools.partial(weight, ""), leaf.adapter, shape.adapter)
            return LowRank(weight(axes, leaf.weight, shape.weight), adapter)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=_sharding_by_head(axes, leaf.sharding, shape) or host)

    return jax.tree.map(weight, param_axes(config), shapes, shapes_by_head(config, shapes))


def _sharding_by_head(axes: str, sharding: Any, shape: tuple[int, ...]) -> Any:
    """The sharding of a weight as it lies in files; None where there is none, or it cuts through a head."""
    if isinstance(sharding, jax.sharding.NamedSharding) and len(shape) > len(axes.split()) > 0:
        parts = zip(axes.split(), (*sharding.spec, None, None), strict=False)
        spec = [side for axis, part in parts for side in (part, *(None for _ in axis[1:]))]
        sharding = sharding.update(spec=jax.sharding.PartitionSpec(*spec))
    try:
        if sharding is not None:
            sharding.shard_shape(shape)
    except (ValueError, TypeError):
        return None
    return sharding


def _as_matrix(array: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A weight that was read, as it is in memory."""
    if like.sharding is None:
        return jnp.asarray(np.asarray(array).reshape(like.shape))
    if array.sharding.device_set != like.sharding.device_set:
        whole = np.asarray(array).reshape(like.shape)
        return jax.make_array_from_callback(like.shape, like.sharding, whole.__getitem__)
    if array.shape == like.shape:
        return array
    part = like.sharding.shard_shape(like.shape)
    parts = [shard.data.reshape(part) for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(like.shape, like.sharding, parts)


@contextlib.contextmanager
def _weights_of(path: str | os.PathLike[str]) -> Iterator[None]:
    """Names the checkpoint where its weights cannot be read."""
    problem = None
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise many kinds for missing and truncated files
        if is_lost(error):
            raise
        problem = first_line(error)
    if problem is not None:
        raise ValueError(f"checkpoint {str(path)!r}: the weights cannot be read: {problem}")


def _find_damage(folder: pathlib.Path, wanted: Any) -> None:
    """Reads weights one by one up to one that cannot be read, whose error says which file it is."""
    for where, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        read_weight(folder / PARAMS_FOLDER, [step.key for step in where], leaf.dtype)


def _compare(wanted: Any, stored: Any) -> None:
    """Names the weights that are not as the config describes; to restore them anyway would fail noisily."""
    ours, theirs = (
        {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (wanted, stored)
    )
    problems = [f"{name} is missing" for name in ours if name not in theirs]
    problems += [f"{name} is not in the config's model" for name in theirs if name not in ours]
    problems += [
        f"{name} is {list(theirs[name])}; it must be {list(shape)}"
        for name, shape in ours.items()
        if theirs.get(name, shape) != shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError("; ".join(problems[:5]) + more)


def load_onto(mesh: Mesh | None, checkpoint: str, dtype: str | None = None) -> tuple[Config, Params]:
    """Loads a checkpoint onto a mesh as `shardings` lays it out, or onto one device where there is none.

    Raises:
      ValueError: as `load` and `shardings`.
    """
    if mesh is None:
        return load(checkpoint, dtype=dtype)
    places = shardings(read_config(checkpoint, dtype=dtype), Full(), mesh)  # weights lie the same for every policy
    return load(checkpoint, dtype=dtype, sharding=places.params)
