"""What scores are made of: masks, softmax over some slots, neighbours, and heads as the scope wants them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from msrnn_jax.config import at_least_float32
from msrnn_jax.policies.base import Policy
from msrnn_jax.state import EMPTY, LayerState


def by_rows(policy: Policy, scores: Float[Array, "K S"]) -> Float[Array, "#K S"]:
    """Scores of every KV head as the scope wants them: their mean where all heads forget the same token."""
    return scores if policy.scope == "head" else scores.mean(axis=0, keepdims=True)


def by_heads(layer: LayerState, rows: Array) -> Array:
    """What every row has, [#K, ...], as [K, ...]."""
    return jnp.broadcast_to(rows, (layer.keys.shape[0], *rows.shape[1:]))


def held_slots(layer: LayerState) -> Bool[Array, "K S"]:
    """Which slots every KV head holds."""
    return by_heads(layer, layer.positions != EMPTY)


def widen(x: Array) -> Array:
    """In at least float32."""
    return x.astype(at_least_float32(x.dtype))


def einsum(equation: str, *operands: Array) -> Array:
    """In at least float32 and with full precision on every device, so that none forgets other tokens."""
    dtype = max((at_least_float32(one.dtype) for one in operands), key=lambda kind: kind.itemsize)
    return jnp.einsum(equation, *(one.astype(dtype) for one in operands), precision=lax.Precision.HIGHEST)


def norms(x: Float[Array, "*T H"]) -> Float[Array, "*T"]:
    """Euclidean lengths."""
    return jnp.sqrt(jnp.square(widen(x)).sum(axis=-1))


def units(x: Float[Array, "*T H"]) -> Float[Array, "*T H"]:
    """Vectors of length 1 in the same directions."""
    return widen(x) / jnp.maximum(norms(x), 1e-12)[..., None]


def mean_of(x: Array, mask: Bool[Array, "..."], axis: Any) -> Array:
    """The mean of what the mask holds; 0 of nothing. Free slots hold anything, so they are left out, not multiplied."""
    count = jnp.broadcast_to(mask, x.shape).sum(axis=axis).astype(x.dtype)
    return jnp.where(mask, x, 0).sum(axis=axis) / jnp.maximum(count, 1)


def softmax_over(logits: Float[Array, "*T S"], mask: Bool[Array, "*#T S"]) -> Float[Array, "*T S"]:
    """Softmax over the slots of the mask; 0 elsewhere, and everywhere where there is none."""
    shown = jnp.where(mask, logits, -jnp.inf)
    highest = jnp.maximum(shown.max(axis=-1, keepdims=True), jnp.finfo(logits.dtype).min)
    weights = jnp.exp(shown - lax.stop_gradient(highest))
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.finfo(logits.dtype).tiny)


def in_order(positions: Int[Array, "*K S"], mask: Bool[Array, "*K S"]) -> Int[Array, "*K S"]:
    """The slots of the mask in order of position, then all others."""
    return jnp.argsort(jnp.where(mask, positions, jnp.iinfo(jnp.int32).max), axis=-1)


def neighbours(
    scores: Float[Array, "K S"],
    mask: Bool[Array, "K S"],
    positions: Int[Array, "K S"],
    kernel: int,
    outside: float,
) -> Float[Array, "kernel K S"]:
    """The scores of `kernel` slots around each slot of the mask, in order of position; `outside` beyond the ends."""
    order = in_order(positions, mask)
    line = jnp.take_along_axis(jnp.where(mask, scores, outside), order, axis=1)
    padded = jnp.pad(line, ((0, 0), (kernel // 2, kernel // 2)), constant_values=outside)
    around = jnp.stack([padded[:, shift : shift + line.shape[1]] for shift in range(kernel)])
    back = jnp.argsort(order, axis=1)
    return jax.vmap(lambda each: jnp.take_along_axis(each, back, axis=1))(around)
