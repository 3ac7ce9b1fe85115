"""Our checkpoint on disk: a folder with config.json, the weights by Orbax, and text files beside them."""

import contextlib
import gc
import inspect
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msrnn_jax.checks import check_dtype, check_params
from msrnn_jax.config import Config
from msrnn_jax.params import Params, abstract_params
from msrnn_jax.record import folder_above, try_folder

CONFIG_FILE = "config.json"
PARAMS_FOLDER = "params"


def save(
    path: str | os.PathLike[str],
    config: Config,
    params: Params,
    *,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint atomically: the whole folder appears at once, or nothing does.

    Args:
      path: the folder to make; its parents are made too.
      params: arrays of the shapes and dtype of the config.
      files: texts to put beside the weights, by plain file name (tokenizer, chat template).
      overwrite: replace the checkpoint that is there; else an existing path is refused. Between the two
        renames that this takes there is a moment without either, and a process killed just then leaves the
        old one in a hidden folder beside it.

    Raises:
      ValueError: for an existing path (with `overwrite`, one that is no checkpoint), params that do not fit
        the config, a file name with a folder in it.
    """
    path = pathlib.Path(path).absolute()
    check_destination(path, overwrite)
    check_params(config, params, dtypes=True)
    for name in files or {}:
        if not name or pathlib.PurePath(name).name != name or name in (PARAMS_FOLDER, CONFIG_FILE):
            raise ValueError(f"file name {name!r} must be a plain name, and neither {PARAMS_FOLDER} nor {CONFIG_FILE}")
    texts = {CONFIG_FILE: config.to_json(), **(files or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    with _folder_in_the_making(path) as folder:
        with _orbax() as orbax:
            orbax.save(folder / PARAMS_FOLDER, _to_tree(params))
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")


def check_destination(path: pathlib.Path, overwrite: bool) -> None:
    """Refuses to write over anything but a checkpoint of ours or an empty folder, and that unless asked to."""
    parent = folder_above(path)
    try:
        try_folder(parent)
    except OSError:
        raise ValueError(f"{str(path)!r} cannot be made: {str(parent)!r} is no folder that can be written to") from None
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise ValueError(f"{str(path)!r} exists already; choose another path or overwrite it (--force, overwrite=True)")
    ours = (path / CONFIG_FILE).is_file() and (path / PARAMS_FOLDER).is_dir()
    if path.is_symlink() or not path.is_dir() or not (ours or not any(path.iterdir())):
        raise ValueError(f"{str(path)!r} exists and is no checkpoint of msrnn_jax, so it is not replaced")


def load(path: str | os.PathLike[str], *, dtype: str | None = None) -> tuple[Config, Params]:
    """Reads a checkpoint.

    Args:
      path: a folder written by `save` or `python -m convert`.
      dtype: cast the weights to it; by default they stay as they are.

    Returns:
      The config, its dtype that of the weights, and the weights.

    Raises:
      ValueError: where the folder is missing, incomplete or damaged, naming what is wrong.
    """
    folder = existing(path)
    config = _read_config(folder, dtype)
    # Restored to the host and from there to the default device: arrays that Orbax puts on a device are committed
    # to it, so that the first step's state, which is not, and the second's, which is, would be compiled for apart.
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host), _to_tree(abstract_params(config))
    )
    tree, problem = None, ""
    try:
        with _orbax() as orbax:
            _compare(wanted, orbax.metadata(folder / PARAMS_FOLDER).item_metadata)
            tree = orbax.restore(folder / PARAMS_FOLDER, wanted)
    except Exception as error:  # Orbax and TensorStore raise many kinds for missing and truncated files
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if tree is None:
        _drop_unfinished_reads()
        raise ValueError(f"checkpoint {str(path)!r}: the weights cannot be read: {problem}")
    return config, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), _from_tree(config, tree))


def _drop_unfinished_reads() -> None:
    """Collects the coroutines of a failed read quietly, now and later: each would print a traceback."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if inspect.iscoroutine(lost.object) else hook(lost)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
        time.sleep(0.2)  # for the callbacks of reads that were under way


def _compare(wanted: Any, stored: Any) -> None:
    """Names the weights that are not as the config describes; to restore them anyway would fail noisily."""
    ours, theirs = (
        {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (wanted, dict(stored))
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
    if not (folder / CONFIG_FILE).is_file() or not (folder / PARAMS_FOLDER).is_dir():
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
    return _read_config(existing(path), dtype)


def _read_config(folder: pathlib.Path, dtype: str | None) -> Config:
    try:
        config = Config.from_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{str(folder / CONFIG_FILE)!r} cannot be used: {error}") from error
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
    inside = folder.resolve()
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            target = pathlib.Path(place, name).resolve()
            if not target.is_relative_to(inside):
                raise ValueError(f"{str(pathlib.Path(place, name))!r} leads out of the checkpoint's folder")


@contextlib.contextmanager
def _folder_in_the_making(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `path` that becomes it at the end, or leaves no trace."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        folder.chmod(0o755)  # mkdtemp keeps it to its owner
        yield folder
        _replace(folder, path)
    finally:
        _remove(folder)


def _remove(folder: pathlib.Path) -> None:
    """Removes a folder, also while threads of a failed save still write into it."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _replace(new: pathlib.Path, path: pathlib.Path) -> None:
    if not os.path.lexists(path):
        new.rename(path)
        return
    old = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        path.rename(old / path.name)
        try:
            new.rename(path)
        except BaseException:
            (old / path.name).rename(path)
            raise
    finally:
        _remove(old)


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    import orbax.checkpoint  # slow to import, and only files need it

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # it tells every file, and every failure twice
    checkpointer = orbax.checkpoint.StandardCheckpointer()
    try:
        yield checkpointer
        checkpointer.wait_until_finished()
    finally:
        checkpointer.close()
        logger.setLevel(level)


def fingerprint(params: Params) -> str:
    """The first 16 hex digits of the SHA-256 of all weights, in the order of their names."""
    import hashlib

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(jnp.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
