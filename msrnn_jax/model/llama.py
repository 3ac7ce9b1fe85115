"""LLaMA as a multi-state RNN: (state, token) -> (state, logits)."""

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from msrnn_jax.config import Config, at_least_float32
from msrnn_jax.model.layers import mlp, multiply, project, rms_norm
from msrnn_jax.params import LayerParams, Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import as_tokens, check_params, check_state
from msrnn_jax.recurrence.chunk import attend_chunk
from msrnn_jax.recurrence.indexing import take_rows
from msrnn_jax.recurrence.positions import angles_for
from msrnn_jax.recurrence.rotary import query_scale, rotate
from msrnn_jax.recurrence.step import attend
from msrnn_jax.state import EMPTY, MOST_TOKENS, LayerState, MultiState, StepContext

LayerFn = Callable[[Policy, LayerState, Array, StepContext], tuple[LayerState, Array]]


def step(
    config: Config, policy: Policy, params: Params, state: MultiState, token: Int[Array, ""]
) -> tuple[MultiState, Float[Array, " V"]]:
    """One step of the recurrence: the model reads one token.

    In every layer the token is written into a free slot, attends to every held slot, itself included, and
    the policy forgets one slot if more than `budget` are then held. In a layer with a sliding window of W tokens
    a token that no later query can see is freed before that (see `attend`). Pure; batch it with `vmap`, run it over
    time with `lax.scan`, differentiate it with respect to `params`.

    Args:
      token: a scalar, from 0 to V - 1. The room of a policy that forgets nothing is not checked: beyond its budget
        it forgets the oldest. The end of int32 is not checked either: after 2**31 - 1 tokens, `t` stays there, and
        every further token is read at the last position, 2**31 - 2.

    Returns:
      The next state and the logits of the next token, at least float32.

    Raises:
      ValueError: where the state was made for another config or scope (see `check_state`), and for a token outside
        the vocabulary where it is not traced.
    """
    check_params(config, params)
    check_state(config, policy, state)
    state, x = advance(config, policy, params, state, as_tokens(config, "token", token))
    return state, unembed(config, params, x)


def advance(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    token: Int[Array, "*T"],
    *,
    real: Bool[Array, "*T"] | None = None,
    forgetting: bool = True,
) -> tuple[MultiState, Float[Array, "*T D"]]:
    """The step before its unembedding, or T steps at once.

    Args:
      token: a scalar, or the T tokens of a chunk.
      real: False for padding, which writes nothing and advances nothing; on the right of a chunk. None means True.
      forgetting: False leaves slots held beyond the budget, and there must be room for them.
    """
    blocks = [partial(decoder_layer, config, weights, index=index) for index, weights in enumerate(params.layers)]
    context = context_of(config, state, token, real=real, forgetting=forgetting)
    return run_blocks(policy, params.embedding, blocks, state, context)


def context_of(
    config: Config,
    state: MultiState,
    token: Int[Array, "*T"],
    *,
    real: Bool[Array, "*T"] | None = None,
    forgetting: bool = True,
) -> StepContext:
    """What all layers are told of the token, or of the tokens of a chunk."""
    later = jnp.arange(token.size, dtype=jnp.int32).reshape(token.shape)  # [*T], steps after the first
    read = later + 1 if real is None else jnp.minimum(later + 1, real.sum(dtype=jnp.int32))
    left = MOST_TOKENS - state.t  # at the end of int32 the clock stands still instead of wrapping
    position = state.t + jnp.minimum(later, left - 1)
    return StepContext(
        token=token,
        position=position if real is None else jnp.where(real, position, EMPTY),
        seen=state.t + jnp.minimum(read, left),
        angles=angles_for(config, state.mode, position, max(layer.num_slots for layer in state.layers)),
        mode=state.mode,
        forgetting=forgetting,
    )


