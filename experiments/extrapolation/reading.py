"""A few books read side by side, each through one state from its first token to its last."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

import msrnn_jax as ms
from experiments.common.model import Model
from msrnn_jax.evaluation.losses import read_losses
from msrnn_jax.model.extend import scan_chunks
from msrnn_jax.model.state_ops import fork
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.slots import init_state

BLOCK = 1000  # tokens whose losses are summed up, and between two chances for ctrl-C


def read_streams(
    model: Model,
    policy: Policy,
    texts: Sequence[Int[np.ndarray, " T"]],
    *,
    budget: int,
    positions: str,
    report: Callable[[int], None] = lambda tokens: None,
) -> list[dict[str, Any]]:
    """Reads texts of one length.

    Args:
      report: called with how many tokens of each have been read.

    Returns:
      For every text `nats`, sums over each block of predicted tokens, and `tokens`, how many those are.
    """
    tokens = np.stack(texts)
    rows, count = tokens.shape[0], tokens.shape[1] - 1
    whole = -(-count // BLOCK) * BLOCK
    padded = np.pad(tokens, ((0, 0), (0, whole + 1 - tokens.shape[1])))
    state = model.states(policy, fork(init_state(model.config, policy, budget, positions=positions), rows), positions)
    sums, counts = [], []
    for start in range(0, count, BLOCK):
        length = min(BLOCK, count - start)
        block = model.rows(jnp.asarray(padded[:, start : start + BLOCK + 1]))
        state, nats = _read(model.config, policy, model.params, state, block, jnp.int32(length))
        sums.append(np.asarray(nats).sum(axis=1, dtype=np.float64))
        counts.append(length)
        report(start + length)
    return [{"nats": column.tolist(), "tokens": counts} for column in np.stack(sums, axis=1)]


@partial(jax.jit, donate_argnums=3)
def _read(
    config: ms.Config,
    policy: Policy,
    params: Params,
    states: ms.MultiState,
    tokens: Int[Array, "B N"],
    length: Int[Array, ""],
) -> tuple[ms.MultiState, Float[Array, "B M"]]:
    def one(state: ms.MultiState, tokens: Array) -> tuple[ms.MultiState, Array]:
        beside = {"targets": tokens[1:]}
        state, _, kept = scan_chunks(config, policy, params, state, tokens[:-1], beside, length, reader=read_losses)
        return state, kept["nats"]

    return jax.vmap(one)(states, tokens)
