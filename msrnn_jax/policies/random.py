"""Forgetting by lot, the floor every other policy should beat."""

from typing import ClassVar

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Int, UInt32

from msrnn_jax.policies.base import Policy, Score
from msrnn_jax.state import LayerState


class Random(Policy):
    """Keeps a uniform random sample of all tokens seen.

    Every token draws one number for good, a hash of (seed, row, position), and the lowest goes: reservoir
    sampling. The hash is integer arithmetic (see `hash32`), so that every backend, version and batch forgets the same
    tokens. With `scope=head`, `apart=True` and `prompt=True` it is the random policy that keeps the prompt, which
    Random Attention, 2026 (arXiv:2609.03430) finds as good as scored ones.

    Attributes:
      apart: every layer draws for itself; else all layers draw alike.
    """

    seed: int = struct.field(pytree_node=False, default=0)
    apart: bool = struct.field(pytree_node=False, default=False)

    static: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self.require("seed", isinstance(self.seed, int) and not isinstance(self.seed, bool), "an integer")

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        rows = jnp.arange(layer.num_rows, dtype=jnp.uint32)[:, None]  # [#K, 1]
        bits = layer.positions.astype(jnp.uint32) * word32(0x9E3779B1)  # [#K, S]
        own = layer.index * 0x27D4EB2F if self.apart else 0
        bits = bits + rows * word32(0x85EBCA77) + word32(self.seed * 0xC2B2AE3D + own)
        return hash32(bits)


def hash32(bits: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A hash of every number: the two-round 32-bit mixer of C. Wellons (hash-prospector, 2018)."""
    bits = (bits ^ (bits >> word32(16))) * word32(0x7FEB352D)
    bits = (bits ^ (bits >> word32(15))) * word32(0x846CA68B)
    return bits ^ (bits >> word32(16))


def word32(value: int) -> Array:
    """A number modulo 2**32, as the hash takes it."""
    return jnp.uint32(value % 2**32)
