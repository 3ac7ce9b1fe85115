"""What a layer does with many tokens at once, exactly as one after the other."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from msrnn_jax.compress import worth
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

    Scores that depend on the token alone order all candidates once and for all, the protected sinks before
    the others. Freeing the last in this order whenever one too many is held keeps the first ones of those
    seen so far; so a candidate is held as long as fewer than `budget` others that rank before it were seen.
    """
    count, slots = moment.token.shape[0], layer.num_slots - moment.token.shape[0]
    born = jnp.broadcast_to(moment.position[None], (layer.num_rows, count))
    before = (layer.positions != EMPTY).sum(axis=1, dtype=jnp.int32)  # [#K]
    layer = layer.replace(positions=jnp.concatenate([layer.positions[:, :slots], born], axis=1))
    held = layer.positions != EMPTY  # [#K, M]
    index = jnp.arange(layer.num_slots, dtype=jnp.int32)
    seen = (index < slots)[None] | (index[None] - slots <= jnp.arange(count, dtype=jnp.int32)[:, None])  # [T, M]
    if moment.forgetting:
        # A state that holds more than its budget stays as large: a step frees one slot at most.
        limit = jnp.maximum(layer.budget, before)[:, None, None]  # [#K, 1, 1]
        better = _order(policy, layer, moment.seen[-1])  # [#K, M, M]
        # Counts of at most M are exact in float32, and so are zeros and ones in whatever a product rounds to.
        ahead = jnp.einsum("tm,kmj->ktj", seen.astype(jnp.float32), better.astype(jnp.float32))  # [#K, T, M]
        stays = (ahead < limit.astype(jnp.float32)) & seen[None] & held[:, None]  # [#K, T, M], after each token
    else:
        stays = seen[None] & held[:, None]
    start = held & (index < slots)[None]
    newest = index[None] - slots == jnp.arange(count, dtype=jnp.int32)[:, None]  # [T, M]
    visible = jnp.concatenate([start[:, None], stays[:, :-1]], axis=1) | newest[None]  # [#K, T, M]
    return layer.replace(positions=jnp.where(stays[:, -1], layer.positions, EMPTY)), visible


def _order(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> Bool[Array, "#K M M"]:
    """[i, j]: slot i is held and outlives slot j by (protected, score, position)."""
    score, eligible = worth(policy, layer, t)
    held = layer.positions != EMPTY
    result = layer.positions[:, :, None] > layer.positions[:, None, :]
    for key in (score, (held & ~eligible).astype(jnp.int32)):
        left, right = key[:, :, None], key[:, None, :]
        result = (left > right) | ((left == right) & result)
    return result & held[:, :, None]


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
