"""Means of queries, measured beforehand, as a file."""

import numpy as np

from msrnn_jax.policies.files import read_arrays
from msrnn_jax.state import LayerInfo


def read_calibration(path: str, info: LayerInfo) -> dict[str, np.ndarray]:
    """A layer's part of a file that `msrnn calibrate` wrote.

    Returns:
      `count`, 1 for every row; `mean` [N, H] of queries before rotation; `size` [N, R] of the lengths of their pairs.

    Raises:
      ValueError: where it cannot be read, or belongs to a model of other shapes.
    """
    arrays, _ = read_arrays("calibration", path)
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
