"""A layer that reads made-up tokens: what `check_contract` shows a policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from msrnn_jax.config import Config, at_least_float32
from msrnn_jax.policies import Policy
from msrnn_jax.policies.budgets import rows_for
from msrnn_jax.recurrence.checks import layer_info
from msrnn_jax.recurrence.indexing import take_slots
from msrnn_jax.recurrence.slots import grow_slots, write_token
from msrnn_jax.state import EMPTY, Arrival, LayerState, View

PINNED = 2  # tokens of a prompt that is kept
SLOTS, BUDGET, COUNT = 8, 5, 10  # more slots than are ever held, so that some are free and have leftovers
SPIKES = (3, 8)  # tokens that attend to one token alone: the others get exactly 0
TRIED = (0, 4, 8, 9)  # tokens after which slots are varied: nearly all are free, none was freed yet, ties, all else

Arrive = Callable[[LayerState, Arrival], Any]
Observe = Callable[[LayerState, View], LayerState]


class Situation(NamedTuple):
    """A layer right after a token's attention, when `observe` is due."""

    layer: LayerState  # with the token in its slot, and the statistics of before
    view: View
    arrival: Arrival  # the token before it was written


def situations(
    config: Config, policy: Policy, start: int, index: int, arrive: Arrive, observe: Observe
) -> list[Situation]:
    """What one layer goes through while it reads a few tokens.

    It writes as the engine does. Which token goes is made up as well, so that holes come anywhere and, where
    every head forgets for itself, elsewhere in every row. Probabilities are multiples of 1 / 64, keys and values
    of 1 / 4: sums of them are exact in any order, and many are equal.

    Args:
      start: position of the first token.
      index: of the layer.
      arrive: makes the statistics that a token comes with, None for those of every new one.
      observe: makes the layer with the statistics after a token of the one with those before it.
    """
    random, more = np.random.default_rng(0), np.random.default_rng(1)
    layer, seen = _empty(config, policy, index), []
    for step in range(COUNT):
        t = jnp.int32(start + step)
        key, value = (_numbers(random, (config.num_kv_heads, config.head_dim), config.dtype) for _ in range(2))
        token, hidden = jnp.int32(more.integers(config.vocab_size)), _numbers(more, (config.model_dim,), config.dtype)
        arrival = Arrival(t, token, key, value, hidden, index)
        layer, _ = write_token(policy, layer, key, value, t, arrive(layer, arrival))
        view = View(
            probs=_probs(config, random, layer, step in SPIKES),
            positions=layer.positions,
            t=t,
            token=token,
            queries=_numbers(random, (config.num_heads, config.head_dim), config.dtype),
            keys=layer.keys,
            values=layer.values,
            layer=index,
            hidden=hidden,
        )
        seen.append(Situation(layer, view, arrival))
        layer = observe(layer, view)
        layer = layer.replace(positions=_free_one(layer.positions, step))
    return seen


def reorder(situation: Situation, source: Int[Array, "#K S"]) -> Situation:
    """The same with the slots that `source` names, in every row its own."""
    layer, view, _ = situation
    probs = jnp.moveaxis(take_slots(jnp.moveaxis(view.probs, 2, 1), source), 1, 2)
    layer = layer.replace(
        keys=take_slots(layer.keys, source),
        values=take_slots(layer.values, source),
        positions=take_slots(layer.positions, source),
        stats=jax.tree.map(lambda leaf: take_slots(leaf, source), layer.stats),
    )
    return _shown(situation, layer, view.replace(probs=probs))


def with_other_leftovers(situation: Situation) -> Situation:
    """The same but for free slots: they hold other keys and values, and statistics of the oldest token."""
    layer, view, _ = situation
    free = layer.positions == EMPTY  # [#K, S]
    ages = jnp.where(free, jnp.iinfo(jnp.int32).max, layer.positions)
    oldest = jnp.broadcast_to(jnp.argmin(ages, axis=1, keepdims=True).astype(jnp.int32), free.shape)  # [#K, S]

    def change(leaf: Array, other: Array) -> Array:
        rows = jnp.broadcast_to(free, (leaf.shape[0], free.shape[1]))
        return jnp.where(rows.reshape(rows.shape + (1,) * (leaf.ndim - 2)), other, leaf)

    return _shown(
        situation,
        layer.replace(
            keys=change(layer.keys, 3 - layer.keys),
            values=change(layer.values, 3 - layer.values),
            stats=jax.tree.map(lambda leaf: change(leaf, take_slots(leaf, oldest)), layer.stats),
        ),
        view,
    )


def with_more_slots(policy: Policy, situation: Situation, count: int) -> Situation:
    """The same with `count` more free slots."""
    layer, view, _ = situation
    probs = jnp.pad(view.probs, ((0, 0), (0, 0), (0, count)))
    return _shown(situation, grow_slots(policy, layer, count), view.replace(probs=probs))


def _shown(before: Situation, layer: LayerState, view: View) -> Situation:
    shown = view.replace(positions=layer.positions, keys=layer.keys, values=layer.values)
    return before._replace(layer=layer, view=shown)


def _empty(config: Config, policy: Policy, index: int) -> LayerState:
    # Not by `init_state`, which would refuse a policy that protects more tokens than are held here.
    rows = rows_for(policy, config.num_kv_heads)
    cache = jnp.zeros((config.num_kv_heads, SLOTS, config.head_dim), config.dtype)
    return LayerState(
        keys=cache,
        values=cache,
        positions=jnp.full((rows, SLOTS), EMPTY, jnp.int32),
        stats=policy.init(rows, SLOTS),
        budget=jnp.int32(BUDGET),
        row_stats=policy.init_rows(layer_info(config, index, rows, "absolute")),
        pinned=jnp.int32(PINNED) if policy.prompt else None,
        index=index,
    )


def _numbers(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return jnp.asarray(random.integers(-8, 9, shape) / 4, dtype)


def _probs(config: Config, random: np.random.Generator, layer: LayerState, spike: bool) -> Array:
    """Attention probabilities [K, G, S] over what is held."""
    held = np.broadcast_to(np.asarray(layer.positions) != EMPTY, (config.num_kv_heads, SLOTS))
    probs = np.zeros((config.num_kv_heads, config.group_size, SLOTS))
    for head, slots in enumerate(held):
        places = np.flatnonzero(slots)
        even = np.full(len(places), 1 / len(places))
        one = np.eye(len(places))[random.integers(len(places))]
        probs[head][:, places] = random.multinomial(64, one if spike else even, config.group_size) / 64
    return jnp.asarray(probs, at_least_float32(config.dtype))


def _free_one(positions: Array, step: int) -> Array:
    """Frees a slot of every row that holds more than the budget, of another age in every step and row."""
    freed = np.array(positions)
    for number, row in enumerate(freed):
        held = np.flatnonzero(row != EMPTY)
        if len(held) > BUDGET:
            row[held[(5 * step + 2 * number) % len(held)]] = EMPTY
    return jnp.asarray(freed)
