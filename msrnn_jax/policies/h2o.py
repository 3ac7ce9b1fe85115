"""The Heavy-Hitter Oracle."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score, Stats
from msrnn_jax.policies.scoring import norms
from msrnn_jax.state import EMPTY, LayerState, View


class H2O(Policy):
    r"""Keeps the `recent` newest tokens and those most attended to so far.

    The score is the sum over time of the attention a token received, its own step included, over the
    query heads that share its slot: $A_j = \sum_t \sum_g a_{g,j}$. Zhang et al., H2O: Heavy-Hitter Oracle, 2023
    (arXiv:2306.14048).

    Attributes:
      normalize: divide the sum by the number of tokens that could attend to j: old ones have no advantage.
      weigh: in place of attention its share of the output, $a_{g,j}\|v_j\|$ divided by the sum over what is held.
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    recent: int | float | None = struct.field(pytree_node=False, default=None, kw_only=True)  # None: half the budget
    normalize: bool = struct.field(pytree_node=False, default=False)
    weigh: bool = struct.field(pytree_node=False, default=False)

    def init(self, rows: int, slots: int) -> Stats:
        return jnp.zeros((rows, slots))

    def observe(self, stats: Stats, view: View) -> Stats:
        probs = view.probs
        if self.weigh:
            lengths = jnp.where(view.positions == EMPTY, 0, norms(view.values)).astype(probs.dtype)  # [K, S]
            weights = probs * lengths[:, None]
            probs = weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.finfo(probs.dtype).tiny)
        mass = probs.sum(axis=1) if self.scope == "head" else probs.sum(axis=(0, 1))[None]
        return stats + mass.astype(stats.dtype)

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        return layer.stats / (t - layer.positions).astype(layer.stats.dtype) if self.normalize else layer.stats
