"""What a layer does with one token: write it, attend, observe, forget."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from msrnn_jax.config import Config
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.attention import attention_logits, softmax, weighted_values
from msrnn_jax.recurrence.checks import check_observed, check_score
from msrnn_jax.recurrence.eviction import forget, is_due
from msrnn_jax.recurrence.indexing import expand_like
from msrnn_jax.recurrence.positions import logits_by_place
from msrnn_jax.recurrence.sliding_window import free_expired, visible_in_window, window_in
from msrnn_jax.recurrence.slots import write_token
from msrnn_jax.state import EMPTY, Arrival, LayerState, StepContext, View


def attend(
    config: Config,
    policy: Policy,
    layer: LayerState,
    query: Float[Array, "N H"],
    key: Float[Array, "K H"],
    value: Float[Array, "K H"],
    context: StepContext,
    index: int,
) -> tuple[LayerState, Float[Array, "N H"]]:
    """The recurrence of one layer: write the token, attend to every held slot, observe, forget.

    Query and key come rotated in the mode "absolute"; in the others the keys are turned here.

    In a layer with a sliding window of W tokens *a token that no later query can see is freed*: after the policy
    has observed the token at position t, whatever stands at t + 1 - W or before goes, and only then, if more than
    `budget` are held, the policy's lowest. So all that is held is visible, and W - 1 slots hold everything that
    matters. Sinks and recent tokens are protected from the policy, not from the window. In the position mode
    "cache" nothing expires: at most W - 1 tokens are held, which never stand W places apart.
    """
    window = window_in(config, context.mode, index, forgetting=context.forgetting)
    born = born_with(policy, layer, value, context, index)
    layer, slot = write_token(policy, layer.replace(index=index), key, value, context.position, born)
    # The newest slot is visible even to padding, whose row is thrown away but must stay finite.
    newest = jnp.arange(layer.num_slots, dtype=jnp.int32)[None] == slot[:, None]  # [#K, S]
    grouped = query.reshape(key.shape[0], -1, query.shape[1])  # [K, G, H]
    if context.mode == "absolute" or not config.rotates(index):
        products = attention_logits(grouped, layer.keys)
    else:
        products = logits_by_place(config, context.mode, context.angles, grouped, layer.keys, layer.positions)
    held = layer.positions != EMPTY
    visible = newest | held
    if window is not None and not context.forgetting:
        visible = visible & visible_in_window(context.mode, layer.positions, slot[:, None], window)[:, 0]
    probs = softmax(products, visible, query.shape[1], bias_of(policy, layer, context))
    mixed = weighted_values(probs, layer.values)
    due = is_due(policy, layer)
    layer = observe_and_forget(policy, layer, probs, query, context, index, due, window)
    return layer.replace(index=0), mixed.reshape(query.shape).astype(query.dtype)


def born_with(
    policy: Policy,
    layer: LayerState,
    value: Float[Array, "K H"],
    context: StepContext,
    index: int,
) -> Any:
    """The statistics that a token comes with, leaves [#K, ...]; None for those that every new one has."""
    if not policy.inits_tokens:
        return None
    assert context.key is not None and context.hidden is not None
    born = policy.init_token(Arrival(context.position, context.token, context.key, value, context.hidden, index))
    wanted = jax.tree.map(lambda leaf: leaf[:, 0], layer.stats)
    check_observed(policy, born, wanted, "init_token")
    return jax.tree.map(lambda new, old: new.astype(old.dtype), born, wanted)


def bias_of(policy: Policy, layer: LayerState, context: StepContext) -> Float[Array, "#K S"] | None:
    """What the policy adds to the newest token's attention logits; None where it adds nothing."""
    if not policy.biases:
        return None
    bias = policy.bias(layer, context.seen)
    check_score(policy, bias, layer, "bias")
    return bias


def observe_and_forget(
    policy: Policy,
    layer: LayerState,
    probs: Float[Array, "K G S"],
    query: Float[Array, "N H"] | jax.ShapeDtypeStruct,
    context: StepContext,
    index: int,
    due: Bool[Array, "#K 1"] | None,
    window: int | None,
) -> LayerState:
    """The policy observes what the token attended to, and one slot is freed of every row that holds too many.

    Padding changes nothing.

    Args:
      query: its shape alone in a kernel, as of keys and values: a policy that looks at them has none.
      due: which rows hold so many that the policy forgets, where nothing expires; None leaves it to be counted.
      window: beyond which tokens expire, and are freed first; None where they do not.
    """
    real = context.position != EMPTY
    view = View(
        probs=probs,
        positions=layer.positions,
        t=context.position,
        token=context.token,
        queries=query,  # pyright: ignore[reportArgumentType]
        keys=layer.keys,
        values=layer.values,
        layer=index,
        hidden=context.hidden,
    )
    observed = policy.observe(layer.stats, view), policy.observe_rows(layer.row_stats, view)
    for name, new, old in zip(("observe", "observe_rows"), observed, (layer.stats, layer.row_stats), strict=True):
        check_observed(policy, new, old, name)
    stats, row_stats = jax.tree.map(
        lambda new, old: jnp.where(real, new.astype(old.dtype), old), observed, (layer.stats, layer.row_stats)
    )
    if policy.inits_tokens and policy.defines("observe"):  # tokens of a chunk that are still to come keep theirs
        held = layer.positions != EMPTY
        stats = jax.tree.map(lambda new, old: jnp.where(expand_like(held, old), new, old), stats, layer.stats)
    layer = layer.replace(stats=stats, row_stats=row_stats)
    if not context.forgetting:
        return layer
    if window is not None:
        layer = free_expired(layer, window, context.seen)
    if due is None or window is not None:
        due = is_due(policy, layer)
    return forget(policy, layer, context.seen, due & real)
