"""The observation window: the queries of the newest tokens, kept by every row."""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from msrnn_jax.policies.base import Policy, RowStats, is_size
from msrnn_jax.policies.scoring import by_heads, einsum
from msrnn_jax.state import EMPTY, LayerInfo, LayerState, View

ODD = "an odd integer of at least 1"  # what the width of pooling must be


def is_odd(kernel: int) -> bool:
    """Whether it has a middle."""
    return is_size(kernel, 1) and kernel % 2 == 1


class ObservationWindow(Policy):
    """Keeps the queries of the newest `recent` tokens, for subclasses that score by what these attend to.

    The window is protected, and newer tokens that are left out of it; what is older is distant. In the position modes
    "cache" and "gap" queries and keys are not rotated, so their products leave distances out. A row keeps `recent`
    queries of its heads, whatever the budget.
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    recent: int | float | None = struct.field(pytree_node=False, default=8, kw_only=True)

    lag: ClassVar[int] = 0  # so many of the newest queries are left out, and as many older ones taken

    def __post_init__(self):
        super().__post_init__()
        must = "an integer of at least 1, the tokens of its observation window"
        self.require("recent", is_size(self.recent, 1), must)

    def init_rows(self, info: LayerInfo) -> RowStats:
        config = info.config
        return jnp.zeros((info.rows, self.size, config.num_heads // info.rows, config.head_dim), config.dtype)

    def observe_rows(self, rows: RowStats, view: View) -> RowStats:
        queries = view.queries.reshape(rows.shape[0], *rows.shape[2:])
        place = lax.rem(view.t, jnp.int32(self.size))
        return lax.dynamic_update_slice_in_dim(rows, queries.astype(rows.dtype)[:, None], place, axis=1)

    @property
    def size(self) -> int:
        """How many queries are kept."""
        assert isinstance(self.recent, int)
        return self.recent + self.lag

    def recent_of(self, budget: Any) -> int:
        """The window, with the tokens whose queries are left out."""
        del budget
        return self.size

    def window(
        self, layer: LayerState, t: Int[Array, ""]
    ) -> tuple[Float[Array, "K W G S"], Int[Array, " W"], Bool[Array, " W"]]:
        """Logits of the window's queries with all slots, the positions of these queries, and which of them count."""
        heads, slots, width = layer.keys.shape
        queries = jnp.moveaxis(layer.row_stats, 1, 0).reshape(self.size, heads, -1, width)
        place = jnp.arange(self.size, dtype=jnp.int32)
        born = t - 1 - (t - 1 - place) % self.size  # the newest token whose place in the ring it is
        logits = einsum("wkgh,ksh->kwgs", queries, layer.keys) * width**-0.5
        return logits, born, (born >= 0) & (born < t - self.lag)

    def distant(self, layer: LayerState, t: Int[Array, ""]) -> Bool[Array, "K S"]:
        """What is held and older than the window."""
        return by_heads(layer, (layer.positions != EMPTY) & (layer.positions < t - self.size))

    def seen(self, layer: LayerState, born: Int[Array, " W"]) -> Bool[Array, "K W 1 S"]:
        """What is held and was there for each of the queries."""
        there = layer.positions[:, None] <= born[None, :, None]  # [#K, W, S]
        return by_heads(layer, (layer.positions != EMPTY)[:, None] & there)[:, :, None]
