"""Importance that is remembered from cut to cut."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Score, Stats
from msrnn_jax.policies.by_queries.window import ObservationWindow
from msrnn_jax.policies.scoring import by_rows, mean_of, softmax_over
from msrnn_jax.state import LayerState


class GKV(ObservationWindow):
    r"""Keeps what the window attends to now or attended to at earlier cuts (G-KV).

    At every cut $f_j \leftarrow \max(\alpha f_j, s_j)$, α = `decay`; s is the largest attention of a group's heads,
    mean over the window's queries, divided by its maximum. Liao et al., G-KV: Decoding-Time KV Cache Eviction with
    Global Attention, 2025 (arXiv:2512.00504), whose code this follows.
    """

    every: int = struct.field(pytree_node=False, default=128, kw_only=True)
    decay: float = struct.field(pytree_node=False, default=0.8)

    def __post_init__(self):
        super().__post_init__()
        self.require("decay", 0 <= self.decay <= 1, "from 0 to 1")

    def init(self, rows: int, slots: int) -> Stats:
        return jnp.zeros((rows, slots))

    def revise(self, layer: LayerState, t: Int[Array, ""]) -> Stats:
        logits, born, known = self.window(layer, t)
        probs = softmax_over(logits, self.seen(layer, born)).max(axis=2)  # [K, W, S]
        distant = self.distant(layer, t)
        attended = jnp.where(distant, mean_of(probs, known[None, :, None], axis=1), 0)  # [K, S]
        most = attended.max(axis=1, keepdims=True)
        now = by_rows(self, attended / jnp.maximum(most, jnp.finfo(most.dtype).tiny))
        return jnp.where(distant[: len(now)], jnp.maximum(self.decay * layer.stats, now), layer.stats)

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        return jnp.where(self.distant(layer, t)[: layer.num_rows], layer.stats, 0)
