"""Making states, writing into slots, and changing how many slots there are."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.checks import (
    MAX_BUDGET,
    Budget,
    Count,
    check_dtype,
    check_policy,
    check_protection,
    concrete,
    layer_budgets,
    whole,
)
from msrnn_jax.config import Config
from msrnn_jax.policies import Policy
from msrnn_jax.state import EMPTY, POSITION_MODES, LayerState, MultiState


def init_state(
    config: Config,
    policy: Policy,
    budget: Budget,
    *,
    slots: Count | None = None,
    positions: str = "absolute",
    dtype: Any = None,
) -> MultiState:
    """An empty multi-state.

    Args:
      budget: the multi-state size: slots held after a step. One number or one per layer; may be traced.
      slots: S, static; at least budget + 1, since a query also sees the token just written. By default
        the largest budget + 1; must be given where the budget is traced, and serves every budget below it.
      positions: how positions are rotated; "absolute" is each token's place in the text.
      dtype: of keys and values; by default the config's.

    Raises:
      ValueError: for a budget below 1, above slots - 1 or below what the policy protects, for missing
        slots, for an unknown position mode or dtype.
    """
    check_policy(policy)
    if positions not in POSITION_MODES:
        raise ValueError(f"positions is {positions!r}; it must be one of {', '.join(POSITION_MODES)}")
    if positions != "absolute":
        raise ValueError(f"positions is {positions!r}; only 'absolute' is supported yet")
    budgets = layer_budgets(config.num_layers, budget)
    check_protection(policy, budgets)
    slots = _num_slots(budgets, slots)
    rows = 1 if policy.scope == "layer" else config.num_kv_heads
    cache = (config.num_kv_heads, slots, config.head_dim)
    dtype = check_dtype(config.dtype if dtype is None else dtype)
    layers = tuple(
        LayerState(
            keys=jnp.zeros(cache, dtype),
            values=jnp.zeros(cache, dtype),
            positions=jnp.full((rows, slots), EMPTY, jnp.int32),
            stats=policy.init(rows, slots),
            budget=jnp.clip(jnp.asarray(value).astype(jnp.int32), 1, slots - 1),  # a traced one may lie outside
        )
        for value in budgets
    )
    return MultiState(layers=layers, t=jnp.zeros((), jnp.int32), mode=positions)


def _num_slots(budgets: Sequence[Any], slots: Count | None) -> int:
    known = [int(value) for value in map(concrete, budgets) if value is not None]
    if slots is None:
        if len(known) < len(budgets):
            raise ValueError("slots is missing; it must be given where the budget is traced")
        return max(known) + 1
    slots = whole("slots", slots, 2, MAX_BUDGET + 1)
    if known and max(known) > slots - 1:
        raise ValueError(f"budget is {max(known)}, but there are {slots} slots; it must be at most slots - 1")
    return slots


def write(
    policy: Policy,
    layer: LayerState,
    key: Float[Array, "K H"],
    value: Float[Array, "K H"],
    position: Int[Array, ""],
) -> tuple[LayerState, Int[Array, "#K"]]:
    """Puts a token into the first free slot of every row and returns which slot that was.

    A token at position EMPTY (padding) leaves the slot free: what it writes is a leftover.
    """
    free = jnp.argmax(layer.positions == EMPTY, axis=1).astype(jnp.int32)  # [#K]
    here = jnp.arange(layer.num_slots, dtype=jnp.int32)[None] == free[:, None]  # [#K, S]
    fresh = policy.init(layer.num_rows, layer.num_slots)
    layer = layer.replace(
        keys=_put(layer.keys, key, free),
        values=_put(layer.values, value, free),
        positions=jnp.where(here, position, layer.positions),
        stats=jax.tree.map(
            lambda new, old: jnp.where(_like(here, old), new.astype(old.dtype), old), fresh, layer.stats
        ),
    )
    return layer, free


def _put(cache: Float[Array, "K S H"], row: Float[Array, "K H"], slot: Int[Array, "#K"]) -> Float[Array, "K S H"]:
    """One row into every head's slot.

    An indexed write for one shared slot too: a slice update, the other spelling, makes XLA copy the whole
    cache under `vmap` over a batch of one.
    """
    heads = jnp.arange(cache.shape[0], dtype=jnp.int32)
    return jnp.asarray(cache).at[heads, jnp.broadcast_to(slot, heads.shape)].set(row.astype(cache.dtype))


def _like(mask: Array, leaf: Array) -> Array:
    """A [#K, S] mask with as many trailing axes as the leaf [#K, S, ...]."""
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - 2))


def grow(policy: Policy, layer: LayerState, extra: int) -> LayerState:
    """The same layer with `extra` more free slots."""
    fresh = policy.init(layer.num_rows, extra)

    def pad(leaf: Array, value: int) -> Array:
        shape = (leaf.shape[0], extra, *leaf.shape[2:])
        return jnp.concatenate([leaf, jnp.full(shape, value, leaf.dtype)], axis=1)

    return layer.replace(
        keys=pad(layer.keys, 0),
        values=pad(layer.values, 0),
        positions=pad(layer.positions, EMPTY),
        stats=jax.tree.map(lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], axis=1), layer.stats, fresh),
    )


def cut(layer: LayerState, slots: int) -> LayerState:
    """The same layer with `slots` slots; those held come first, oldest first, and must fit."""
    free = layer.positions == EMPTY  # [#K, S]
    order = jnp.argsort(jnp.where(free, jnp.iinfo(jnp.int32).max, layer.positions), axis=1)[:, :slots]  # [#K, slots]

    def take(leaf: Array) -> Array:
        chosen = order.reshape(order.shape + (1,) * (leaf.ndim - 2))
        return jnp.take_along_axis(leaf, chosen, axis=1)

    return layer.replace(
        keys=take(layer.keys),
        values=take(layer.values),
        positions=take(layer.positions),
        stats=jax.tree.map(take, layer.stats),
    )
