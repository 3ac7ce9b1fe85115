"""How many tokens layers and heads hold under a policy, and the slots that they need for it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from msrnn_jax.policies.base import Policy, share_of


def rows_for(policy: Policy, num_kv_heads: int) -> int:
    """Rows of slots in a layer: 1, or one of every KV head where each forgets for itself."""
    return 1 if policy.scope == "layer" else num_kv_heads


def safe_tokens(policy: Policy, budget: Any) -> Any:
    """How many tokens every head of a layer keeps whose heads share their budgets, a number or an array."""
    share = share_of(budget, policy.adaptive or 0.0)
    return jnp.maximum(share, 1) if isinstance(budget, Array) else max(share, 1)


def slots_for(policy: Policy, budget: int, rows: int) -> int:
    """The slots of a layer with a budget: what a row holds, at most, while the policy waits to cut it."""
    if policy.adaptive is None:
        return budget + policy.every
    return rows * budget - (rows - 1) * safe_tokens(policy, budget) + policy.every


def largest_budget(policy: Policy, slots: int, rows: int) -> int:
    """The largest budget for which there are enough slots; 0 where there is none."""
    if policy.adaptive is None:
        return max(0, slots - policy.every)
    low, high = 0, max(0, slots - policy.every)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if slots_for(policy, middle, rows) <= slots else (low, middle - 1)
    return low


def least_budget(num_layers: int, *policies: Policy) -> int:
    """The smallest budget at which every layer holds what each of these policies protects.

    The first of them that has a `pyramid` shares budgets out.
    """
    sharing = next((policy for policy in policies if policy.pyramid is not None), policies[0])
    budget = 1
    while any(
        policy.sinks + policy.recent_of(each) > each
        for policy in policies
        for each in pyramid(sharing, num_layers, budget)
    ):
        budget += 1
    return budget


def pyramid(policy: Policy, num_layers: int, budget: Any) -> list[Any]:
    """The budgets of all layers, which fall linearly, for a mean budget: a number, or a traced one.

    With c = budget - recent, the last layer has c / beta and the first 2c - c / beta, and both the recent tokens.
    """
    beta = policy.pyramid
    if beta is None or num_layers == 1:
        return [budget] * num_layers
    module = jnp if isinstance(budget, Array) else np
    recent = policy.recent_of(budget)
    spread = module.asarray(budget - recent).astype(np.float32)
    low = spread / np.float32(beta)
    high = 2 * spread - low
    levels = [high - np.float32(index) * (high - low) / np.float32(num_layers - 1) for index in range(num_layers)]
    made = [recent + module.floor(level + np.float32(0.5)).astype(np.int32) for level in levels]
    made = [module.maximum(each, 1) for each in made]
    return made if isinstance(budget, Array) else [int(each) for each in made]
