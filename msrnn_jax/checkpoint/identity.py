"""Hashes that tell models apart: of their weights, and of how they compute."""

from typing import Any

import jax
import numpy as np

from msrnn_jax.config import Config
from msrnn_jax.io.provenance import json_hash
from msrnn_jax.params import Params, shapes_by_head


def config_hash(config: Config) -> str:
    """16 hex digits of how a model computes: its config, but for the dtype, which the weights have."""
    return json_hash({**config.to_dict(), "dtype": None})


def fingerprint(config: Config, params: Params) -> str:
    """The first 16 hex digits of the SHA-256 of all weights, in the order of their names."""
    import hashlib

    digest = hashlib.sha256()

    def add(leaf: Any, shape: tuple[int, ...]) -> None:
        digest.update(f"{leaf.dtype}{shape}".encode())
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # parts are with other processes
            from jax.experimental import multihost_utils

            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(np.asarray(leaf).tobytes())

    jax.tree.map(add, params, shapes_by_head(config, params))
    return digest.hexdigest()[:16]
