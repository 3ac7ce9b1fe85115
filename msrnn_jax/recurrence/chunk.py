"""What a layer does with many tokens at once, exactly as one after the other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from msrnn_jax.config import Config
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.attention import attention_logits, softmax, weighted_values
from msrnn_jax.recurrence.eviction import eviction_order
from msrnn_jax.recurrence.kernel import Kernel, step_through
from msrnn_jax.recurrence.kernel_choice import kernels_for
from msrnn_jax.recurrence.positions import Frame, close_gaps, make_frame, place_token
from msrnn_jax.recurrence.sliding_window import visible_in_window, window_in
from msrnn_jax.recurrence.slots import append_tokens, hold_next, settle
from msrnn_jax.recurrence.step import bias_of, born_with, observe_and_forget
from msrnn_jax.state import EMPTY, LayerState, StepContext


def attend_chunk(
    config: Config,
    policy: Policy,
    layer: LayerState,
    query: Float[Array, "T N H"],
    key: Float[Array, "T K H"],
    value: Float[Array, "T K H"],
    context: StepContext,
    index: int,
) -> tuple[LayerState, Float[Array, "T N H"]]:
    """`attend` for T tokens.

    The candidates are the S slots and the T new tokens. Only which of them are held couples one token to the
    next, so the products with keys and values are done for all tokens together, and what is left is a
    recurrence over masks and statistics that touches neither weights nor, in the mode "absolute", keys.
    In the other modes it also turns keys to their places (see `Frame`).
    """
    window = window_in(config, context.mode, index, forgetting=context.forgetting)
    count, before = context.token.shape[0], layer
    # What padding is worth has probability 0, and must be finite to count for nothing.
    value = jnp.where((context.position != EMPTY)[:, None, None], value, jnp.zeros_like(value))
    born = all_born_with(policy, layer, value, context, index)
    context = context.replace(key=None)  # which nobody else asks for
    layer = append_tokens(policy, layer.replace(index=index), key, value, born)
    grouped = jnp.moveaxis(query.reshape(count, key.shape[1], -1, query.shape[2]), 0, 1)  # [K, T, G, H]
    if context.mode == "absolute" or not config.rotates(index):
        products = attention_logits(grouped, layer.keys)  # [K, T, G, M]
        hold = _hold_in_closed_form if _has_closed_form(policy, context, window) else _step_through
        layer, visible, bias = hold(policy, layer, context, query, products, index, window)
    else:
        frame = make_frame(config, context.mode, context.angles, before, count)
        layer, visible, bias, products = _scan_masks_and_keys(
            config, policy, layer, frame, query, key, context, index, window
        )
    probs = softmax(products, visible, query.shape[2], bias)
    mixed = jnp.moveaxis(weighted_values(probs, layer.values).astype(query.dtype), 0, 1)  # [T, K, G, H]
    return settle(before, layer).replace(index=0), mixed.reshape(query.shape)


def all_born_with(
    policy: Policy, layer: LayerState, value: Float[Array, "T K H"], context: StepContext, index: int
) -> Any:
    """The statistics that the tokens come with, leaves [#K, T, ...]; None for those that every new one has."""
    if not policy.inits_tokens:
        return None
    one = partial(born_with, policy, layer, index=index)
    return jax.vmap(one, out_axes=1)(value, context.replace(angles=None))


def _has_closed_form(policy: Policy, context: StepContext, window: int | None) -> bool:
    """Whether what will be held can be said without looking at probabilities."""
    # Where a policy observes, scores may depend on what it did in this chunk. Where tokens expire, the order in
    # which they would go does not say which of them still make others go.
    static = policy.static and not policy.observes and policy.recent == 0
    static = static and policy.adaptive is None and not policy.revises
    known = not context.forgetting or (static and window is None)
    return known and not (policy.biases and policy.observes)  # then biases may depend on what was observed


def _arrived(layer: LayerState, context: StepContext) -> Int[Array, "#K M"]:
    """The positions of all candidates, as if all were held."""
    count = context.token.shape[0]
    born = jnp.broadcast_to(context.position[None], (layer.num_rows, count))
    return jnp.concatenate([layer.positions[:, :-count], born], axis=1)


def _sight(layer: LayerState, context: StepContext, window: int | None) -> Bool[Array, "#K T M"] | None:
    """What the window lets every token see; None where nothing is held that it hides."""
    if window is None or context.forgetting:
        return None
    count = context.token.shape[0]
    slots = jnp.arange(layer.num_slots - count, layer.num_slots, dtype=jnp.int32)
    queries = jnp.broadcast_to(slots[None], (layer.num_rows, count))
    return visible_in_window(context.mode, _arrived(layer, context), queries, window)


def _hold_in_closed_form(
    policy: Policy,
    layer: LayerState,
    context: StepContext,
    query: Float[Array, "T N H"],
    products: Float[Array, "K T G M"],
    index: int,
    window: int | None,
) -> tuple[LayerState, Bool[Array, "#K T M"], Float[Array, "#K T M"] | None]:
    """`_scan_masks` where it is known what every token sees: nothing is left to step over but statistics, if any."""
    arrived, sight = _arrived(layer, context), _sight(layer, context, window)
    positions, present = _hold(policy, layer.replace(positions=arrived), context)
    visible = present if sight is None else present & sight
    if not policy.observes:
        return layer.replace(positions=positions), visible, _biases(policy, layer, context, arrived, present)
    probs = softmax(products, visible, query.shape[2])  # XLA merges it with that of `attend_chunk`

    def one(carry: tuple[Any, Any], row: tuple) -> tuple[tuple[Any, Any], None]:
        step, slot, now, _, query = row
        mine = lax.dynamic_index_in_dim(probs, step, axis=1, keepdims=False)  # [K, G, M]
        there = lax.dynamic_index_in_dim(present, step, axis=1, keepdims=False)  # [#K, M]
        stats, row_stats = carry
        held = layer.replace(positions=jnp.where(there, arrived, EMPTY), stats=stats, row_stats=row_stats)
        held, _ = hold_next(policy, held, slot, now.position)
        held = observe_and_forget(policy, held, mine, query, now.replace(forgetting=False), index, None, None)
        return (held.stats, held.row_stats), None

    (stats, row_stats), _ = lax.scan(one, (layer.stats, layer.row_stats), _rows(policy, layer, context, query))
    return layer.replace(positions=positions, stats=stats, row_stats=row_stats), visible, None


def _biases(
    policy: Policy,
    layer: LayerState,
    context: StepContext,
    arrived: Int[Array, "#K M"],
    present: Bool[Array, "#K T M"],
) -> Float[Array, "#K T M"] | None:
    """What is added to the logits of every token, where statistics do not depend on what was observed."""

    def one(held: Array, now: StepContext) -> Array | None:
        return bias_of(policy, layer.replace(positions=jnp.where(held, arrived, EMPTY)), now)

    return jax.vmap(one, in_axes=(1, 0), out_axes=1)(present, context.replace(angles=None))


def _hold(policy: Policy, layer: LayerState, context: StepContext) -> tuple[Int[Array, "#K M"], Bool[Array, "#K T M"]]:
    """What is held after the last token, in closed form, and what every token sees.

    Scores that depend on the token alone order all candidates once and for all. Freeing the first in this order
    whenever one too many is held keeps the last ones of those seen so far; so a candidate is held as long as
    fewer than `budget` of those seen would go after it. Where the policy cuts every b tokens, that holds at its cuts.

    Args:
      layer: as if it held all candidates.
    """
    count, slots = context.token.shape[0], layer.num_slots - context.token.shape[0]
    before = (layer.positions[:, :slots] != EMPTY).sum(axis=1, dtype=jnp.int32)  # [#K]
    held = layer.positions != EMPTY  # [#K, M]
    slot, step = jnp.arange(layer.num_slots, dtype=jnp.int32)[None], jnp.arange(count, dtype=jnp.int32)[:, None]
    stays = held[:, None] & (slot <= slots + step)[None]  # [#K, T, M], after each token
    if context.forgetting and policy.every > 1:
        stays = stays & _survives_cuts(policy, layer, context, before)
    elif context.forgetting:
        # A state that holds more than its budget stays as large: a step frees one slot at most.
        limit = jnp.maximum(layer.budget, before)[:, None, None]  # [#K, 1, 1]
        stays = stays & (_outlived_by(policy, layer, context) < limit)
    # A token is seen from one step to another, so two numbers say all: XLA would work out a whole mask for every head.
    first = jnp.where(slot >= slots, slot - slots, jnp.where(held, 0, count))  # [#K, M]
    last = jnp.maximum(slot - slots, 0) + stays.sum(axis=1, dtype=jnp.int32)
    # The newest token is visible even where it is padding, whose row is thrown away but must stay finite.
    visible = (first[:, None] <= step[None]) & (step[None] <= last[:, None])  # [#K, T, M]
    return jnp.where(stays[:, -1], layer.positions, EMPTY), visible


def _survives_cuts(
    policy: Policy, layer: LayerState, context: StepContext, before: Int[Array, " #K"]
) -> Bool[Array, "#K T M"]:
    """Which candidates are left, after each token, by the last cut before it.

    When a row is cut is known: first when it holds `budget + every`, and then after every so many tokens.
    """
    budget = jnp.broadcast_to(layer.budget, before.shape)[:, None]  # [#K, 1]
    read = jnp.cumsum(context.position != EMPTY, dtype=jnp.int32)[None]  # [1, T]
    first = jnp.maximum(budget + policy.every - before[:, None], 1)  # tokens read when the first cut comes
    last = first + (read - first) // policy.every * policy.every  # and the last one
    outlived = _outlived_by(policy, layer, context)
    then = jnp.take_along_axis(outlived, jnp.maximum(last - 1, 0)[:, :, None], axis=1)  # [#K, T, M]
    step = jnp.arange(layer.num_slots, dtype=jnp.int32) - (layer.num_slots - read.shape[1])  # [M], when it came
    later = step[None, None] >= last[:, :, None]
    return (read < first)[:, :, None] | later | (then < budget[:, :, None])


def _outlived_by(policy: Policy, layer: LayerState, context: StepContext) -> Int[Array, "#K T M"]:
    """How many of the candidates seen up to each token would go after each candidate."""
    count = context.token.shape[0]
    turn = eviction_order(policy, layer, context.seen[-1])  # [#K, M]
    held = layer.positions != EMPTY
    new = held[:, -count:, None] & (turn[:, -count:, None] > turn[:, None, :])  # [#K, T, M]: [i, j], i goes after j
    every = held.sum(axis=1, keepdims=True, dtype=jnp.int32) - 1 - turn  # [#K, M], with all of the chunk seen
    unseen = jnp.triu(jnp.ones((count, count), jnp.float32), 1)  # [T, T]: [t, i], i comes after t
    # Counts up to T are exact in float32, and zeros and ones in whatever a product rounds to.
    later = jnp.einsum("ti,kim->ktm", unseen, new.astype(jnp.float32), preferred_element_type=jnp.float32)
    return every[:, None] - later.astype(jnp.int32)


def _step_through(
    policy: Policy,
    layer: LayerState,
    context: StepContext,
    query: Float[Array, "T N H"],
    products: Float[Array, "K T G M"],
    index: int,
    window: int | None,
) -> tuple[LayerState, Bool[Array, "#K T M"], Float[Array, "#K T M"] | None]:
    """`_scan_masks`, on TPU and GPU as one kernel where that can do it (see `kernel_choice.why_not`).

    The kernel has no derivative: which slots are held has none, and that of statistics is the scan's.
    """
    args = layer, context.replace(angles=None), query, products

    def scan(
        layer: LayerState, context: StepContext, query: Array, products: Array, policy: Policy = policy
    ) -> tuple[Any, Array, Any]:
        layer, visible, bias = _scan_masks(policy, layer, context, query, products, index, window)
        return _carried(layer), visible, bias

    def made(kernel: Kernel) -> Callable[..., tuple[Any, Array, Any]]:
        slopes = partial(scan, policy=kernel.policy)  # which closes over no array

        @jax.custom_jvp
        def run(layer: LayerState, context: StepContext, query: Array, products: Array) -> tuple[Any, Array, Any]:
            del query
            positions, stats, visible = step_through(kernel, layer, context, products)
            return (positions, stats, None), visible, None  # `why_not` leaves what has more to the scan

        run.defjvp(lambda primals, tangents: (run(*primals), jax.jvp(slopes, primals, tangents)[1]))
        return run

    kernels = kernels_for(policy, layer, context, products, index, window, query.shape[2])
    platforms = {name: made(kernel) for name, kernel in kernels.items()}
    default = platforms.pop("default", scan)
    found = lax.platform_dependent(*args, **platforms, default=default) if kernels else scan(*args)
    carried, visible, bias = found
    return _with(layer, carried), visible, bias


def _carried(layer: LayerState) -> tuple[Array, Any, Any]:
    """What changes while a chunk is stepped through."""
    return layer.positions, layer.stats, layer.row_stats


def _with(layer: LayerState, carried: tuple[Array, Any, Any]) -> LayerState:
    return layer.replace(positions=carried[0], stats=carried[1], row_stats=carried[2])


def _scan_masks(
    policy: Policy,
    layer: LayerState,
    context: StepContext,
    query: Float[Array, "T N H"],
    products: Float[Array, "K T G M"],
    index: int,
    window: int | None,
) -> tuple[LayerState, Bool[Array, "#K T M"], Float[Array, "#K T M"] | None]:
    """What every token sees, by stepping over masks and statistics, and what is held after the last.

    Probabilities are computed here only as far as the policy looks at them, and once more for all tokens
    together: that is cheaper than keeping them, and leaves nothing to differentiate here but statistics and biases.
    """
    sight = _sight(layer, context, window)

    def one(carried: Any, row: tuple) -> tuple[Any, tuple[Array, Any]]:
        step, slot, now, due, query = row
        mine = lax.dynamic_index_in_dim(products, step, axis=1, keepdims=False)  # [K, G, M]
        held, visible = hold_next(policy, _with(layer, carried), slot, now.position)
        if sight is not None:
            visible = visible & lax.dynamic_index_in_dim(sight, step, axis=1, keepdims=False)
        bias = bias_of(policy, held, now)
        probs = softmax(mine, visible, query.shape[1], bias)
        held = observe_and_forget(policy, held, probs, query, now, index, due, window)
        return _carried(held), (visible, bias)

    carried, seen = lax.scan(one, _carried(layer), _rows(policy, layer, context, query))
    visible, bias = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), seen)
    return _with(layer, carried), visible, bias


