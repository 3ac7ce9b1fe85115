"""SnapKV for cutting again and again."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.policies.base import Score
from msrnn_jax.policies.by_queries.window import ODD, ObservationWindow, is_odd
from msrnn_jax.policies.scoring import by_heads, by_rows, mean_of, neighbours, softmax_over
from msrnn_jax.state import LayerState


class SnapKVD(ObservationWindow):
    """SnapKV while decoding (SnapKV-D): every 128 tokens, by the last 8 queries.

    The largest logit of a group's heads, softmax over what is older than the window, mean over its queries, maximum
    over `kernel` neighbours. A baseline of Cai et al., R-KV, 2025 (arXiv:2505.24133), whose code this follows.
    """

    every: int = struct.field(pytree_node=False, default=128, kw_only=True)
    kernel: int = struct.field(pytree_node=False, default=7)

    def __post_init__(self):
        super().__post_init__()
        self.require("kernel", is_odd(self.kernel), ODD)

    def importance(self, layer: LayerState, t: Int[Array, ""]) -> Float[Array, "K S"]:
        """What the window attends to; 0 for what is not distant."""
        logits, _, known = self.window(layer, t)
        distant = self.distant(layer, t)
        probs = softmax_over(logits.max(axis=2), distant[:, None])  # [K, W, S]
        attended = mean_of(probs, known[None, :, None], axis=1)  # [K, S]
        pooled = neighbours(attended, distant, by_heads(layer, layer.positions), self.kernel, 0.0).max(axis=0)
        return jnp.where(distant, pooled, 0)

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        return by_rows(self, self.importance(layer, t))
