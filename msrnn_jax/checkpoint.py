"""Our checkpoint on disk: a folder with config.json, the weights by Orbax, and text files beside them."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msrnn_jax.checks import check_dtype, check_params
from msrnn_jax.config import Config
from msrnn_jax.hosts import is_lost
from msrnn_jax.low_rank import merged
from msrnn_jax.making import Kind, check_space, making, prepare
from msrnn_jax.params import Adapter, LowRank, Params, abstract_params, is_low_rank, without_adapters
from msrnn_jax.policies.text import first_line
from msrnn_jax.record import json_hash
from msrnn_jax.sizes import tree_bytes
from msrnn_jax.weights import (
    Deferred,
    read_weight,
    read_weights,
    stored_shapes,
    write_weights,
)

CONFIG_FILE = "config.json"
PARAMS_FOLDER = "params"


def save(
    path: str | os.PathLike[str],
    config: Config,
    params: Params,
    *,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
    inspect: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Writes a checkpoint atomically: the whole folder appears at once, or nothing does.

    Args:
      path: the folder to make; its parents are made too.
      params: arrays of the shapes and dtype of the config, or `Deferred` ones, of which one is in memory at a time.
      files: texts to put beside the weights, by plain file name (tokenizer, chat template).
      overwrite: replace the checkpoint that is there; else an existing path is refused. Between the two
        renames that this takes there is a moment without either; a process killed just then leaves the
        old one to be put back by the next that writes there.
      inspect: called with the complete folder before it appears; what it raises leaves everything as it was.

    Raises:
      ValueError: for an existing path (with `overwrite`, one that is no checkpoint), params that do not fit
        the config, a file name with a folder in it, a disk without room for the weights.
    """
    path = pathlib.Path(path).absolute()
    prepare(path, CHECKPOINT, overwrite)
    check_params(config, params, dtypes=True)
    for name in files or {}:
        if not name or pathlib.PurePath(name).name != name or name in (PARAMS_FOLDER, CONFIG_FILE):
            raise ValueError(f"file name {name!r} must be a plain name, and neither {PARAMS_FOLDER} nor {CONFIG_FILE}")
    texts = {CONFIG_FILE: config.to_json(), **(files or {})}
    check_space(path, tree_bytes(params) + sum(map(len, texts.values())))
    with making(path, CHECKPOINT, overwrite) as folder:
        write_weights(folder / PARAMS_FOLDER, _to_tree(params))
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        if inspect is not None:
            inspect(folder)


def is_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a folder looks like a checkpoint of ours."""
    return (folder / CONFIG_FILE).is_file() and (folder / PARAMS_FOLDER).is_dir()


def _check_for_orbax(path: pathlib.Path) -> None:
    """Refuses paths in which Orbax sees a pattern or another machine, and loses what it writes."""
    odd = [text for text in ("[", "]", "*", "?", "\\", "gs:", "s3:") if text in str(path)]
    if odd:
        raise ValueError(
            f"{str(path)!r} has {odd[0]!r} in it, with which Orbax cannot write weights; choose another path"
        )


CHECKPOINT = Kind("checkpoint of msrnn_jax", is_checkpoint, _check_for_orbax)


def load(path: str | os.PathLike[str], *, dtype: str | None = None, sharding: Any = None) -> tuple[Config, Params]:
    """Reads a checkpoint.

    Args:
      path: a folder written by `save` or `python -m convert`.
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
    config = _with_dtype(_read_config(folder), dtype)
    # Without a sharding, restored to the host and from there to the default device: arrays that Orbax puts on a device
    # are committed to it, so that the first step's state, which is not, and the second's, which is, would be compiled
    # for apart.
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    shapes = _stored_params(path, folder, config)
    wanted = _to_tree(_with_sharding(shapes, host if sharding is None else sharding))
    with _weights_of(path):
        try:
            leaves, tree = jax.tree.flatten(read_weights(folder / PARAMS_FOLDER, wanted))
        except Exception:
            _find_damage(folder, wanted)  # Orbax does not say where it is
            raise
    if sharding is None:
        for index, leaf in enumerate(leaves):  # one by one, so that there are not two of all
            leaves[index] = jnp.asarray(np.asarray(leaf))
    return config, _from_tree(shapes, jax.tree.unflatten(tree, leaves))


def load_deferred(path: str | os.PathLike[str]) -> tuple[Config, Params]:
    """`load`, with weights that are read one by one, to numpy arrays, when their `read` is called.

    Adapters are merged into what is read.
    """
    folder = existing(path)
    config = _read_config(folder)  # of a dtype that JAX may not hold

    def read(where: Any, leaf: Any) -> np.ndarray:
        with _weights_of(path):
            return read_weight(folder / PARAMS_FOLDER, _names(where), leaf.dtype)

    def deferred(where: Any, leaf: Any) -> Deferred:
        def value() -> np.ndarray:
            parts = jax.tree_util.tree_map_with_path(lambda below, part: read((*where, *below), part), leaf)
            return merged(parts, np.tensordot) if is_low_rank(leaf) else parts

        return Deferred(leaf.shape, leaf.dtype, value)

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
        _compare(_to_tree(shapes), stored)
        check_params(config, shapes)
    return shapes


