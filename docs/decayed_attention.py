"""A policy of one's own, between TOVA and H2O: attention received, of which the past counts ever less."""

import jax.numpy as jnp
from flax import struct

import msrnn_jax as ms


class DecayedAttention(ms.Policy):
    """Forgets the token that was attended to least of late.

    The score of token j after time t is the sum over s = j .. t of decay^(t - s) a(s, j), where a(s, j) is the
    attention that the query of time s paid to j, mean over the query heads that share its slot. decay=0 is TOVA,
    decay=1 the sum of H2O. Jo and Shin, A2SF: Accumulative Attention Scoring with Forgetting Factor for Token
    Pruning in Transformer Decoder, 2024 (arXiv:2407.20485).
    """

    decay: float = struct.field(pytree_node=False, default=0.9)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.decay <= 1:
            raise ValueError(f"DecayedAttention: decay is {self.decay!r}; it must be from 0 to 1")

    def init(self, rows, slots):
        return jnp.zeros((rows, slots))

    def observe(self, stats, view):
        received = view.probs.mean(axis=1)  # [K, S], over the query heads of each KV head
        if self.scope == "layer":
            received = received.mean(axis=0)[None]  # [1, S]
        return self.decay * stats + received.astype(stats.dtype)

    def score(self, layer, t):
        return layer.stats
