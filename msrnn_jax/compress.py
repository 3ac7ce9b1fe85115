"""Who goes: forgetting slots by a policy's scores, one at a time or many at once."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from msrnn_jax.checks import Budget, check_layer, check_protection, check_score, concrete, layer_budgets
from msrnn_jax.layers import wide
from msrnn_jax.policies import Policy
from msrnn_jax.policies.base import Score
from msrnn_jax.slots import cut
from msrnn_jax.state import EMPTY, LayerState, MultiState


def compress(
    policy: Policy,
    state: MultiState,
    budget: Budget | None = None,
    *,
    shrink: bool = False,
) -> MultiState:
    """Keeps the best slots of every layer, a pure and jittable function from state to state.

    Unprotected slots go first, those of lowest score before the others (NaN before all), of equal ones
    the oldest; protected slots go in the same order once nothing else is left.

    Args:
      budget: how many slots each layer keeps, from now on too: one number, one per layer, or traced. By
        default each layer's own budget.
      shrink: also cut the slots of each layer to its budget + 1; needs a budget that is not traced.

    Raises:
      ValueError: for a budget below 1, above slots - 1 or below what the policy protects.
    """
    for index, layer in enumerate(state.layers):
        check_layer(policy, index, layer)
    budgets = [layer.budget for layer in state.layers]
    if budget is not None:
        budgets = layer_budgets(len(state.layers), budget)
        _check_slots(state, budgets)
    check_protection(policy, budgets)
    layers = [
        keep_best(policy, layer.replace(budget=_as_budget(value, layer)), state.t)
        for layer, value in zip(state.layers, budgets, strict=True)
    ]
    if shrink:
        known = [concrete(value) for value in budgets]
        if any(value is None for value in known):
            raise ValueError("shrink needs a budget that is not traced")
        layers = [cut(layer, int(value) + 1) for layer, value in zip(layers, known, strict=True) if value is not None]
    return state.replace(layers=tuple(layers))


def _check_slots(state: MultiState, budgets: Sequence[Any]) -> None:
    for layer, value in zip(state.layers, budgets, strict=True):
        known = concrete(value)
        if known is not None and known > layer.num_slots - 1:
            raise ValueError(
                f"budget is {int(known)}, but the state has {layer.num_slots} slots; it must be at most slots - 1"
            )


def worth(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> tuple[Score, Bool[Array, "#K S"]]:
    """Scores with NaN made minimal, and which held slots are not protected, after `t` tokens were seen."""
    score = policy.score(layer, t)
    check_score(policy, score, layer)
    if jnp.issubdtype(score.dtype, jnp.floating):
        score = score.astype(wide(score.dtype))  # the smallest floats have no infinity
        score = jnp.where(jnp.isnan(score), -jnp.inf, score)
    held = layer.positions != EMPTY
    if not policy.protects:
        return score, held
    recent = layer.budget // 2 if policy.recent is None else policy.recent
    protected = (layer.positions < policy.sinks) | (layer.positions >= t - recent)
    return score, held & ~protected


def forget(policy: Policy, layer: LayerState, t: Int[Array, ""], over: Bool[Array, "#K"] | None = None) -> LayerState:
    """Frees one slot in every row that holds more than its budget: `keep_best` where one is too many.

    Keys and values stay where they are: a slot is free because its position is EMPTY, and the next
    `write` takes it.

    Args:
      over: which rows those are, if the caller knows without counting.
    """
    score, eligible = worth(policy, layer, t)
    held = layer.positions != EMPTY  # [#K, S]
    if policy.protects:
        eligible = jnp.where(eligible.any(axis=1, keepdims=True), eligible, held)
    score = jnp.where(eligible, score, _highest(score.dtype))
    lowest = jnp.min(score, axis=1, keepdims=True)  # [#K, 1]
    candidates = jnp.where(eligible & (score <= lowest), layer.positions, _highest(jnp.int32))
    oldest = jnp.min(candidates, axis=1, keepdims=True)  # [#K, 1]
    if over is None:
        over = held.sum(axis=1, dtype=jnp.int32) > layer.budget
    # A position is held by one slot of a row at most, so it names the slot that goes.
    return layer.replace(positions=jnp.where(over[:, None] & (layer.positions == oldest), EMPTY, layer.positions))


def keep_best(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> LayerState:
    """Frees as many slots of every row as are held beyond its budget."""
    excess = (layer.positions != EMPTY).sum(axis=1, keepdims=True, dtype=jnp.int32) - layer.budget  # [#K, 1]
    return layer.replace(positions=jnp.where(turn_to_go(policy, layer, t) < excess, EMPTY, layer.positions))


def turn_to_go(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> Int[Array, "#K S"]:
    """The place of every slot in the order in which they would be freed now, 0 first; free slots come last."""
    score, eligible = worth(policy, layer, t)
    held = layer.positions != EMPTY  # [#K, S]
    later = jnp.where(eligible, 0, jnp.where(held, 1, 2)).astype(jnp.int32)
    order = jnp.lexsort((layer.positions, score, later), axis=1)  # [#K, S]
    return jnp.argsort(order, axis=1).astype(jnp.int32)


def _as_budget(value: Any, layer: LayerState) -> Int[Array, ""]:
    # A traced one may lie outside what the slots can hold.
    return jnp.clip(jnp.asarray(value).astype(jnp.int32), 1, layer.num_slots - 1)


def _highest(dtype: Any) -> Array:
    return jnp.asarray(jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max, dtype)
