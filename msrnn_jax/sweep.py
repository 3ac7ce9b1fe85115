"""Perplexity for many budgets at once: every (budget, segment) is a row of one batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from msrnn_jax.checks import whole
from msrnn_jax.config import Config
from msrnn_jax.evaluate import Perplexity, perplexity, segment_nll
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.slots import init_state


def sweep(
    config: Config,
    policy: Policy,
    params: Params,
    segments: np.ndarray,
    lengths: np.ndarray,
    budgets: Sequence[int],
    *,
    batch: int = 4,
    positions: str = "absolute",
    report: Callable[[int], None] = lambda rows: None,
) -> list[Perplexity]:
    """Measures the perplexity of the same segments under every budget.

    The weights are read once per token for `batch` rows, whatever their budgets, and one compilation
    serves them all; every row has the slots of the largest budget.

    Args:
      segments, lengths: as `segment` cuts them.
      batch: rows run at once; the last batch is filled up and the filling thrown away.
      report: called with the number of rows done after every batch.

    Raises:
      ValueError: for a budget or batch out of range, and for a policy that forgets nothing whose budget
        does not hold a segment.
    """
    check_settings(config, policy, lengths, budgets, batch=batch, positions=positions)
    number = len(segments)
    rows = [(budget, index) for budget in budgets for index in range(number)]
    losses = np.zeros((len(rows), segments.shape[1] - 1))
    slots = max(budgets) + 1
    batch = min(batch, len(rows))
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        filled = some + some[-1:] * (batch - len(some))
        index = np.asarray([row[1] for row in filled])
        budget = jnp.asarray([row[0] for row in filled], jnp.int32)
        result = _rows_nll(config, policy, params, segments[index], lengths[index], budget, slots, positions)
        losses[start : start + len(some)] = np.asarray(result)[: len(some)]
        report(start + len(some))
    return [perplexity(losses[i * number : (i + 1) * number], lengths - 1) for i in range(len(budgets))]


def check_settings(
    config: Config,
    policy: Policy,
    lengths: np.ndarray,
    budgets: Sequence[int],
    *,
    batch: int = 4,
    positions: str = "absolute",
) -> None:
    """Raises what `sweep` would, before any work and without any memory for states."""
    whole("batch", batch, 1)
    needed = int(lengths.max()) - 1
    for budget in budgets:
        jax.eval_shape(partial(init_state, config, policy, budget, positions=positions))
        if not policy.forgets and budget < needed:
            raise ValueError(f"budget is {budget}, but {policy} forgets nothing and must hold {needed} tokens")


@partial(jax.jit, static_argnames=("slots", "positions"))
def _rows_nll(
    config: Config,
    policy: Policy,
    params: Params,
    segments: Any,
    lengths: Any,
    budgets: Array,
    slots: int,
    positions: str,
) -> Array:
    one = partial(segment_nll, config, policy, params, slots=slots, positions=positions)
    return jax.vmap(one)(segments, lengths, budgets)
