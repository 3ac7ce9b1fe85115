"""Accumulated attention that fades."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score, Stats
from msrnn_jax.state import LayerState, View


class A2SF(Policy):
    r"""Forgets the token least attended to of late: H2O's sum, but older attention counts less and less.

    $A_j \leftarrow f A_j + \sum_g a_{g,j}$ with every token, f = `decay`: 0 is TOVA, 1 is H2O. Jo and Shin, A2SF:
    Accumulative Attention Scoring with Forgetting Factor for Token Pruning in Transformer Decoder, 2024
    (arXiv:2407.20485). Their code protects 16 recent tokens and has no default for f, which is tuned; 0.5 is ours.
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    recent: int | float | None = struct.field(pytree_node=False, default=16, kw_only=True)
    decay: float = struct.field(pytree_node=False, default=0.5)

    def __post_init__(self):
        super().__post_init__()
        self.require("decay", 0 <= self.decay <= 1, "from 0 to 1")

    def init(self, rows: int, slots: int) -> Stats:
        return jnp.zeros((rows, slots))

    def observe(self, stats: Stats, view: View) -> Stats:
        mass = view.probs.sum(axis=1) if self.scope == "head" else view.probs.sum(axis=(0, 1))[None]
        return self.decay * stats + mass.astype(stats.dtype)

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        return layer.stats
