"""Our checkpoint on disk: a folder with config.json, the weights by Orbax, and text files beside them."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msrnn_jax.checks import check_dtype, check_params
from msrnn_jax.config import Config
from msrnn_jax.making import Kind, check_space, making, prepare
from msrnn_jax.params import Params, abstract_params
from msrnn_jax.policies.text import first_line
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
    wanted = _to_tree(_with_sharding(abstract_params(config), host if sharding is None else sharding))
    with _weights_of(path, folder, wanted):
        try:
            leaves, tree = jax.tree.flatten(read_weights(folder / PARAMS_FOLDER, wanted))
        except Exception:
            _find_damage(folder, wanted)  # Orbax does not say where it is
            raise
    if sharding is None:
        for index, leaf in enumerate(leaves):  # one by one, so that there are not two of all
            leaves[index] = jnp.asarray(np.asarray(leaf))
    return config, _from_tree(config, jax.tree.unflatten(tree, leaves))


def load_deferred(path: str | os.PathLike[str]) -> tuple[Config, Params]:
    """`load`, with weights that are read one by one, to numpy arrays, when their `read` is called."""
    folder = existing(path)
    config = _read_config(folder)  # of a dtype that JAX may not hold
    wanted = _to_tree(abstract_params(config))
    with _weights_of(path, folder, wanted):
        pass

    def deferred(where: Any, leaf: Any) -> Deferred:
        def read() -> np.ndarray:
            with _weights_of(path, folder):
                return read_weight(folder / PARAMS_FOLDER, [step.key for step in where], leaf.dtype)

        return Deferred(leaf.shape, leaf.dtype, read)

    return config, _from_tree(config, jax.tree_util.tree_map_with_path(deferred, wanted))


def _with_sharding(shapes: Params, sharding: Any) -> Params:
    try:
        spread = jax.tree.broadcast(sharding, shapes)
    except ValueError as error:
        raise ValueError(f"sharding is no tree shaped like the params: {first_line(error)}") from None

    def place(where: Any, leaf: jax.ShapeDtypeStruct, place: Any) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(where)
        if not isinstance(place, jax.sharding.Sharding):
            raise ValueError(f"sharding of params{name} is {place!r}; it must be a jax.sharding.Sharding")
        try:
            place.shard_shape(leaf.shape)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        except (ValueError, TypeError) as error:
            raise ValueError(f"sharding of params{name} {list(leaf.shape)} does not fit: {first_line(error)}") from None

    return jax.tree_util.tree_map_with_path(place, shapes, spread)


@contextlib.contextmanager
def _weights_of(path: str | os.PathLike[str], folder: pathlib.Path, wanted: Any = None) -> Iterator[None]:
    """Names the checkpoint where its weights cannot be read, or are not the `wanted` tree."""
    problem = None
    try:
        if wanted is not None:
            _compare(wanted, stored_shapes(folder / PARAMS_FOLDER))
        yield
    except Exception as error:  # Orbax and TensorStore raise many kinds for missing and truncated files
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

    def present(node: Any, skip: str = "") -> dict[str, Any]:
        return {name: leaf for name, leaf in vars(node).items() if leaf is not None and name != skip}

    return {
        **present(params, "layers"),
        "layers": {str(index): present(layer) for index, layer in enumerate(params.layers)},
    }


def _from_tree(config: Config, tree: Mapping[str, Any]) -> Params:
    structure = abstract_params(config)
    layers = tuple(layer.replace(**tree["layers"][str(index)]) for index, layer in enumerate(structure.layers))
    return structure.replace(layers=layers, **{name: leaf for name, leaf in tree.items() if name != "layers"})


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


def fingerprint(params: Params) -> str:
    """The first 16 hex digits of the SHA-256 of all weights, in the order of their names."""
    import hashlib

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(jnp.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
