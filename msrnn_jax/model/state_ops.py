"""State to state: fewer slots, another policy, many futures."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from msrnn_jax.config import Config
from msrnn_jax.policies import Policy
from msrnn_jax.policies.budgets import largest_budget, rows_for, slots_for
from msrnn_jax.recurrence.checks import (
    Budget,
    Count,
    check_int,
    check_layer,
    check_policy,
    check_protection,
    concrete,
    layer_info,
)
from msrnn_jax.recurrence.eviction import evict_to_budget
from msrnn_jax.recurrence.slots import (
    as_budget,
    check_slots,
    grow_slots,
    init_row_stats,
    init_stats,
    share_out,
    shrink_slots,
)
from msrnn_jax.state import EMPTY, LayerState, MultiState

Tree = TypeVar("Tree")


def adopt(
    policy: Policy, state: MultiState, budget: Budget | None = None, *, config: Config | None = None
) -> MultiState:
    """The state of another policy as one of `policy`, which holds the same tokens.

    Statistics begin anew, as if all tokens had just been written: a policy that sums over time has seen nothing yet.
    Where every KV head is to forget for itself from now on, all begin with what the layer holds.

    Args:
      policy: the one that decides from now on.
      budget: at least what is held, `compress` under the old policy first to hold less; one number or one per
        layer, not traced. Slots are added as needed. By default each layer's own.
      config: of the model; needed by a policy that keeps statistics of rows, such as queries, which also begin anew.

    Raises:
      ValueError: for a budget below what is held or what the policy protects, and for a policy by layer where
        heads hold different tokens.
    """
    check_policy(policy)
    if policy.has_row_stats and config is None:
        raise ValueError(f"{policy} keeps statistics of rows; adopt must be given the config of the model")
    budgets = [layer.budget for layer in state.layers]
    if budget is not None:
        budgets = share_out(policy, len(state.layers), budget)
    check_protection(policy, budgets)
    layers = []
    for index, (layer, own) in enumerate(zip(state.layers, budgets, strict=True)):
        layer = _adopt(policy, index, layer, own)
        if config is not None:
            info = layer_info(config, index, layer.num_rows, state.mode)
            layer = layer.replace(row_stats=init_row_stats(policy, info))
        layers.append(layer)
    return state.replace(layers=tuple(layers))


def hand_over(config: Config, before: Policy, after: Policy, state: MultiState) -> MultiState:
    """A state that one policy has brought to its budget, for another to go on with; pure and jittable.

    What `before` holds beyond the budget goes first, by its scores. Statistics begin anew, as in `adopt`. Where `after`
    keeps the prompt, that is all that was read so far, as far as it is still held.

    Raises:
      ValueError: for a policy by layer after one by head.
    """
    check_hand_over(before, after)
    state = compress(before.replace(adaptive=None), state)
    rows = rows_for(after, config.num_kv_heads)
    layers = []
    for index, layer in enumerate(state.layers):
        slots = slots_for(after, largest_budget(before, layer.num_slots, layer.num_rows), rows)
        more = max(0, slots - layer.num_slots)
        layer = grow_slots(before, layer, more) if more else layer
        layer = _take_over(after, layer, rows, state.t)
        info = layer_info(config, index, rows, state.mode)
        layers.append(layer.replace(row_stats=init_row_stats(after, info)))
    return state.replace(layers=tuple(layers))


def check_hand_over(before: Policy, after: Policy) -> None:
    """Refuses a pair of policies of which the second cannot go on with what the first holds."""
    if before.scope == "head" and after.scope == "layer":
        raise ValueError(f"{after} forgets by layer, but {before} leaves other tokens in every head")


def _adopt(policy: Policy, index: int, layer: LayerState, budget: Budget) -> LayerState:
    size, positions = concrete(budget), concrete(layer.positions)
    if size is None or positions is None:
        raise ValueError("adopt needs a state and a budget that are not traced")
    held = int((positions != EMPTY).sum(axis=1).max())
    if held > size.min():
        raise ValueError(
            f"budget is {int(size.min())}, but layer {index} holds {held} tokens; compress the state first"
        )
    rows = rows_for(policy, layer.keys.shape[0])
    if layer.num_rows > rows and not (positions == positions[:1]).all():
        raise ValueError(f"{policy} forgets by layer, but the heads of layer {index} hold different tokens")
    pinned = jnp.zeros((), jnp.int32) if layer.pinned is None else layer.pinned
    return with_budget(policy, _take_over(policy, layer, rows, pinned), size)


def _take_over(policy: Policy, layer: LayerState, rows: int, pinned: Array) -> LayerState:
    """What a layer holds, with statistics of slots that begin anew, and none of rows yet.

    Args:
      pinned: tokens of the prompt, where the policy keeps it.
    """
    return layer.replace(
        positions=_with_rows(layer.positions, rows),
        stats=init_stats(policy, rows, layer.num_slots),
        row_stats=None,
        pinned=pinned if policy.prompt else None,
    )


def with_budget(policy: Policy, layer: LayerState, budget: int | np.ndarray) -> LayerState:
    """The same layer with a budget of at least what it holds, and the slots for it."""
    missing = slots_for(policy, int(np.max(budget)), layer.num_rows) - layer.num_slots
    layer = grow_slots(policy, layer, missing) if missing > 0 else layer
    return layer.replace(budget=jnp.asarray(budget, jnp.int32))


def _with_rows(positions: Array, rows: int) -> Array:
    return positions[:rows] if positions.shape[0] >= rows else jnp.broadcast_to(positions, (rows, positions.shape[1]))


def fork(state: Tree, count: Count) -> Tree:
    """Equal states side by side, to be continued in different ways by `vmap`.

    Args:
      state: a `MultiState`, or any tree of arrays.
      count: how many, from 1; static.

    Returns:
      The same tree with leaves [count, ...].
    """
    count = check_int("count", count, 1)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), state)


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
      budget: how many slots each layer keeps, from now on too: one number, one per layer, or traced, as in
        `init_state`. By default each layer's own budget.
      shrink: also cut the slots of each layer to those its budget needs; needs a budget that is not traced.

    Raises:
      ValueError: for a budget below 1, above what the slots allow or below what the policy protects.
    """
    for index, layer in enumerate(state.layers):
        check_layer(policy, index, layer)
    budgets = [layer.budget for layer in state.layers]
    if budget is not None:
        budgets = share_out(policy, len(state.layers), budget)
        for layer, known in zip(state.layers, map(concrete, budgets), strict=True):
            if known is not None:
                there_are = f"the state has {layer.num_slots} slots"
                check_slots(policy, layer.num_rows, int(known.max()), layer.num_slots, there_are)
    check_protection(policy, budgets)
    layers = []
    for index, (layer, value) in enumerate(zip(state.layers, budgets, strict=True)):
        value = as_budget(policy, layer.num_rows, layer.num_slots, value)
        layers.append(evict_to_budget(policy, layer.replace(budget=value, index=index), state.t).replace(index=0))
    if shrink:
        known = [concrete(value) for value in budgets]
        if any(value is None for value in known):
            raise ValueError("shrink needs a budget that is not traced")
        layers = [
            shrink_slots(layer, slots_for(policy, int(value.max()), layer.num_rows))
            for layer, value in zip(layers, known, strict=True)
            if value is not None
        ]
    return state.replace(layers=tuple(layers))
