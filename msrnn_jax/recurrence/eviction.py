"""Who goes: forgetting slots by a policy's scores, one at a time or many at once."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int

from msrnn_jax.policies import Policy
from msrnn_jax.policies.base import Score
from msrnn_jax.recurrence.attention import at_least_float32
from msrnn_jax.recurrence.checks import check_score
from msrnn_jax.state import EMPTY, LayerState


def comparable_scores(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> tuple[Score, Bool[Array, "#K S"]]:
    """Scores with NaN made minimal, and which held slots are not protected, after `t` tokens were seen."""
    score = policy.score(layer, t)
    check_score(policy, score, layer)
    if jnp.issubdtype(score.dtype, jnp.floating):
        score = score.astype(at_least_float32(score.dtype))  # the smallest floats have no infinity
        score = jnp.where(jnp.isnan(score), -jnp.inf, score)
    elif jnp.issubdtype(score.dtype, jnp.unsignedinteger):  # in the same order, as numbers that every kernel compares
        bits = 8 * score.dtype.itemsize
        signed = jnp.dtype(f"int{bits}")
        score = lax.bitcast_convert_type(score, signed) ^ jnp.asarray(jnp.iinfo(signed).min, signed)
    held = layer.positions != EMPTY
    if not policy.protects:
        return score, held
    recent = layer.budget >> 1 if policy.recent is None else policy.recent  # half; Mosaic asks the device how to divide
    protected = (layer.positions < policy.sinks) | (layer.positions >= t - recent)
    return score, held & ~protected


def evict_one(
    policy: Policy, layer: LayerState, t: Int[Array, ""], over: Bool[Array, "#K 1"] | None = None
) -> LayerState:
    """Frees one slot in every row that holds more than its budget: `evict_to_budget` where one is too many.

    Keys and values stay where they are: a slot is free because its position is EMPTY, and the next
    `write_token` takes it.

    Args:
      over: which rows those are, if the caller knows without counting.
    """
    score, eligible = comparable_scores(policy, layer, t)
    held = layer.positions != EMPTY  # [#K, S]
    if policy.protects:
        some = jnp.where(eligible, 1, 0).max(axis=1, keepdims=True) > 0  # `any`, which Triton lacks
        eligible = eligible | (held & ~some)
    score = jnp.where(eligible, score, _highest(score.dtype))
    lowest = jnp.min(score, axis=1, keepdims=True)  # [#K, 1]
    candidates = jnp.where(eligible & (score <= lowest), layer.positions, _highest(jnp.int32))
    oldest = jnp.min(candidates, axis=1, keepdims=True)  # [#K, 1]
    if over is None:
        over = holds_too_many(layer)
    # A position is held by one slot of a row at most, so it names the slot that goes.
    return layer.replace(positions=jnp.where(over & (layer.positions == oldest), EMPTY, layer.positions))


def holds_too_many(layer: LayerState) -> Bool[Array, "#K 1"]:
    """Which rows hold more than their budget."""
    return (layer.positions != EMPTY).sum(axis=1, keepdims=True, dtype=jnp.int32) > layer.budget


def evict_to_budget(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> LayerState:
    """Frees as many slots of every row as are held beyond its budget."""
    excess = (layer.positions != EMPTY).sum(axis=1, keepdims=True, dtype=jnp.int32) - layer.budget  # [#K, 1]
    return layer.replace(positions=jnp.where(eviction_order(policy, layer, t) < excess, EMPTY, layer.positions))


def eviction_order(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> Int[Array, "#K S"]:
    """The place of every slot in the order in which they would be freed now, 0 first; free slots come last."""
    score, eligible = comparable_scores(policy, layer, t)
    held = layer.positions != EMPTY  # [#K, S]
    later = jnp.where(eligible, 0, jnp.where(held, 1, 2)).astype(jnp.int32)
    order = jnp.lexsort((layer.positions, score, later), axis=1)  # [#K, S]
    return jnp.argsort(order, axis=1).astype(jnp.int32)


def _highest(dtype: Any) -> Array:
    return jnp.asarray(jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max, dtype)
