"""What the newest queries attend to, averaged."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Score
from msrnn_jax.policies.by_queries.window import ODD, ObservationWindow, is_odd
from msrnn_jax.policies.scoring import by_heads, by_rows, mean_of, neighbours, softmax_over
from msrnn_jax.state import LayerState


class SnapKV(ObservationWindow):
    """Keeps what the window's queries attend to, mean over queries and heads, pooled over neighbours.

    Attention of the last `recent` tokens to all before them, average pooling over `kernel` tokens, the window kept.
    Li et al., SnapKV: LLM Knows What You are Looking for Before Generation, 2024 (arXiv:2404.14469). It cuts a prompt
    once, so it goes with the prompt mode "oneshot"; for cutting on and on see `SnapKVD`. The mean over the heads of a
    group is kvpress's.
    """

    recent: int | float | None = struct.field(pytree_node=False, default=64, kw_only=True)
    kernel: int = struct.field(pytree_node=False, default=5)

    def __post_init__(self):
        super().__post_init__()
        self.require("kernel", is_odd(self.kernel), ODD)

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        logits, born, known = self.window(layer, t)
        probs = softmax_over(logits, self.seen(layer, born))  # [K, W, G, S]
        attended = mean_of(probs.mean(axis=2), known[None, :, None], axis=1)  # [K, S]
        distant, positions = self.distant(layer, t), by_heads(layer, layer.positions)
        pooled = neighbours(attended, distant, positions, self.kernel, 0.0).mean(axis=0)
        return by_rows(self, jnp.where(distant, pooled, 0))