def _with_adapters(shapes: Params, stored: Mapping[str, Any]) -> Params:
    """The config's weights, low-rank ones where something is stored beside them."""

    def low_rank(where: Any, leaf: Any) -> Any:
        node: Any = stored
        for name in (*_names(where), "adapter"):
            node = node.get(name) if isinstance(node, Mapping) else None
        found = node if isinstance(node, Mapping) else {}
        halves: Any = {
            name: jax.ShapeDtypeStruct(half.shape, leaf.dtype) for name, half in found.items() if hasattr(half, "shape")
        }
        return LowRank(leaf, Adapter(**halves)) if halves.keys() == {"down", "up"} else leaf

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
        except (ValueError, TypeError) as error:
            raise ValueError(f"sharding of params{name} {list(leaf.shape)} does not fit: {first_line(error)}") from None

    return jax.tree_util.tree_map_with_path(put, shapes, spread, is_leaf=is_low_rank)


def _everywhere(sharding: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """An adapter is small: every device of its weight has all of it."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        sharding = sharding.update(spec=jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@contextlib.contextmanager
def _weights_of(path: str | os.PathLike[str]) -> Iterator[None]:
    """Names the checkpoint where its weights cannot be read."""
    problem = None
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise many kinds for missing and truncated files
        if is_lost(error):
            raise
        problem = (first_line(error) or type(error).__name__)[:300]
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


def existing(path: str | os.PathLike[str]) -> pathlib.Path:
    """The absolute folder of a checkpoint that is there."""
    folder = pathlib.Path(path).absolute()
    if not folder.exists():
        raise ValueError(f"checkpoint {str(path)!r} does not exist; `python -m convert SRC DST` makes one")
    if not is_checkpoint(folder):
        raise ValueError(
            f"{str(path)!r} is not a checkpoint of this project: it needs {CONFIG_FILE} and {PARAMS_FOLDER}/; "
            "`python -m convert SRC DST` makes one"
        )
    _stay_inside(folder)
    return folder


def read_config(path: str | os.PathLike[str], *, dtype: str | None = None) -> Config:
    """Reads the config of a checkpoint and nothing of its weights.

    Args:
      dtype: put into the config; by default it is that of the weights.

    Raises:
      ValueError: where the folder is no checkpoint, or its config is damaged.
    """
    return _with_dtype(_read_config(existing(path)), dtype)


def _read_config(folder: pathlib.Path) -> Config:
    try:
        return Config.from_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{str(folder / CONFIG_FILE)!r} cannot be used: {error}") from error


def _with_dtype(config: Config, dtype: str | None) -> Config:
    return config.replace(dtype=check_dtype(config.dtype if dtype is None else dtype).name)


def _to_tree(params: Params) -> dict[str, Any]:
    """Nested dicts with plain names, so that other programs can read the checkpoint without our classes."""
    tree: dict[str, Any] = {}
    for where, leaf in jax.tree_util.tree_leaves_with_path(params):
        node, (*above, name) = tree, _names(where)
        for step in above:
            node = node.setdefault(step, {})
        node[name] = leaf
    return tree


def _from_tree(shapes: Params, tree: Mapping[str, Any]) -> Params:
    def found(where: Any, leaf: Any) -> Any:
        del leaf
        return functools.reduce(lambda node, name: node[name], _names(where), tree)

    return jax.tree_util.tree_map_with_path(found, shapes)


def _names(where: Sequence[Any]) -> list[str]:
    """What a place in the params is called on disk, such as layers, 0, query."""
    return [str(step.idx) if isinstance(step, jax.tree_util.SequenceKey) else step.name for step in where]


def _stay_inside(folder: pathlib.Path) -> None:
    """Refuses links that lead out of the checkpoint's folder."""
    inside = os.path.realpath(folder)
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = pathlib.Path(place, name)
            target = pathlib.Path(os.path.realpath(path))
            if not target.is_relative_to(inside):
                raise ValueError(f"{str(path)!r} leads out of the checkpoint's folder")
            if not target.is_dir() and not target.is_file():  # to read from a pipe or a device may never end
                raise ValueError(f"{str(path)!r} is neither a file nor a folder")


def config_hash(config: Config) -> str:
    """16 hex digits of how a model computes: its config, but for the dtype, which the weights have."""
    return json_hash({**config.to_dict(), "dtype": None})


def fingerprint(params: Params) -> str:
    """The first 16 hex digits of the SHA-256 of all weights, in the order of their names."""
    import hashlib

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # parts are with other processes
            from jax.experimental import multihost_utils

            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
