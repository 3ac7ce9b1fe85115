"""Keys unlike the others."""

from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score
from msrnn_jax.policies.scoring import by_rows, einsum, held_slots, mean_of, units
from msrnn_jax.state import LayerState


class KeyDiff(Policy):
    r"""Forgets the token whose key is most like the mean of all.

    Its score is $-\cos(k_j, \bar k)$, with $\bar k$ the mean direction. Park et al., KeyDiff: Key Similarity-Based KV
    Cache Eviction for Long-Context LLM Inference in Resource-Constrained Environments, 2025 (arXiv:2504.15364), which
    cuts blocks of 128 tokens.
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    every: int = struct.field(pytree_node=False, default=128, kw_only=True)

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        keys = units(layer.keys)  # [K, S, H]
        anchor = mean_of(keys, held_slots(layer)[..., None], axis=1)  # [K, H]
        return by_rows(self, -einsum("ksh,kh->ks", keys, units(anchor)))
