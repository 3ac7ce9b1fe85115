"""Leverage of keys and values."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score, is_size
from msrnn_jax.policies.scoring import by_heads, by_rows, held_slots, in_order, norms
from msrnn_jax.state import LayerState


class CUR(Policy):
    r"""Keeps tokens whose key and value are long beside their neighbours': approximate leverage scores.

    $\|k_j\|^2 \|v_j\|^2$, each divided by its sum over a block of `window` held tokens, by position.
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
        held = held_slots(layer)
        order = in_order(by_heads(layer, layer.positions), held)  # [K, S]
        lacks = -order.shape[1] % self.window  # of the last block

        def share(leaf: Array) -> Array:
            square = jnp.where(held, jnp.square(norms(leaf)), 0)
            line = jnp.pad(jnp.take_along_axis(square, order, axis=1), ((0, 0), (0, lacks)))
            blocks = line.reshape(len(line), -1, self.window)
            total = blocks.sum(axis=2, keepdims=True)
            return (blocks / jnp.maximum(total, jnp.finfo(square.dtype).tiny)).reshape(line.shape)

        line = (share(layer.keys) * share(layer.values))[:, : order.shape[1]]
        return by_rows(self, jnp.take_along_axis(line, jnp.argsort(order, axis=1), axis=1))
