"""Writing a checkpoint: the whole folder appears at once, or nothing does."""

import os
import pathlib
from collections.abc import Callable, Mapping

import jax

from msrnn_jax.checkpoint.layout import CONFIG_FILE, PARAMS_FOLDER, is_checkpoint
from msrnn_jax.checkpoint.orbax import lazy, to_tree, write_weights
from msrnn_jax.config import Config
from msrnn_jax.io.folders import FolderKind, atomic_folder, check_and_recover, check_space
from msrnn_jax.io.units import tree_bytes
from msrnn_jax.params import Params, shapes_by_head
from msrnn_jax.recurrence.checks import check_params


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
      params: arrays of the shapes and dtype of the config, or `LazyArray` ones, of which one is in memory at a time.
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
    check_and_recover(path, CHECKPOINT, overwrite)
    check_params(config, params, dtypes=True)
    for name in files or {}:
        if not name or pathlib.PurePath(name).name != name or name in (PARAMS_FOLDER, CONFIG_FILE):
            raise ValueError(f"file name {name!r} must be a plain name, and neither {PARAMS_FOLDER} nor {CONFIG_FILE}")
    texts = {CONFIG_FILE: config.to_json(), **(files or {})}
    check_space(path, tree_bytes(params) + sum(map(len, texts.values())))
    with atomic_folder(path, CHECKPOINT, overwrite) as folder:
        by_head = jax.tree.map(lambda leaf, shape: lazy(leaf).reshape(shape), params, shapes_by_head(config, params))
        write_weights(folder / PARAMS_FOLDER, to_tree(by_head))
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        if inspect is not None:
            inspect(folder)


def _check_for_orbax(path: pathlib.Path) -> None:
    """Refuses paths in which Orbax sees a pattern or another machine, and loses what it writes."""
    odd = [text for text in ("[", "]", "*", "?", "\\", "gs:", "s3:") if text in str(path)]
    if odd:
        raise ValueError(f"{str(path)!r} has {odd[0]!r} in it, which Orbax cannot write; choose another path")


CHECKPOINT = FolderKind("checkpoint of msrnn_jax", is_checkpoint, _check_for_orbax)
