"""Who goes: forgetting slots by a policy's scores, one at a time or many at once."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int

from msrnn_jax.config import at_least_float32
from msrnn_jax.policies import Policy
from msrnn_jax.policies.base import Score
from msrnn_jax.policies.budgets import safe_tokens
from msrnn_jax.recurrence.checks import check_observed, check_score
from msrnn_jax.recurrence.conditional import where_any
from msrnn_jax.recurrence.indexing import expand_like
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
    return score, held & ~policy.protected(layer, t)


def forget(policy: Policy, layer: LayerState, t: Int[Array, ""], due: Bool[Array, "#K 1"]) -> LayerState:
    """Frees what the policy forgets after a step: one slot of every row that is due, or all beyond its budget."""
    if policy.one_by_one:
        return evict_one(policy, layer, t, due)

    def cut(due: Array, given: tuple[Policy, LayerState, Array]) -> tuple[Array, Any]:
        policy, layer, t = given
        after = evict_to_budget(policy, layer, t)
        return jax.tree.map(
            lambda new, old: jnp.where(expand_like(due[:, 0], old), new, old),
            (after.positions, after.stats),
            (layer.positions, layer.stats),
        )

    def wait(due: Array, given: tuple[Policy, LayerState, Array]) -> tuple[Array, Any]:
        del due
        return given[1].positions, given[1].stats

    positions, stats = where_any(due, cut, wait, (policy, layer, t))
    return layer.replace(positions=positions, stats=stats)


def is_due(policy: Policy, layer: LayerState) -> Bool[Array, "#K 1"]:
    """Which rows hold as many as are held before the policy cuts."""
    held = (layer.positions != EMPTY).sum(axis=1, keepdims=True, dtype=jnp.int32)  # [#K, 1]
    if policy.adaptive is None:
        return held >= layer.row_budgets + policy.every
    whole = held.sum(axis=0, keepdims=True, dtype=jnp.int32) >= layer.num_rows * (layer.row_budgets + policy.every)
    return jnp.broadcast_to(whole, held.shape)


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
        over = is_due(policy, layer)
    # A position is held by one slot of a row at most, so it names the slot that goes.
    return layer.replace(positions=jnp.where(over & (layer.positions == oldest), EMPTY, layer.positions))


def evict_to_budget(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> LayerState:
    """Frees as many slots of every row, or of a layer whose heads share, as are held beyond its budget."""
    held = (layer.positions != EMPTY).sum(axis=1, keepdims=True, dtype=jnp.int32)  # [#K, 1]
    budget = layer.row_budgets
    if policy.adaptive is not None:
        held = held.sum(axis=0, keepdims=True, dtype=jnp.int32)
        budget = layer.num_rows * budget
    excess = held - budget
    if policy.revises:
        revised = policy.revise(layer, t)
        check_observed(policy, revised, layer.stats)
        stats = jax.tree.map(
            lambda new, old: jnp.where(expand_like(excess > 0, old), new.astype(old.dtype), old), revised, layer.stats
        )
        layer = layer.replace(stats=stats)
    if policy.adaptive is not None and policy.every == 1:
        return _free_lowest(policy, layer, t, budget)
    order = eviction_order if policy.adaptive is None else _shared_order
    return layer.replace(positions=jnp.where(order(policy, layer, t) < excess, EMPTY, layer.positions))


def eviction_order(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> Int[Array, "#K S"]:
    """The place of every slot in the order in which its row would free them now, 0 first; free slots come last."""
    score, eligible = comparable_scores(policy, layer, t)
    held = layer.positions != EMPTY  # [#K, S]
    later = jnp.where(eligible, 0, jnp.where(held, 1, 2)).astype(jnp.int32)
    order = jnp.lexsort((layer.positions, score, later), axis=1)  # [#K, S]
    return jnp.argsort(order, axis=1).astype(jnp.int32)


def _free_lowest(policy: Policy, layer: LayerState, t: Int[Array, ""], budget: Int[Array, ""]) -> LayerState:
    """What `_shared_order` frees, one after the other: no sorting where few have to go.

    Args:
      budget: of all rows together.
    """
    score, eligible = comparable_scores(policy, layer, t)
    safe, row = safe_tokens(policy, layer.budget), jnp.arange(layer.num_rows, dtype=jnp.int32)[:, None]

    def counts(positions: Array) -> Array:
        return (positions != EMPTY).sum(axis=1, keepdims=True, dtype=jnp.int32)  # [K, 1]

    def lowest(mask: Array, numbers: Array) -> Array:
        """Where the mask holds and the number is the lowest of those."""
        return mask & (numbers <= jnp.min(jnp.where(mask, numbers, _highest(numbers.dtype))))

    def one(positions: Array) -> Array:
        held = counts(positions)
        mask = (positions != EMPTY) & (held > safe)
        mask = lowest(mask, jnp.where(eligible, 0, 1).astype(jnp.int32))
        for numbers in (score, positions, jnp.broadcast_to(row, positions.shape)):
            mask = lowest(mask, numbers)
        return jnp.where(mask, EMPTY, positions)

    positions = lax.while_loop(lambda positions: counts(positions).sum(dtype=jnp.int32) > budget, one, layer.positions)
    return layer.replace(positions=positions)


def _shared_order(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> Int[Array, "K S"]:
    """`eviction_order` of all rows together; what is safe in its row comes after everything else that is held."""
    score, eligible = comparable_scores(policy, layer, t)
    held = layer.positions != EMPTY  # [K, S]
    behind = held.sum(axis=1, keepdims=True, dtype=jnp.int32) - 1 - eviction_order(policy, layer, t)
    safe = behind < safe_tokens(policy, layer.budget)
    later = jnp.where(eligible, 0, 1).astype(jnp.int32) + jnp.where(safe, 2, 0).astype(jnp.int32)
    later = jnp.where(held, later, 4).astype(jnp.int32)
    row = jnp.broadcast_to(jnp.arange(layer.num_rows, dtype=jnp.int32)[:, None], held.shape)
    order = jnp.lexsort([leaf.reshape(-1) for leaf in (row, layer.positions, score, later)])
    return jnp.argsort(order).astype(jnp.int32).reshape(held.shape)


def _highest(dtype: Any) -> Array:
    return jnp.asarray(jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max, dtype)
