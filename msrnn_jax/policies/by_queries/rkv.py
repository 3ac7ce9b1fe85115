"""Importance less redundancy."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.policies.base import Score
from msrnn_jax.policies.by_queries.snapkvd import SnapKVD
from msrnn_jax.policies.scoring import by_heads, by_rows, einsum, held_slots, mean_of, softmax_over, units
from msrnn_jax.state import EMPTY, LayerState

ALIKE = 0.5  # keys of a larger cosine are taken for each other


class RKV(SnapKVD):
    r"""Keeps what the window attends to and no other key is like (R-KV).

    Its score is $\lambda I_j - (1 - \lambda) R_j$. I is SnapKV-D's score. R is the softmax over all tokens of the mean
    cosine of their keys with those of all others, where each key leaves out the newest of those that are like it. Cai
    et al., R-KV: Redundancy-aware KV Cache Compression for Reasoning Models, 2025 (arXiv:2505.24133). `mix` is λ, 0.07
    in their code and 0.1 in the paper. A key that is like no other leaves out the oldest token, as their code does.
    """

    mix: float = struct.field(pytree_node=False, default=0.07)

    def __post_init__(self):
        super().__post_init__()
        self.require("mix", 0 <= self.mix <= 1, "from 0 to 1")

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        redundancy = jax.vmap(_redundancy)(layer.keys, by_heads(layer, layer.positions), held_slots(layer))
        scores = self.mix * self.importance(layer, t) - (1 - self.mix) * redundancy
        return by_rows(self, jnp.where(self.distant(layer, t), scores, 0))


def _redundancy(keys: Float[Array, "S H"], positions: Int[Array, " S"], held: Array) -> Float[Array, " S"]:
    keys = jnp.where(held[:, None], units(keys), 0)
    cosines = einsum("ih,jh->ij", keys, keys) * (1 - jnp.eye(len(keys), dtype=keys.dtype))
    newest = jnp.max(
        jnp.where((cosines > ALIKE) & held[None], positions[None], EMPTY), axis=1
    )  # [S], of each key's likes
    oldest = jnp.min(jnp.where(held, positions, jnp.iinfo(jnp.int32).max))
    left_out = jnp.where(newest == EMPTY, oldest, newest)
    cosines = jnp.where(positions[None] == left_out[:, None], 0, cosines)
    return softmax_over(mean_of(cosines, held[:, None], axis=0), held)
