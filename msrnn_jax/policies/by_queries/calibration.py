"""Means of queries, measured beforehand, as a file."""

import functools
import os

import numpy as np

from msrnn_jax.state import LayerInfo


def read_calibration(path: str, info: LayerInfo) -> dict[str, np.ndarray]:
    """A layer's part of a file that `msrnn calibrate` wrote.

    Returns:
      `count`, 1 for every row; `mean` [N, H] of queries before rotation; `size` [N, R] of the lengths of their pairs.

    Raises:
      ValueError: where it cannot be read, or belongs to a model of other shapes.
    """
    try:
        about = os.stat(path)
        arrays = _load(path, about.st_mtime_ns, about.st_size)
    except Exception as error:  # safetensors raises its own
        raise ValueError(f"calibration {path!r} cannot be read: {error}") from None
    config = info.config
    wanted = {
        "mean": (config.num_layers, config.num_heads, config.head_dim),
        "size": (config.num_layers, config.num_heads, config.head_dim // 2),
    }
    for name, shape in wanted.items():
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            raise ValueError(f"calibration {path!r} has {name} of shape {found}; for this model it must be {shape}")
    return {name: arrays[name][info.index] for name in wanted} | {"count": np.ones(info.rows)}


@functools.lru_cache(maxsize=8)
def _load(path: str, changed: int, size: int) -> dict[str, np.ndarray]:
    import safetensors.numpy

    del changed, size
    return safetensors.numpy.load_file(path)
