"""The logits that the mean query would have, at distances to come."""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.policies.base import Policy, RowStats, Score
from msrnn_jax.policies.by_queries.calibration import read_calibration
from msrnn_jax.policies.by_queries.rotation import add, angles, combine, frequencies, turn, unrotated
from msrnn_jax.policies.scoring import by_heads, by_rows, einsum, held_slots, mean_of, widen
from msrnn_jax.state import LayerInfo, LayerState, View

DISTANCES = 2 ** np.arange(17)  # from now to the queries that are expected


class TriAttention(Policy):
    r"""Keeps the keys that the mean query would attend to at distances from 1 to 65,536; the prompt is kept.

    $\bar q_f$ is the mean and $m_f$ the mean length of every pair f of a query before rotation, and $u_f$ is that pair
    of a key. The score is the mean over distances d of

    $$\sum_f |\bar q_f||u_f| \cos(\omega_f (t - p_j + d) + \arg(\bar q_f u_f^*)) + (m_f - |\bar q_f|)|u_f|,$$

    normalised over what was generated, maximum over a group's heads. Mao et al., TriAttention, 2026 (arXiv:2604.04921);
    this is their mode by layer and head. The means come from a file that `msrnn calibrate` wrote. Theirs are calibrated
    beforehand too. Without a file, they are the means of the queries read so far.
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    every: int = struct.field(pytree_node=False, default=128, kw_only=True)
    prompt: bool = struct.field(pytree_node=False, default=True, kw_only=True)
    calibration: str = struct.field(pytree_node=False, default="")

    def __post_init__(self):
        super().__post_init__()
        self.require("calibration", "," not in self.calibration, "a path without a comma")

    @property
    def files(self) -> tuple[str, ...]:
        return (self.calibration,) if self.calibration else ()

    def init_rows(self, info: LayerInfo) -> RowStats:
        turns = frequencies(info)
        heads, width = info.config.num_heads // info.rows, info.config.head_dim
        dtype = turns["whole"].dtype
        angle = info.frequencies * DISTANCES[:, None]  # [17, R]
        ahead = np.concatenate([np.cos(angle).mean(axis=0), np.sin(angle).mean(axis=0)])
        sums = {"count": (), "mean": (heads, width), "size": (heads, width // 2)}
        made = {name: jnp.zeros((info.rows, *shape), dtype) for name, shape in sums.items()}
        if self.calibration:
            read = read_calibration(self.calibration, info)
            made = {name: jnp.asarray(read[name].reshape(made[name].shape), dtype) for name in sums}
        return turns | made | {"ahead": jnp.broadcast_to(jnp.asarray(ahead, dtype), (info.rows, width))}

    def observe_rows(self, rows: RowStats, view: View) -> RowStats:
        if self.calibration:
            return rows
        query = unrotated(rows, view)
        return add(rows, {"count": jnp.ones((), query.dtype), "mean": query, "size": _sizes(query)})

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        heads = layer.keys.shape[0]
        rows = layer.row_stats
        count = jnp.maximum(rows["count"], 1)[:, None, None]
        mean, size = rows["mean"] / count, rows["size"] / count  # [#K, N, H], [#K, N, R]
        # The query as it is now, and on average over the distances: both are turns, which a sum over d leaves linear.
        now = turn(mean, (rows["whole"] * (t - 1).astype(mean.dtype))[:, None])
        ahead = combine(now, *jnp.split(rows["ahead"][:, None], 2, axis=-1))
        missing = by_heads(layer, angles(layer.positions, rows["missing"]))  # [K, S, R]
        keys = turn(widen(layer.keys), missing)  # as rotated at their true positions
        shape = (heads, -1)
        logits = einsum("kgh,ksh->kgs", ahead.reshape(*shape, ahead.shape[-1]), keys)
        spread = (size - _sizes(mean)).reshape(*shape, size.shape[-1])
        logits = logits + einsum("kgr,ksr->kgs", spread, _sizes(keys))
        return by_rows(self, self._normalised(layer, logits).max(axis=1))

    def _normalised(self, layer: LayerState, logits: Float[Array, "K G S"]) -> Float[Array, "K G S"]:
        counted = held_slots(layer)[:, None]
        if layer.pinned is not None:
            counted = counted & by_heads(layer, layer.positions >= layer.pinned)[:, None]
        centred = logits - mean_of(logits, counted, axis=-1)[..., None]
        return centred / (jnp.sqrt(mean_of(centred**2, counted, axis=-1)) + 1e-6)[..., None]


def _sizes(x: Float[Array, "*T H"]) -> Float[Array, "*T R"]:
    """The lengths of the pairs."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.sqrt(first**2 + second**2)