def _scan_masks_and_keys(
    config: Config,
    policy: Policy,
    layer: LayerState,
    frame: Frame,
    query: Float[Array, "T N H"],
    key: Float[Array, "T K H"],
    context: StepContext,
    index: int,
    window: int | None,
) -> tuple[LayerState, Bool[Array, "#K T M"], Float[Array, "#K T M"] | None, Float[Array, "K T G M"]]:
    """`_scan_masks` where places depend on what is held: products of queries and keys are computed row by row."""
    sight = _sight(layer, context, window)

    def one(carry: tuple[Any, Frame], row: tuple) -> tuple[tuple[Any, Frame], tuple[Array, Any, Array]]:
        (step, slot, now, due, query), key = row
        carried, frame = carry
        held, visible = hold_next(policy, _with(layer, carried), slot, now.position)
        if sight is not None:
            visible = visible & lax.dynamic_index_in_dim(sight, step, axis=1, keepdims=False)
        grouped = query.reshape(key.shape[0], -1, query.shape[1])  # [K, G, H]
        frame, turned = place_token(config, context.mode, frame, slot, grouped, key, now.position)
        mine = attention_logits(turned, frame.keys)  # [K, G, M]
        bias = bias_of(policy, held, now)
        probs = softmax(mine, visible, query.shape[1], bias)
        after = observe_and_forget(policy, held, probs, query, now, index, due, window)
        frame = close_gaps(config, context.mode, frame, held.positions, after.positions, one=policy.one_by_one)
        return (_carried(after), frame), (visible, bias, mine)

    key = key.astype(layer.keys.dtype)  # as it will be found in its slot
    start = (_carried(layer), frame)
    (carried, _), seen = lax.scan(one, start, (_rows(policy, layer, context, query), key))
    visible, bias, products = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), seen)
    return _with(layer, carried), visible, bias, products


def _rows(
    policy: Policy, layer: LayerState, context: StepContext, query: Float[Array, "T N H"]
) -> tuple[Array, Array, StepContext, Array | None, Array]:
    """What each step over a chunk is told: its number, its slot, the token, which rows are due, the query.

    How many are held before each token is known where one goes at a time: one more for every token up to the budget,
    and if there were more from the start, as many as then. Elsewhere, as where tokens expire, `observe_and_forget`
    counts.
    """
    steps = jnp.arange(context.token.shape[0], dtype=jnp.int32)
    slots = layer.num_slots - steps.shape[0] + steps
    due = None
    if policy.one_by_one:
        before = (layer.positions != EMPTY).sum(axis=1, keepdims=True, dtype=jnp.int32)[None]  # [1, #K, 1]
        budget = layer.row_budgets if layer.budget.ndim == 0 else layer.row_budgets[None]
        due = jnp.minimum(before + steps[:, None, None], jnp.maximum(budget, before)) >= budget  # [T, #K, 1]
    return steps, slots, context.replace(angles=None), due, query