def run_blocks(
    policy: Policy, embedding: Float[Array, "V D"], blocks: Sequence[LayerFn], state: MultiState, context: StepContext
) -> tuple[MultiState, Float[Array, "*T D"]]:
    """Sends tokens through decoder layers given as functions: `decoder_layer` without config and weights."""
    x = take_rows(embedding, context.token)
    layers = []
    for block, layer in zip(blocks, state.layers, strict=True):
        layer, x = block(policy, layer, x, context)
        layers.append(layer)
    return state.replace(layers=tuple(layers), t=jnp.max(context.seen)), x


def decoder_layer(
    config: Config,
    weights: LayerParams,
    policy: Policy,
    layer: LayerState,
    x: Float[Array, "*T D"],
    context: StepContext,
    *,
    index: int,
) -> tuple[LayerState, Float[Array, "*T D"]]:
    """One decoder layer, itself a multi-state RNN: (layer state, x) -> (layer state, x)."""
    query, key, value, context = attention_inputs(config, weights, x, context, index)
    recall = attend_chunk if context.token.ndim else attend
    layer, mixed = recall(config, policy, layer, query, key, value, context, index)
    return layer, after_attention(config, weights, x, mixed)


def attention_inputs(
    config: Config, weights: LayerParams, x: Float[Array, "*T D"], context: StepContext, index: int
) -> tuple[Float[Array, "*T N H"], Float[Array, "*T K H"], Float[Array, "*T K H"], StepContext]:
    """Query, key and value, the first two rotated in the mode "absolute", and the context as the layer knows it."""
    hidden = rms_norm(config, x, weights.attention_norm)
    query, key, value = project_heads(config, weights, hidden)
    context = context.replace(hidden=hidden, key=key.astype(x.dtype))
    if config.rotates(index):
        scale = query_scale(config.rope)
        query = query if scale == 1.0 else query * scale
        if context.mode == "absolute":
            assert context.angles is not None
            cos, sin = (angle[..., None, :] for angle in context.angles)  # [*T, 1, H / 2]
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    return query.astype(x.dtype), key.astype(x.dtype), value, context


def after_attention(
    config: Config, weights: LayerParams, x: Float[Array, "*T D"], mixed: Float[Array, "*T N H"]
) -> Float[Array, "*T D"]:
    """The residual stream after the layer, from that before it and what attention has mixed."""
    x = x + project(mixed.reshape(*mixed.shape[:-2], -1), weights.output, weights.output_bias)
    return x + mlp(weights, rms_norm(config, x, weights.mlp_norm))


def project_heads(
    config: Config, weights: LayerParams, x: Float[Array, "*T D"]
) -> tuple[Float[Array, "*T N H"], Float[Array, "*T K H"], Float[Array, "*T K H"]]:
    """Query, key and value of the normed residual stream; query and key in at least float32, to be rotated."""
    wide = at_least_float32(x.dtype)
    products = (
        project(x, weights.query, weights.query_bias, wide),
        project(x, weights.key, weights.key_bias, wide),
        project(x, weights.value, weights.value_bias),
    )
    # XLA for TPU would split the weights into heads instead, and copy them into the layout of what has three axes.
    products = lax.platform_dependent(
        *products, tpu=lambda *three: lax.optimization_barrier(three), default=lambda *three: three
    )
    query, key, value = (leaf.reshape(*leaf.shape[:-1], -1, config.head_dim) for leaf in products)
    if weights.query_norm is not None and weights.key_norm is not None:
        query, key = rms_norm(config, query, weights.query_norm), rms_norm(config, key, weights.key_norm)
    return query, key, value


def unembed(config: Config, params: Params, x: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
    """Logits of the next token, at least float32."""
    x = rms_norm(config, x, params.final_norm)
    dtype = at_least_float32(x.dtype)
    if params.unembedding is None:
        return multiply(x, params.embedding, side=1).astype(dtype)
    return project(x, params.unembedding, dtype=dtype)
