"""Robust cache omission: mean attention, but for tokens whose attention varies."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score, Stats, share_of
from msrnn_jax.state import EMPTY, LayerState, View


class RoCo(Policy):
    """Forgets the token of the smallest mean attention, but none whose attention varies most.

    $m_j$ and $s_j$ are mean and standard deviation of the attention that j received from every token since it came.
    The `budget - share * budget - sinks` unprotected tokens of smallest $s_j$ may go. Among them, the one of smallest
    $m_j$ goes. Ren and Zhu, On the Efficacy of Eviction Policy for Key-Value Constrained Generative Language Model
    Inference, 2024 (arXiv:2402.06262). Their code works by query head; here the heads of a group are averaged.
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    recent: int | float | None = struct.field(pytree_node=False, default=10, kw_only=True)
    share: float = struct.field(pytree_node=False, default=0.3)

    def __post_init__(self):
        super().__post_init__()
        self.require("share", 0 <= self.share < 1, "from 0 to less than 1")

    def init(self, rows: int, slots: int) -> Stats:
        return {"sum": jnp.zeros((rows, slots)), "square": jnp.zeros((rows, slots))}

    def observe(self, stats: Stats, view: View) -> Stats:
        mass = view.probs.mean(axis=1) if self.scope == "head" else view.probs.mean(axis=(0, 1))[None]
        mass = mass.astype(stats["sum"].dtype)
        return {"sum": stats["sum"] + mass, "square": stats["square"] + mass**2}

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        count = (t - layer.positions).astype(layer.stats["sum"].dtype)
        mean = layer.stats["sum"] / count
        deviation = jnp.sqrt(jnp.maximum(layer.stats["square"] / count - mean**2, 0))
        eligible = (layer.positions != EMPTY) & ~self.protected(layer, t)
        order = jnp.lexsort((layer.positions, deviation, ~eligible), axis=1)
        rank = jnp.argsort(order, axis=1).astype(jnp.int32)
        budget = layer.row_budgets
        spared = share_of(budget, self.share)
        feasible = eligible & (rank < jnp.maximum(budget - spared - self.sinks, self.every))
        return jnp.where(feasible, mean, jnp.inf)
