"""LLaMA as a multi-state RNN: (state, token) -> (state, logits)."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from msrnn_jax.checks import check_state
from msrnn_jax.compress import forget
from msrnn_jax.config import Config
from msrnn_jax.layers import attend, mlp, project, rms_norm, rotate, rotation, wide
from msrnn_jax.params import LayerParams, Params
from msrnn_jax.policies import Policy
from msrnn_jax.policies.base import Stats
from msrnn_jax.slots import write
from msrnn_jax.state import EMPTY, LayerState, Moment, MultiState, View

Block = Callable[[LayerState, Array, Moment], tuple[LayerState, Array]]


def step(
    config: Config, policy: Policy, params: Params, state: MultiState, token: Int[Array, ""]
) -> tuple[MultiState, Float[Array, " V"]]:
    """One step of the recurrence: the model reads one token.

    In every layer the token is written into a free slot, attends to every held slot, itself included, and
    the policy forgets one slot if more than `budget` are then held. Pure; batch it with `vmap`, run it over
    time with `lax.scan`, differentiate it with respect to `params`.

    Args:
      token: a scalar, from 0 to V - 1 (clamped by XLA, not checked).

    Returns:
      The next state and the logits of the next token, at least float32.

    Raises:
      ValueError: where the state was made for another config or scope.
    """
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
    blocks = [
        partial(decoder_layer, config, policy, weights, index=index) for index, weights in enumerate(params.layers)
    ]
    return run_blocks(config, params.embedding, blocks, state, token, real=real, forgetting=forgetting)


def run_blocks(
    config: Config,
    embedding: Float[Array, "V D"],
    blocks: Sequence[Block],
    state: MultiState,
    token: Int[Array, ""],
    *,
    real: Bool[Array, ""] | None = None,
    forgetting: bool = True,
) -> tuple[MultiState, Float[Array, " D"]]:
    """Sends one token through the decoder layers, given as functions (layer state, x, moment) -> (layer state, x)."""
    cos, sin = rotation(config, state.t)
    moment = Moment(
        token=token,
        position=state.t if real is None else jnp.where(real, state.t, EMPTY),
        seen=state.t + 1 if real is None else state.t + real.astype(jnp.int32),
        cos=cos,
        sin=sin,
        forgetting=forgetting,
    )
    x = embedding[token]
    layers = []
    for block, layer in zip(blocks, state.layers, strict=True):
        layer, x = block(layer, x, moment)
        layers.append(layer)
    return state.replace(layers=tuple(layers), t=moment.seen), x


def decoder_layer(
    config: Config,
    policy: Policy,
    weights: LayerParams,
    layer: LayerState,
    x: Float[Array, " D"],
    moment: Moment,
    *,
    index: int,
) -> tuple[LayerState, Float[Array, " D"]]:
    """One decoder layer, itself a multi-state RNN: (layer state, x) -> (layer state, x)."""
    layer, mixed = attention(config, policy, weights, layer, rms_norm(config, x, weights.attention_norm), moment, index)
    x = x + mixed
    return layer, x + mlp(weights, rms_norm(config, x, weights.mlp_norm))


def attention(
    config: Config,
    policy: Policy,
    weights: LayerParams,
    layer: LayerState,
    x: Float[Array, " D"],
    moment: Moment,
    index: int,
) -> tuple[LayerState, Float[Array, " D"]]:
    """Writes the token, attends to every held slot, lets the policy observe, and forgets."""
    query = project("d,dnh->nh", x, weights.query, weights.query_bias)
    key = project("d,dkh->kh", x, weights.key, weights.key_bias)
    value = project("d,dkh->kh", x, weights.value, weights.value_bias)
    query, key = rotate(query, moment.cos, moment.sin), rotate(key, moment.cos, moment.sin)
    layer, slot = write(policy, layer, key, value, moment.position)
    # The newest slot is visible even to padding, whose row is thrown away but must stay finite.
    newest = jnp.arange(layer.num_slots, dtype=jnp.int32)[None] == slot[:, None]  # [#K, S]
    grouped = query.reshape(config.num_kv_heads, config.group_size, config.head_dim)
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
    mixed = mixed.reshape(config.num_heads, config.head_dim)
    return layer, project("nh,nhd->d", mixed, weights.output, weights.output_bias)


def _observe(policy: Policy, stats: Stats, view: View) -> Stats:
    """The policy's new statistics in the dtypes of the old ones; padding changes nothing."""
    real = view.t != EMPTY
    return jax.tree.map(
        lambda new, old: jnp.where(real, new.astype(old.dtype), old), policy.observe(stats, view), stats
    )


def unembed(config: Config, params: Params, x: Float[Array, " D"]) -> Float[Array, " V"]:
    """Logits of the next token, at least float32."""
    x = rms_norm(config, x, params.final_norm)
    dtype = wide(x.dtype)
    if params.unembedding is None:
        return project("d,vd->v", x, params.embedding, dtype=dtype)
    return project("d,dv->v", x, params.unembedding, dtype=dtype)
