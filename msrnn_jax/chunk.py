"""What a layer does with many tokens at once, exactly as one after the other."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from msrnn_jax.compress import worth
from msrnn_jax.config import Config
from msrnn_jax.layers import attention_logits, mix, softmax
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
    slots = layer.num_slots
    layer = append(policy, layer, key, value)
    grouped = query.reshape(*key.shape[:2], -1, query.shape[2])  # [T, K, G, H]
    if _is_closed(policy, moment):
        layer, visible = _hold(policy, layer, moment)
        probs = softmax(attention_logits(grouped, layer.keys), visible)
    else:
        layer, probs = _scan(config, policy, layer, query, grouped, moment, index)
    mixed = mix(probs, layer.values)
    return settle(layer, slots), mixed.reshape(query.shape)


def _is_closed(policy: Policy, moment: Moment) -> bool:
    """Whether what is held can be said without looking at attention."""
    blind = type(policy).observe is Policy.observe
    known = not moment.forgetting or (policy.static and policy.recent == 0)
    return blind and known and moment.mode == "absolute"


def _hold(policy: Policy, layer: LayerState, moment: Moment) -> tuple[LayerState, Bool[Array, "T #K M"]]:
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
    layer = layer.replace(positions=jnp.where(stays[:, -1], layer.positions, EMPTY))
    return layer, jnp.moveaxis(visible, 0, 1)


def _order(policy: Policy, layer: LayerState, t: Int[Array, ""]) -> Bool[Array, "#K M M"]:
    """[i, j]: slot i is held and outlives slot j by (protected, score, position)."""
    score, eligible = worth(policy, layer, t)
    held = layer.positions != EMPTY
    result = layer.positions[:, :, None] > layer.positions[:, None, :]
    for key in (score, (held & ~eligible).astype(jnp.int32)):
        left, right = key[:, :, None], key[:, None, :]
        result = (left > right) | ((left == right) & result)
    return result & held[:, :, None]


def _scan(
    config: Config,
    policy: Policy,
    layer: LayerState,
    query: Float[Array, "T N H"],
    grouped: Float[Array, "T K G H"],
    moment: Moment,
    index: int,
) -> tuple[LayerState, Float[Array, "T K G M"]]:
    """What every token attends to, one after the other, and what is held after the last."""
    count, total = moment.token.shape[0], layer.num_slots
    absolute = moment.mode == "absolute"
    logits = attention_logits(grouped, layer.keys) if absolute else None  # [T, K, G, M]
    slot = jnp.arange(total - count, total, dtype=jnp.int32)

    def one(carry: tuple[Array, Array], row: tuple) -> tuple[tuple[Array, Array], Array]:
        slot, now, query, grouped, logits = row
        held = layer.replace(positions=carry[0], stats=carry[1])
        newest = jnp.broadcast_to(jnp.arange(total, dtype=jnp.int32)[None] == slot, held.positions.shape)
        held = occupy(policy, held, newest, now.position)
        if logits is None:
            logits = attention_logits(grouped, turn_keys(config, moment.mode, held.keys, held.positions))
        probs = softmax(logits, newest | (held.positions != EMPTY))
        held = judge(policy, held, probs, query, now, index)
        return (held.positions, held.stats), probs

    rows = (slot, moment.replace(angles=None), query, grouped, logits)
    (positions, stats), probs = lax.scan(one, (layer.positions, layer.stats), rows)
    return layer.replace(positions=positions, stats=stats), probs
