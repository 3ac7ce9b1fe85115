"""The perplexity of segments under many budgets, from batches of rows."""

from collections.abc import Sequence

import numpy as np

import msrnn_jax as ms
from msrnn_jax.evaluation.summary import Perplexity, perplexity_of
from msrnn_jax.evaluation.sweep import cut_batches, fill_batch, read_rows, rows_of


def sweep(
    config: ms.Config,
    policy: ms.Policy,
    params: ms.Params,
    segments: np.ndarray,
    lengths: np.ndarray,
    budgets: Sequence[int],
    *,
    batch: int = 4,
) -> list[Perplexity]:
    """One result for every budget; the last batch is filled up and the filling thrown away."""
    losses = []
    for rows in cut_batches(rows_of(budgets, range(len(segments))), batch):
        filled = fill_batch(rows, min(batch, len(budgets) * len(segments)))
        kept = read_rows(config, policy, params, segments, lengths, filled, slots=max(budgets) + 1)
        losses.extend(kept["nats"][: len(rows)])
    table = np.asarray(losses).reshape(len(budgets), len(segments), -1)
    return [perplexity(some, lengths - 1) for some in table]


def perplexity(losses: np.ndarray, counts: np.ndarray) -> Perplexity:
    """From the losses of every token [B, T], 0 at padding."""
    return perplexity_of(np.asarray(losses, np.float64).sum(axis=1), counts)
