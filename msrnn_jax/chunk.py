"""What a layer does with many tokens at once, exactly as one after the other."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from msrnn_jax.compress import turn_to_go
from msrnn_jax.config import Config
from msrnn_jax.layers import match, mix, softmax
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence import judge
from msrnn_jax.rotary import turn_keys
from msrnn_jax.slots import append, occupy, settle
from msrnn_jax.state import EMPTY, LayerState, Moment


def remember_all(
    config: Config,
    policy: Policy,
    layer: LayerState,
    query: Float[Array, "T N H"],
    key: Float[Array, "T K H"],
    value: Float[Array, "T K H"],
    moment: Moment,
    index: int,
) -> tuple[LayerState, Float[Array, "T N H"]]:
    """`remember` for T tokens.

    The candidates are the S slots and the T new tokens. Only which of them are held couples one token to the
    next, so the products with keys and values are done for all tokens together, and what is left is a
    recurrence over masks and statistics that touches neither weights nor, in the mode "absolute", keys.
    """
    count, slots = moment.token.shape[0], layer.num_slots
    layer = append(policy, layer, key, value)
    grouped = jnp.moveaxis(query.reshape(count, key.shape[1], -1, query.shape[2]), 0, 1)  # [K, T, G, H]
    products = match(grouped, layer.keys) if moment.mode == "absolute" else None  # [K, T, G, M]
    if _is_closed(policy, moment):
        layer, visible = _hold(policy, layer, moment)
    else:
        layer, visible, products = _watch(config, policy, layer, query, products, moment, index)
    probs = softmax(products, visible, query.shape[2])
    mixed = jnp.moveaxis(mix(probs, layer.values), 0, 1)  # [T, K, G, H]
    return settle(layer, slots), mixed.reshape(query.shape)


def _is_closed(policy: Policy, moment: Moment) -> bool:
    """Whether what is held can be said without stepping."""
    blind = type(policy).observe is Policy.observe
    known = not moment.forgetting or (policy.static and policy.recent == 0)
    return blind and known and moment.mode == "absolute"


def _hold(policy: Policy, layer: LayerState, moment: Moment) -> tuple[LayerState, Bool[Array, "#K T M"]]:
    """What every token sees, in closed form, and what is held after the last.

    Scores that depend on the token alone order all candidates once and for all. Freeing the first in this order
    whenever one too many is held keeps the last ones of those seen so far; so a candidate is held as long as
    fewer than `budget` of those seen would go after it.
    """
    count, slots = moment.token.shape[0], layer.num_slots - moment.token.shape[0]
    before = (layer.positions != EMPTY).sum(axis=1, dtype=jnp.int32)  # [#K]
    born = jnp.broadcast_to(moment.position[None], (layer.num_rows, count))
    layer = layer.replace(positions=jnp.concatenate([layer.positions[:, :slots], born], axis=1))
    held = layer.positions != EMPTY  # [#K, M]
    slot, step = jnp.arange(layer.num_slots, dtype=jnp.int32)[None], jnp.arange(count, dtype=jnp.int32)[:, None]
    stays = held[:, None] & (slot <= slots + step)[None]  # [#K, T, M], after each token
    if moment.forgetting:
        # A state that holds more than its budget stays as large: a step frees one slot at most.
        limit = jnp.maximum(layer.budget, before)[:, None, None]  # [#K, 1, 1]
        stays = stays & (_outlived_by(policy, layer, moment) < limit)
    start = jnp.broadcast_to((held & (slot < slots))[:, None], (layer.num_rows, 1, layer.num_slots))
    # The newest token is visible even where it is padding, whose row is thrown away but must stay finite.
    visible = jnp.concatenate([start, stays[:, :-1]], axis=1) | (slot == slots + step)[None]  # [#K, T, M]
    return layer.replace(positions=jnp.where(stays[:, -1], layer.positions, EMPTY)), visible


def _outlived_by(policy: Policy, layer: LayerState, moment: Moment) -> Int[Array, "#K T M"]:
    """How many of the candidates seen up to each token would go after each candidate."""
    count = moment.token.shape[0]
    turn = turn_to_go(policy, layer, moment.seen[-1])  # [#K, M]
    held = layer.positions != EMPTY
    new = held[:, -count:, None] & (turn[:, -count:, None] > turn[:, None, :])  # [#K, T, M]: [i, j], i goes after j
    every = held.sum(axis=1, keepdims=True, dtype=jnp.int32) - 1 - turn  # [#K, M], with all of the chunk seen
    unseen = jnp.triu(jnp.ones((count, count), jnp.float32), 1)  # [T, T]: [t, i], i comes after t
    # Counts up to T are exact in float32, and zeros and ones in whatever a product rounds to.
    later = jnp.einsum("ti,kim->ktm", unseen, new.astype(jnp.float32), preferred_element_type=jnp.float32)
    return every[:, None] - later.astype(jnp.int32)


def _watch(
    config: Config,
    policy: Policy,
    layer: LayerState,
    query: Float[Array, "T N H"],
    products: Float[Array, "K T G M"] | None,
    moment: Moment,
    index: int,
) -> tuple[LayerState, Bool[Array, "#K T M"], Float[Array, "K T G M"]]:
    """What every token sees, by stepping over masks and statistics, and what is held after the last.

    Probabilities are computed here only as far as the policy looks at them, and once more for all tokens together:
    that is cheaper than keeping them, and leaves nothing to differentiate here but statistics.

    Args:
      products: None where they depend on what is held, and are computed and returned from here.
    """
    count, total = moment.token.shape[0], layer.num_slots
    steps = jnp.arange(count, dtype=jnp.int32)
    # How many are held before each token is known: one more for every token up to the budget, and if there were
    # more from the start, as many as then.
    before = (layer.positions != EMPTY).sum(axis=1, dtype=jnp.int32)[None]  # [1, #K]
    over = jnp.minimum(before + steps[:, None], jnp.maximum(layer.budget, before)) >= layer.budget  # [T, #K]

    def one(carry: tuple[Array, Any], row: tuple) -> tuple[tuple[Array, Any], tuple[Array, Array | None]]:
        step, now, over, query = row
        held = layer.replace(positions=carry[0], stats=carry[1])
        newest = jnp.arange(total, dtype=jnp.int32)[None] == total - count + step
        newest = jnp.broadcast_to(newest, held.positions.shape)
        held = occupy(policy, held, newest, now.position)
        if products is None:
            grouped = query.reshape(layer.keys.shape[0], -1, query.shape[1])
            mine = match(grouped, turn_keys(config, moment.mode, held.keys, held.positions))
        else:
            mine = lax.dynamic_index_in_dim(products, step, axis=1, keepdims=False)
        visible = newest | (held.positions != EMPTY)
        held = judge(policy, held, softmax(mine, visible, query.shape[1]), query, now, index, over)
        return (held.positions, held.stats), (visible, mine if products is None else None)

    rows = (steps, moment.replace(angles=None), over, query)
    (positions, stats), (visible, turned) = lax.scan(one, (layer.positions, layer.stats), rows)
    products = jnp.moveaxis(turned, 0, 1) if products is None else products
    return layer.replace(positions=positions, stats=stats), jnp.moveaxis(visible, 0, 1), products
