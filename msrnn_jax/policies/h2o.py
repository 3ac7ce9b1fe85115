"""The Heavy-Hitter Oracle."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score, Stats
from msrnn_jax.state import LayerState, View


class H2O(Policy):
    """Keeps the `recent` newest tokens and those most attended to so far.

    The score is the sum over time of the attention a token received, its own step included, over the
    query heads that share its slot. Zhang et al., H2O: Heavy-Hitter Oracle, 2023 (arXiv:2306.14048).
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    recent: int | None = struct.field(pytree_node=False, default=None, kw_only=True)  # None: half the budget

    def init(self, rows: int, slots: int) -> Stats:
        return jnp.zeros((rows, slots))

    def observe(self, stats: Stats, view: View) -> Stats:
        mass = view.probs.sum(axis=1) if self.scope == "head" else view.probs.sum(axis=(0, 1))[None]
        return stats + mass.astype(stats.dtype)

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        return layer.stats
