"""Leverage of keys and values."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score, is_size
from msrnn_jax.policies.scoring import by_heads, by_rows, einsum, held_slots, norms
from msrnn_jax.state import LayerState


class CUR(Policy):
    r"""Keeps tokens whose key and value are long beside their neighbours': approximate leverage scores.

    $\|k_j\|^2 \|v_j\|^2$, each divided by its sum over the held tokens of the same `window` positions of the text.
    Sengupta et al., Value-Guided KV Compression for LLMs via Approximated CUR Decomposition, 2025 (arXiv:2509.15038).
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    sinks: int = struct.field(pytree_node=False, default=4, kw_only=True)
    window: int = struct.field(pytree_node=False, default=16)

    def __post_init__(self):
        super().__post_init__()
        self.require("window", is_size(self.window, 1), "an integer of at least 1")

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        block = by_heads(layer, layer.positions // self.window)  # [K, S]
        beside = (block[:, :, None] == block[:, None, :]) & held_slots(layer)[:, None, :]  # [K, S, S]

        def share(leaf: Array) -> Array:
            square = jnp.where(held_slots(layer), jnp.square(norms(leaf)), 0)
            total = einsum("kij,kj->ki", beside.astype(square.dtype), square)
            return square / jnp.maximum(total, jnp.finfo(square.dtype).tiny)

        return by_rows(self, share(layer.keys) * share(layer.values))
