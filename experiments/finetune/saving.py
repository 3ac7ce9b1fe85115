"""Training on disk: everything that the next step needs, in a folder that is whole or not there."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.finetune.training import Training
from msrnn_jax.checkpoint.orbax import read_weights, stored_shapes, write_weights
from msrnn_jax.io.errors import first_line
from msrnn_jax.io.folders import FolderKind, atomic_folder, check_space, recover
from msrnn_jax.io.units import tree_bytes

ARRAYS, ABOUT = "arrays", "training.json"


def _fits(folder: pathlib.Path) -> bool:
    return (folder / ABOUT).is_file() and (folder / ARRAYS).is_dir()


KIND = FolderKind("training that was kept", _fits)


def keep(folder: pathlib.Path, training: Training, about: Mapping[str, Any]) -> None:
    """Replaces what was kept, by Orbax.

    Args:
      about: JSON that a run which goes on must have too: settings, hashes.

    Raises:
      ValueError: where the disk has no room for it.
    """
    check_space(folder.parent, tree_bytes(training))
    with atomic_folder(folder.absolute(), KIND, overwrite=True) as new:
        write_weights(new / ARRAYS, _named(training))
        text = json.dumps({**about, "step": int(training.step)}, indent=2)
        (new / ABOUT).write_text(text + "\n", encoding="utf-8")


def about_kept(folder: pathlib.Path) -> dict[str, Any] | None:
    """What stands beside kept training, `step` among it; None where nothing was kept.

    Raises:
      ValueError: for a folder that is something else.
    """
    recover(folder.absolute())
    if not folder.exists():
        return None
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            return found
    except (OSError, ValueError, RecursionError):
        pass
    raise ValueError(f"{str(folder)!r} is no training that was kept; remove it or choose another folder")


def read_kept(folder: pathlib.Path, like: Training) -> Training:
    """What was kept, as arrays of the same shapes, dtypes and places as `like`, whose memory it takes.

    Raises:
      ValueError: where it is damaged or of another shape.
    """
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    named = _named(like)
    try:
        stored = {name: tuple(leaf.shape) for name, leaf in stored_shapes(folder / ARRAYS).items()}
        if stored.keys() != named.keys() or not all(_fits_into(stored[name], named[name].shape) for name in named):
            raise ValueError("it is of another model, optimiser or batch")
        wanted = {name: jax.ShapeDtypeStruct(stored[name], leaf.dtype, sharding=host) for name, leaf in named.items()}
        found = read_weights(folder / ARRAYS, wanted)
    except Exception as error:  # Orbax and TensorStore raise many kinds for missing and truncated files
        problem = first_line(error)
        raise ValueError(f"{str(folder)!r}: the training that was kept cannot be read: {problem}") from None
    leaves = [_placed(found.pop(name), leaf) for name, leaf in zip(wanted, jax.tree.leaves(like), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _fits_into(stored: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array has this shape, or had it when heads and their width were two neighbouring axes."""
    joined = ((*stored[:i], stored[i] * stored[i + 1], *stored[i + 2 :]) for i in range(len(stored) - 1))
    return shape in (stored, *joined)


def _placed(value: jax.Array, like: jax.Array) -> jax.Array:
    """On the devices of `like`; not committed to one where that is not, or the next step would be compiled again."""
    place = like.sharding if like.committed else None
    like.delete()
    array = np.asarray(value).reshape(like.shape)
    return jnp.asarray(array) if place is None else jax.device_put(array, place)


def _named(training: Training) -> dict[str, jax.Array]:
    """All arrays by the path to them, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(training)
    named = {jax.tree_util.keystr(path, simple=True, separator="_"): leaf for path, leaf in leaves}
    assert len(named) == len(leaves)
    return named
