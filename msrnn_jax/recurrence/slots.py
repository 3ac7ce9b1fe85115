"""Making states, writing into slots, and changing how many slots there are."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from msrnn_jax.config import Config
from msrnn_jax.policies import Policy
from msrnn_jax.policies.budgets import largest_budget, pyramid, rows_for, slots_for
from msrnn_jax.recurrence.checks import (
    MAX_BUDGET,
    Budget,
    Slots,
    check_dtype,
    check_int,
    check_policy,
    check_protection,
    check_statistics,
    concrete,
    layer_budgets,
    layer_info,
)
from msrnn_jax.recurrence.indexing import expand_like, take_slots, write_slots
from msrnn_jax.recurrence.sliding_window import check_windows
from msrnn_jax.state import EMPTY, POSITION_MODES, LayerInfo, LayerState, MultiState


def init_state(
    config: Config,
    policy: Policy,
    budget: Budget,
    *,
    slots: Slots | None = None,
    positions: str = "absolute",
    dtype: Any = None,
) -> MultiState:
    """An empty multi-state.

    Args:
      budget: the multi-state size: slots held after a step, up to `every` - 1 more where the policy cuts less often.
        One number, which a policy with a pyramid shares out over layers, or one per layer, or with the scope "head"
        [L, K], one for every KV head; may be traced.
      slots: S, static, one number or one per layer; at least budget + `policy.every`, since a query also sees the token
        just written. By default what each layer needs for its own budget: all its heads have as many slots as the one
        with the largest, and where they share, as one needs that takes all it can. Must be given where the budget is
        traced, and serves every budget below it.
      positions: how positions are rotated. "absolute": at each token's place in the text. "cache": at its
        place among the tokens its row holds now, as StreamingLLM does. "gap": as "cache", but neighbours
        keep their true distance where it is at most 10, and count as far apart as its logarithm's logarithm
        where it is more.
      dtype: of keys and values; by default the config's.

    Raises:
      ValueError: for a budget below 1, above what the slots allow or below what the policy protects, for missing
        slots, for an unknown position mode or dtype, and for one that a sliding window rules out: "gap", and
        "cache" with more than W slots.
    """
    check_policy(policy)
    if positions not in POSITION_MODES:
        raise ValueError(f"positions is {positions!r}; it must be one of {', '.join(POSITION_MODES)}")
    rows = rows_for(policy, config.num_kv_heads)
    budgets = share_out(policy, config.num_layers, budget)
    _check_heads(policy, rows, budgets)
    check_protection(policy, budgets)
    counts = _layer_slots(policy, rows, budgets, slots)
    check_windows(config, positions, counts)
    check_statistics(policy, rows, max(counts))
    dtype = check_dtype(config.dtype if dtype is None else dtype)
    layers = [
        _empty(policy, layer_info(config, index, rows, positions), *pair, dtype)
        for index, pair in enumerate(zip(counts, budgets, strict=True))
    ]
    return MultiState(layers=tuple(layers), t=jnp.zeros((), jnp.int32), mode=positions)


def share_out(policy: Policy, num_layers: int, budget: Budget) -> list[Any]:
    """The budgets of all layers; of one number, shared out as the policy does."""
    budgets = layer_budgets(num_layers, budget)
    given = isinstance(budget, Sequence) or np.ndim(budget) > 0
    return budgets if given else pyramid(policy, num_layers, budgets[0])


def slots_of(config: Config, policy: Policy, budget: int) -> int | tuple[int, ...]:
    """How many slots `init_state` gives each layer; one number where all have as many."""
    rows = rows_for(policy, config.num_kv_heads)
    counts = tuple(slots_for(policy, int(each), rows) for each in share_out(policy, config.num_layers, budget))
    return counts[0] if len(set(counts)) == 1 else counts


def _check_heads(policy: Policy, rows: int, budgets: Sequence[Any]) -> None:
    """Refuses budgets of heads where there are none."""
    for value in budgets:
        shape = np.shape(value)
        if shape and (policy.scope == "layer" or policy.adaptive is not None or shape != (rows,)):
            wanted = "one number" if policy.scope == "layer" or policy.adaptive is not None else f"{rows}, one per head"
            raise ValueError(f"budget of a layer has shape {shape}; under {policy} it must be {wanted}")


def _empty(policy: Policy, info: LayerInfo, slots: int, budget: Any, dtype: Any) -> LayerState:
    cache = jnp.zeros((info.config.num_kv_heads, slots, info.config.head_dim), dtype)
    return LayerState(
        keys=cache,
        values=cache,
        positions=jnp.full((info.rows, slots), EMPTY, jnp.int32),
        stats=init_stats(policy, info.rows, slots),
        budget=as_budget(policy, info.rows, slots, budget),
        row_stats=init_row_stats(policy, info),
        pinned=jnp.zeros((), jnp.int32) if policy.prompt else None,
    )


def as_budget(policy: Policy, rows: int, slots: int, budget: Any) -> Int[Array, "*K"]:
    """A budget as int32; a traced one may lie outside what the slots can hold."""
    return jnp.clip(jnp.asarray(budget).astype(jnp.int32), 1, largest_budget(policy, slots, rows))


def init_stats(policy: Policy, rows: int, slots: int) -> Any:
    """The statistics of free slots, with a dtype of their own, as they will come back from a step."""
    return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), policy.init(rows, slots))


def init_row_stats(policy: Policy, info: LayerInfo) -> Any:
    """The statistics of rows before the first token, as `init_stats`."""
    return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), policy.init_rows(info))


def _layer_slots(policy: Policy, rows: int, budgets: Sequence[Any], slots: Slots | None) -> list[int]:
    known = [concrete(value) for value in budgets]
    if slots is None:
        if any(value is None for value in known):
            raise ValueError("slots is missing; it must be given where the budget is traced")
        return [slots_for(policy, int(value.max()), rows) for value in known if value is not None]
    if isinstance(slots, Sequence | np.ndarray):
        given = list(slots)
    else:
        given = [slots] * len(budgets)
    if len(given) != len(budgets):
        raise ValueError(f"slots has {len(given)} entries; it must be one number or {len(budgets)}, one per layer")
    counts = [check_int("slots", count, slots_for(policy, 1, rows), MAX_BUDGET + 1) for count in given]
    for value, count in zip(known, counts, strict=True):
        if value is not None:
            check_slots(policy, rows, int(value.max()), count, f"there are {count} slots")
    return counts


def check_slots(policy: Policy, rows: int, budget: int, slots: int, there_are: str) -> None:
    """Refuses a budget for which there are not enough slots."""
    if slots_for(policy, budget, rows) > slots:
        most = f"slots - {policy.every}" if policy.adaptive is None else str(largest_budget(policy, slots, rows))
        raise ValueError(f"budget is {budget}, but {there_are}; it must be at most {most}")


def write_token(
    policy: Policy,
    layer: LayerState,
    key: Float[Array, "K H"],
    value: Float[Array, "K H"],
    position: Int[Array, ""],
    born: Any = None,
) -> tuple[LayerState, Int[Array, "#K"]]:
    """Puts a token into the first free slot of every row and returns which slot that was.

    A token at position EMPTY (padding) leaves the slot free: what it writes is a leftover.

    Args:
      born: the statistics that it comes with, leaves [#K, ...]; None for those of every new token.
    """
    free = jnp.argmax(layer.positions == EMPTY, axis=1).astype(jnp.int32)  # [#K]
    here = jnp.arange(layer.num_slots, dtype=jnp.int32)[None] == free[:, None]  # [#K, S]
    dtype = layer.keys.dtype
    keys = write_slots((layer.keys, key.astype(dtype)), free)
    values = write_slots((layer.values, value.astype(dtype)), free)
    layer = layer.replace(keys=keys, values=values)
    fresh = policy.init(layer.num_rows, layer.num_slots)
    fresh = fresh if born is None else jax.tree.map(lambda leaf: leaf[:, None], born)
    return mark_held(layer, here, position, fresh), free


def mark_held(layer: LayerState, here: Bool[Array, "#K S"], position: Int[Array, ""], fresh: Any) -> LayerState:
    """A token at `position` holds the slots marked by `here`, with fresh statistics, leaves [#K, S or 1, ...]."""
    return layer.replace(
        positions=jnp.where(here, position, layer.positions),
        stats=jax.tree.map(
            lambda new, old: jnp.where(expand_like(here, old), new.astype(old.dtype), old), fresh, layer.stats
        ),
    )


def hold_next(
    policy: Policy, layer: LayerState, slot: Int[Array, ""], position: Int[Array, ""]
) -> tuple[LayerState, Bool[Array, "#K S"]]:
    """The layer with a token whose key and value stand in `slot` already, and what that token sees."""
    newest = lax.broadcasted_iota(jnp.int32, layer.positions.shape, 1) == slot
    # Where tokens come with statistics of their own, `append_tokens` has put them there.
    fresh = layer.stats if policy.inits_tokens else policy.init(layer.num_rows, layer.num_slots)
    layer = mark_held(layer, newest, position, fresh)
    # The newest token is visible even where it is padding, whose row is thrown away but must stay finite.
    return layer, newest | (layer.positions != EMPTY)


def grow_slots(policy: Policy, layer: LayerState, extra: int) -> LayerState:
    """The same layer with `extra` more free slots."""
    heads, _, width = layer.keys.shape
    nothing = jnp.zeros((extra, heads, width), layer.keys.dtype)
    return append_tokens(policy, layer, nothing, nothing)


def append_tokens(
    policy: Policy, layer: LayerState, keys: Float[Array, "T K H"], values: Float[Array, "T K H"], born: Any = None
) -> LayerState:
    """The same layer with T more slots, which are free but have keys and values.

    Args:
      born: the statistics that they come with, leaves [#K, T, ...]; None for those of every free slot.
    """
    count = keys.shape[0]
    fresh = policy.init(layer.num_rows, count) if born is None else born
    free = jnp.full((layer.num_rows, count), EMPTY, jnp.int32)

    def join(old: Array, new: Array) -> Array:
        return jnp.concatenate([old, new.astype(old.dtype)], axis=1)

    return layer.replace(
        keys=join(layer.keys, jnp.moveaxis(keys, 0, 1)),
        values=join(layer.values, jnp.moveaxis(values, 0, 1)),
        positions=join(layer.positions, free),
        stats=jax.tree.map(join, layer.stats, fresh),
    )


def settle(before: LayerState, layer: LayerState) -> LayerState:
    """The slots of `layer` that `before` has: tokens held in later ones move into free ones, and must fit.

    Keys and values are written into those of `before`, where they stand.

    Args:
      layer: `before` after `append_tokens`, with other positions and statistics.
    """
    slots, count = before.num_slots, layer.num_slots - before.num_slots
    free = layer.positions[:, :slots] == EMPTY  # [#K, S]
    arrived = layer.positions[:, slots:] != EMPTY  # [#K, T]
    # The n-th token that arrived takes the n-th free slot.
    order = jnp.argsort(~free, axis=1, stable=True).astype(jnp.int32)  # [#K, S]
    turn = jnp.cumsum(arrived, axis=1, dtype=jnp.int32) - 1  # [#K, T]
    place = jnp.take_along_axis(order, jnp.clip(turn, 0, slots - 1), axis=1)
    nowhere = slots + jnp.arange(count, dtype=jnp.int32)[None]
    place = jnp.where(arrived, place, nowhere)

    def move(leaf: Array) -> Array:
        return write_slots((leaf[:, :slots], leaf[:, slots:]), place)

    return layer.replace(
        keys=write_slots((before.keys, layer.keys[:, slots:]), place),
        values=write_slots((before.values, layer.values[:, slots:]), place),
        positions=move(layer.positions),
        stats=jax.tree.map(move, layer.stats),
    )


def shrink_slots(layer: LayerState, slots: int) -> LayerState:
    """The same layer with `slots` slots; those held come first, oldest first, and must fit."""
    free = layer.positions == EMPTY  # [#K, S]
    order = jnp.argsort(jnp.where(free, jnp.iinfo(jnp.int32).max, layer.positions), axis=1)
    return _take(layer, order[:, :slots])


def _take(layer: LayerState, source: Int[Array, "#K S"]) -> LayerState:
    """The same layer with the slots that `source` names."""

    return layer.replace(
        keys=take_slots(layer.keys, source),
        values=take_slots(layer.values, source),
        positions=take_slots(layer.positions, source),
        stats=jax.tree.map(lambda leaf: take_slots(leaf, source), layer.stats),
    )
