"""Changing the policy in mid-text: the same memories, another way to forget."""

import jax.numpy as jnp
from jax import Array

from msrnn_jax.checks import Budget, check_policy, check_protection, concrete, layer_budgets
from msrnn_jax.policies import Policy
from msrnn_jax.slots import fresh_stats, grow
from msrnn_jax.state import EMPTY, LayerState, MultiState


def adopt(policy: Policy, state: MultiState, budget: Budget | None = None) -> MultiState:
    """The state of another policy as one of `policy`, which holds the same tokens.

    Statistics begin anew, as if all tokens had just been written: a policy that sums over time has seen nothing yet.
    Where every KV head is to forget for itself from now on, all begin with what the layer holds.

    Args:
      policy: the one that decides from now on.
      budget: at least what is held, `compress` under the old policy first to hold less; one number or one per
        layer, not traced. Slots are added as needed. By default each layer's own.

    Raises:
      ValueError: for a budget below what is held or what the policy protects, and for a policy by layer where
        heads hold different tokens.
    """
    check_policy(policy)
    budgets = [layer.budget for layer in state.layers] if budget is None else layer_budgets(len(state.layers), budget)
    check_protection(policy, budgets)
    layers = [_adopt(policy, index, *pair) for index, pair in enumerate(zip(state.layers, budgets, strict=True))]
    return state.replace(layers=tuple(layers))


def _adopt(policy: Policy, index: int, layer: LayerState, budget: Budget) -> LayerState:
    size, positions = concrete(budget), concrete(layer.positions)
    if size is None or positions is None:
        raise ValueError("adopt needs a state and a budget that are not traced")
    held = int((positions != EMPTY).sum(axis=1).max())
    if held > size:
        raise ValueError(f"budget is {int(size)}, but layer {index} holds {held} tokens; compress the state first")
    rows = 1 if policy.scope == "layer" else layer.keys.shape[0]
    if layer.num_rows > rows and not (positions == positions[:1]).all():
        raise ValueError(f"{policy} forgets by layer, but the heads of layer {index} hold different tokens")
    stats = fresh_stats(policy, rows, layer.num_slots)
    return with_budget(policy, layer.replace(positions=_with_rows(layer.positions, rows), stats=stats), int(size))


def with_budget(policy: Policy, layer: LayerState, budget: int) -> LayerState:
    """The same layer with a budget of at least what it holds, and the slots for it."""
    missing = budget + 1 - layer.num_slots
    layer = grow(policy, layer, missing) if missing > 0 else layer
    return layer.replace(budget=jnp.asarray(budget, jnp.int32))


def _with_rows(positions: Array, rows: int) -> Array:
    return positions[:rows] if positions.shape[0] >= rows else jnp.broadcast_to(positions, (rows, positions.shape[1]))
