"""Lengths of keys."""

from typing import ClassVar

from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score
from msrnn_jax.policies.scoring import by_rows, norms
from msrnn_jax.state import LayerState


class Knorm(Policy):
    r"""Forgets the token of the longest key, since long keys get little attention.

    Its score is $-\|k_j\|$. Devoto et al., A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression, 2024
    (arXiv:2406.11430).
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)

    static: ClassVar[bool] = True

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        return by_rows(self, -norms(layer.keys))
