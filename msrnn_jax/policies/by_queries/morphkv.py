"""What any of the recent queries attends to."""

from typing import ClassVar

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Score
from msrnn_jax.policies.by_queries.window import ObservationWindow
from msrnn_jax.policies.scoring import by_rows, softmax_over
from msrnn_jax.state import LayerState

FUSIONS = ("max", "sum")


class MorphKV(ObservationWindow):
    """Keeps what the recent tokens' queries attend to, the current one left out, fused by maximum or sum.

    For each of the `recent` queries before the current one, softmax over what is older than the window of the logits
    summed over a group's heads. The current token is kept beside the window. Ghadia et al., Dialogue Without Limits:
    Constant-Sized KV Caches for Extended Responses in LLMs, 2025 (arXiv:2503.00979). Their example has a window of 200
    in 4,000; 32 is ours.
    """

    recent: int | float | None = struct.field(pytree_node=False, default=32, kw_only=True)
    fuse: str = struct.field(pytree_node=False, default="max")

    lag: ClassVar[int] = 1

    def __post_init__(self):
        super().__post_init__()
        self.require("fuse", self.fuse in FUSIONS, f"one of {', '.join(FUSIONS)}")

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        logits, _, known = self.window(layer, t)
        probs = softmax_over(logits.sum(axis=2), self.distant(layer, t)[:, None])  # [K, W, S]
        probs = jnp.where(known[None, :, None], probs, 0)
        return by_rows(self, probs.max(axis=1) if self.fuse == "max" else probs.sum(axis=1))
