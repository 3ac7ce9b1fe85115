"""Mean queries of a model, for policies that expect what is to come."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from msrnn_jax.checkpoint.identity import fingerprint
from msrnn_jax.config import Config
from msrnn_jax.io.atomic import check_writable, write_bytes
from msrnn_jax.model.extend import scan_chunks
from msrnn_jax.params import Params
from msrnn_jax.policies.by_queries.triattention import TriAttention
from msrnn_jax.recurrence.slots import init_state

WATCHING = TriAttention(prompt=False, every=1)  # whose statistics of rows are the sums that are asked for


def calibrate(
    config: Config,
    params: Params,
    segments: Iterable[Int[np.ndarray, " T"]],
    report: Callable[[int], None] = lambda tokens: None,
) -> dict[str, np.ndarray]:
    """Reads segments with full attention, each from an empty state, and averages their queries before rotation.

    Args:
      segments: of one length, so that one program reads all.
      report: called with how many tokens were read.

    Returns:
      `mean` [L, N, H] of queries, `size` [L, N, H / 2] of the lengths of their pairs, and `tokens`, how many were read.

    Raises:
      ValueError: where there is nothing to read.
    """
    sums, tokens = None, 0
    for segment in segments:
        found = jax.device_get(_read(config, params, jnp.asarray(segment, jnp.int32)))
        sums = found if sums is None else jax.tree.map(np.add, sums, found)
        tokens += len(segment)
        report(tokens)
    if sums is None:
        raise ValueError("there is no segment to calibrate on; give more text, or shorter segments")
    means = {name: (leaf / tokens).astype(np.float32) for name, leaf in sums.items()}
    return {**means, "tokens": np.asarray(tokens)}


@jax.jit
def _read(config: Config, params: Params, tokens: Int[jax.Array, " T"]) -> dict[str, Float[jax.Array, "L N X"]]:
    """Sums over the tokens of one segment."""
    state = init_state(config, WATCHING, tokens.shape[0])
    state, _, _ = scan_chunks(config, WATCHING, params, state, tokens, None, None)
    return {
        name: jnp.stack([layer.row_stats[name].reshape(config.num_heads, -1) for layer in state.layers])
        for name in ("mean", "size")
    }


def save_calibration(
    path: str | os.PathLike[str], config: Config, params: Params, found: dict[str, np.ndarray], **about: Any
) -> None:
    """Writes what `calibrate` returned, atomically; `about` is text that is kept with it.

    Raises:
      ValueError: for a path that cannot be written.
    """
    import safetensors.numpy

    check_writable("calibration", path)
    header = {"format": "msrnn_jax calibration 1", "model": fingerprint(config, params), **about}
    write_bytes(path, safetensors.numpy.save({name: np.asarray(leaf) for name, leaf in found.items()}, header))
