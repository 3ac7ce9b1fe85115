"""Token Omission Via Attention, the paper's policy."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score, Stats
from msrnn_jax.state import LayerState, View


class TOVA(Policy):
    r"""Forgets the token the newest query attends to least, averaged over heads.

    Its score is $\frac{1}{N} \sum_n a_{n,j}$. The newest token itself may go. Oren et al., Transformers are Multi-State
    RNNs, 2024 (arXiv:2401.06104).
    """

    def init(self, rows: int, slots: int) -> Stats:
        return jnp.zeros((rows, slots))

    def observe(self, stats: Stats, view: View) -> Stats:
        del stats
        return view.probs.mean(axis=1) if self.scope == "head" else view.probs.mean(axis=(0, 1))[None]

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        return layer.stats
