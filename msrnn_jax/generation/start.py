"""What generation starts from: empty states, or those that an earlier call has left."""

from typing import Any

import jax

from msrnn_jax.config import Config
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import Budget, Slots, check_protection, check_state
from msrnn_jax.recurrence.slots import init_state
from msrnn_jax.state import MultiState


def start_from(
    config: Config,
    policy: Policy,
    state: MultiState | None,
    budget: Budget | None,
    *,
    slots: Slots | None,
    positions: str | None,
    dtype: Any,
) -> MultiState:
    """The states given, or an empty one for all rows.

    Raises:
      ValueError: where neither states nor a budget are given, and for anything beside states that they settle.
    """
    if state is None:
        if budget is None:
            raise ValueError("budget is missing; give it, or a state to go on from")
        positions = "absolute" if positions is None else positions
        return init_state(config, policy, budget, slots=slots, positions=positions, dtype=dtype)
    for name, value in {"budget": budget, "slots": slots, "positions": positions, "dtype": dtype}.items():
        if value is not None:
            raise ValueError(f"{name} is {value!r}, but the state has its own; give one of the two")
    return state


def check_start(config: Config, policy: Policy, state: MultiState, rows: int) -> None:
    """Refuses what the rows of a batch cannot start from: one state for all of them, or states [B, ...]."""
    if isinstance(state, MultiState) and state.t.ndim:
        wrong = {leaf.shape[:1] for leaf in jax.tree.leaves(state)} - {(rows,)}
        if wrong:
            raise ValueError(f"state has leaves {list(wrong.pop())}; it must be of {rows} rows, one per prompt")
        check_state(config, policy, jax.eval_shape(lambda state: jax.tree.map(lambda leaf: leaf[0], state), state))
    else:
        check_state(config, policy, state)
    check_protection(policy, [layer.budget for layer in state.layers])
