"""LLaMA as a multi-state RNN: (state, token) -> (state, logits)."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from msrnn_jax.checks import check_params, check_state
from msrnn_jax.compress import forget
from msrnn_jax.config import Config
from msrnn_jax.layers import attend, mlp, project, rms_norm, rotate, rotation, wide
from msrnn_jax.params import LayerParams, Params
from msrnn_jax.policies import Policy
from msrnn_jax.policies.base import Stats
from msrnn_jax.slots import write
from msrnn_jax.state import EMPTY, LayerState, Moment, MultiState, View

Block = Callable[[Policy, LayerState, Array, Moment], tuple[LayerState, Array]]


def step(
    config: Config, policy: Policy, params: Params, state: MultiState, token: Int[Array, ""]
) -> tuple[MultiState, Float[Array, " V"]]:
    """One step of the recurrence: the model reads one token.

    In every layer the token is written into a free slot, attends to every held slot, itself included, and
    the policy forgets one slot if more than `budget` are then held. Pure; batch it with `vmap`, run it over
    time with `lax.scan`, differentiate it with respect to `params`.

    Args:
      token: a scalar, from 0 to V - 1 (clamped by XLA, not checked). Nor is the room of a policy that forgets
        nothing: beyond its budget it forgets the oldest.

    Returns:
      The next state and the logits of the next token, at least float32.

    Raises:
      ValueError: where the state was made for another config or scope (see `check_state`).
    """
    check_params(config, params)
    check_state(config, policy, state)
    state, x = advance(config, policy, params, state, token)
    return state, unembed(config, params, x)


def advance(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    token: Int[Array, ""],
    *,
    real: Bool[Array, ""] | None = None,
    forgetting: bool = True,
) -> tuple[MultiState, Float[Array, " D"]]:
    """The step before its unembedding.

    Args:
      real: False for a padded token, which writes nothing and advances nothing; None means True.
      forgetting: False leaves slots held beyond the budget, and there must be room for them.
    """
    blocks = [partial(decoder_layer, config, weights, index=index) for index, weights in enumerate(params.layers)]
    return run_blocks(config, policy, params.embedding, blocks, state, token, real=real, forgetting=forgetting)


def run_blocks(
    config: Config,
    policy: Policy,
    embedding: Float[Array, "V D"],
    blocks: Sequence[Block],
    state: MultiState,
    token: Int[Array, ""],
    *,
    real: Bool[Array, ""] | None = None,
    forgetting: bool = True,
) -> tuple[MultiState, Float[Array, " D"]]:
    """Sends one token through decoder layers given as functions: `decoder_layer` without config and weights."""
    cos, sin = rotation(config, state.t)
    moment = Moment(
        token=token,
        position=state.t if real is None else jnp.where(real, state.t, EMPTY),
        seen=state.t + 1 if real is None else state.t + real.astype(jnp.int32),
        cos=cos,
        sin=sin,
        forgetting=forgetting,
    )
    x = jnp.asarray(embedding)[token]
    layers = []
    for block, layer in zip(blocks, state.layers, strict=True):
        layer, x = block(policy, layer, x, moment)
        layers.append(layer)
    return state.replace(layers=tuple(layers), t=moment.seen), x


def decoder_layer(
    config: Config,
    weights: LayerParams,
    policy: Policy,
    layer: LayerState,
    x: Float[Array, " D"],
    moment: Moment,
    *,
    index: int,
) -> tuple[LayerState, Float[Array, " D"]]:
    """One decoder layer, itself a multi-state RNN: (layer state, x) -> (layer state, x)."""
    query, key, value = project_heads(config, weights, x)
    query, key = rotate(query, moment.cos, moment.sin), rotate(key, moment.cos, moment.sin)
    layer, mixed = remember(policy, layer, query, key, value, moment, index)
    x = x + project("nh,nhd->d", mixed, weights.output, weights.output_bias)
    return layer, x + mlp(weights, rms_norm(config, x, weights.mlp_norm))


def project_heads(
    config: Config, weights: LayerParams, x: Float[Array, " D"]
) -> tuple[Float[Array, "N H"], Float[Array, "K H"], Float[Array, "K H"]]:
    """Query, key and value of the normed residual stream, not yet rotated."""
    x = rms_norm(config, x, weights.attention_norm)
    query = project("d,dnh->nh", x, weights.query, weights.query_bias)
    key = project("d,dkh->kh", x, weights.key, weights.key_bias)
    value = project("d,dkh->kh", x, weights.value, weights.value_bias)
    return query, key, value


def remember(
    policy: Policy,
    layer: LayerState,
    query: Float[Array, "N H"],
    key: Float[Array, "K H"],
    value: Float[Array, "K H"],
    moment: Moment,
    index: int,
) -> tuple[LayerState, Float[Array, "N H"]]:
    """The recurrence of one layer: write the token, attend to every held slot, observe, forget."""
    layer, slot = write(policy, layer, key, value, moment.position)
    # The newest slot is visible even to padding, whose row is thrown away but must stay finite.
    newest = jnp.arange(layer.num_slots, dtype=jnp.int32)[None] == slot[:, None]  # [#K, S]
    grouped = query.reshape(key.shape[0], -1, query.shape[1])  # [K, G, H]
    mixed, probs = attend(grouped, layer.keys, layer.values, newest | (layer.positions != EMPTY))
    view = View(
        probs=probs,
        positions=layer.positions,
        t=moment.position,
        token=moment.token,
        queries=query,
        keys=layer.keys,
        values=layer.values,
        layer=index,
    )
    layer = layer.replace(stats=_observe(policy, layer.stats, view))
    if moment.forgetting:
        layer = forget(policy, layer, moment.seen)
    return layer, mixed.reshape(query.shape)


def _observe(policy: Policy, stats: Stats, view: View) -> Stats:
    """The policy's new statistics in the dtypes of the old ones; padding changes nothing."""
    real = view.t != EMPTY
    observed = policy.observe(stats, view)
    given, wanted = (jax.tree.map(jnp.shape, tree) for tree in (observed, stats))
    if given != wanted:
        raise ValueError(f"{policy}: observe returned shapes {given}; they must be those of init, {wanted}")
    return jax.tree.map(lambda new, old: jnp.where(real, new.astype(old.dtype), old), observed, stats)


def unembed(config: Config, params: Params, x: Float[Array, " D"]) -> Float[Array, " V"]:
    """Logits of the next token, at least float32."""
    x = rms_norm(config, x, params.final_norm)
    dtype = wide(x.dtype)
    if params.unembedding is None:
        return project("d,vd->v", x, params.embedding, dtype=dtype)
    return project("d,dv->v", x, params.unembedding, dtype=dtype)
