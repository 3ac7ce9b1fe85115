"""The attention that future queries are expected to pay."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.policies.base import Policy, RowStats, Score, is_size
from msrnn_jax.policies.by_queries.rotation import add, angles, combine, frequencies, turn, unrotated
from msrnn_jax.policies.scoring import by_heads, by_rows, einsum, held_slots, norms, softmax_over, widen
from msrnn_jax.state import LayerInfo, LayerState, View


class ExpectedAttention(Policy):
    r"""Keeps what queries like those so far are expected to attend to, weighted by the length of values.

    μ and C are mean and covariance of the queries read so far, before rotation and without the sinks'. R is the mean
    rotation of the next `future` positions. $z_j = k_j^\top R\mu/\sqrt d + k_j^\top R C R^\top k_j/2d$, softmax,
    mean over a group's heads, times $\|v_j\|$. Devoto et al., Expected Attention: KV Cache Compression by Estimating
    Attention from Future Queries Distribution, 2025 (arXiv:2510.00636). Keys count as rotated by their true position
    in every position mode.
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    sinks: int = struct.field(pytree_node=False, default=4, kw_only=True)
    every: int = struct.field(pytree_node=False, default=128, kw_only=True)
    future: int = struct.field(pytree_node=False, default=512)
    epsilon: float = struct.field(pytree_node=False, default=0.0)

    def __post_init__(self):
        super().__post_init__()
        self.require("future", is_size(self.future, 1), "an integer of at least 1")
        self.require("epsilon", self.epsilon >= 0, "at least 0")

    def init_rows(self, info: LayerInfo) -> RowStats:
        turns = frequencies(info)
        heads, width = info.config.num_heads // info.rows, info.config.head_dim
        dtype = turns["whole"].dtype
        sums = {"count": (), "mean": (heads, width), "square": (heads, width, width)}
        return turns | {name: jnp.zeros((info.rows, *shape), dtype) for name, shape in sums.items()}

    def observe_rows(self, rows: RowStats, view: View) -> RowStats:
        query = unrotated(rows, view)
        counts = (view.t >= self.sinks).astype(query.dtype)
        square = einsum("rgi,rgj->rgij", query, query)
        return add(rows, {"count": counts, "mean": counts * query, "square": counts * square})

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        heads, _, width = layer.keys.shape
        mean, covariance = (leaf.reshape(heads, -1, *leaf.shape[2:]) for leaf in self._moments(layer, t))
        missing = by_heads(layer, angles(layer.positions, layer.row_stats["missing"]))  # [K, S, R]
        keys = turn(widen(layer.keys), missing)
        logits = einsum("kgh,ksh->kgs", mean, keys) * width**-0.5
        logits = logits + einsum("ksi,kgij,ksj->kgs", keys, covariance, keys) / (2 * width)
        counted = held_slots(layer) & by_heads(layer, layer.positions >= self.sinks)
        probs = softmax_over(logits, counted[:, None]).mean(axis=1)  # [K, S]
        return by_rows(self, (probs + self.epsilon) * norms(layer.values))

    def _moments(self, layer: LayerState, t: Int[Array, ""]) -> tuple[Float[Array, "#K N H"], Float[Array, "#K N H H"]]:
        """Mean and covariance of the queries so far, rotated as those of the next tokens are on average."""
        rows = layer.row_stats
        count = jnp.maximum(rows["count"], 1)[:, None, None]
        mean = rows["mean"] / count
        covariance = rows["square"] / count[..., None] - mean[..., :, None] * mean[..., None, :]
        places = (t + jnp.arange(self.future, dtype=jnp.int32)).astype(mean.dtype)
        angle = rows["whole"][:, None] * places[None, :, None]  # [#K, future, R]
        cos, sin = jnp.cos(angle).mean(axis=1), jnp.sin(angle).mean(axis=1)
        cos, sin = cos[:, None, None], sin[:, None, None]
        covariance = combine(jnp.swapaxes(combine(covariance, cos, sin), -1, -2), cos, sin)
        return combine(mean, cos[:, 0], sin[:, 0]), covariance
