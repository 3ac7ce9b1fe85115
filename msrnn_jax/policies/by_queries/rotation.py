"""Queries and keys turned back and forth, for policies that expect what is to come."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.config import at_least_float32
from msrnn_jax.policies.base import RowStats
from msrnn_jax.policies.scoring import widen
from msrnn_jax.state import LayerInfo, View


def frequencies(info: LayerInfo) -> dict[str, Array]:
    """Radians per position [#K, R], R = H / 2, by kind: of the layer's rotation, what is in the slots, what is not."""
    dtype = at_least_float32(info.config.dtype)
    whole = jnp.broadcast_to(jnp.asarray(info.frequencies, dtype), (info.rows, len(info.frequencies)))
    nothing = jnp.zeros_like(whole)
    return {"whole": whole, "done": whole if info.rotated else nothing, "missing": nothing if info.rotated else whole}


def unrotated(rows: RowStats, view: View) -> Float[Array, "#K N H"]:
    """The newest queries as they were before rotation, in the shape of `rows["mean"]`."""
    query = widen(view.queries).reshape(rows["mean"].shape)
    return turn(query, -(rows["done"] * view.t.astype(query.dtype))[:, None])


def add(rows: RowStats, sums: dict[str, Array]) -> RowStats:
    """The same statistics with more in these sums."""
    return rows | {name: rows[name] + new.astype(rows[name].dtype) for name, new in sums.items()}


def angles(positions: Int[Array, "#K S"], turns: Float[Array, "#K R"]) -> Float[Array, "#K S R"]:
    """By how much every pair is turned at these positions."""
    return positions.astype(turns.dtype)[..., None] * turns[:, None]


def turn(x: Float[Array, "*T H"], angle: Float[Array, "*#T R"]) -> Float[Array, "*T H"]:
    """Rotates the pairs (x[i], x[i + H / 2]); angles of float32, off by 0.004 radians at position 100,000."""
    return combine(x, jnp.cos(angle), jnp.sin(angle))


def combine(x: Float[Array, "*T H"], cos: Float[Array, "*#T R"], sin: Float[Array, "*#T R"]) -> Float[Array, "*T H"]:
    """`turn` by angles of which cosine and sine, or means of them, are known."""
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
