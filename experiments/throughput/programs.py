"""The loops that are compiled and timed."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

import msrnn_jax as ms
from msrnn_jax.evaluation.losses import losses_of
from msrnn_jax.model.layers import multiply, project


def continue_greedily(
    config: ms.Config,
    policy: ms.Policy,
    params: ms.Params,
    states: ms.MultiState,
    tokens: Int[Array, " B"],
    *,
    count: int,
) -> tuple[ms.MultiState, Int[Array, " B"]]:
    """`count` steps of every row, each fed the likeliest token of the one before.

    The loop of `ms.generate` without its prompt, which is how a user who keeps the states writes it. (`generate`
    itself reads the prompt in the same program, so that its time for tokens alone cannot be told.)
    """

    def one(carry: tuple[ms.MultiState, Array], _: None) -> tuple[tuple[ms.MultiState, Array], None]:
        states, tokens = carry
        states, logits = jax.vmap(ms.step, in_axes=(None, None, None, 0, 0))(config, policy, params, states, tokens)
        return (states, logits.argmax(axis=-1).astype(jnp.int32)), None

    return lax.scan(one, (states, tokens), length=count)[0]


def multiply_greedily(params: ms.Params, tokens: Int[Array, " B"], *, count: int) -> Int[Array, " B"]:
    """The floor under `continue_greedily`: the same products with weights, and nothing else."""

    def one(tokens: Array, _: None) -> tuple[Array, None]:
        logits = jax.vmap(weight_products, in_axes=(None, 0))(params, params.embedding[tokens])
        return logits.argmax(axis=-1).astype(jnp.int32), None

    return lax.scan(one, tokens, length=count)[0]


def weight_products(params: ms.Params, x: Float[Array, " D"]) -> Float[Array, " V"]:
    """Every product with a weight, each fed by the one before, and no attention, norm or rotation between."""
    for layer in params.layers:
        query, key, value = project(x, layer.query), project(x, layer.key), project(x, layer.value)
        shared = jnp.tile(key + value, query.shape[0] // key.shape[0])
        x = x + project(query + shared, layer.output)
        x = x + project(project(x, layer.gate) * project(x, layer.up), layer.down)
    if params.unembedding is None:
        return multiply(x, params.embedding, side=1).astype(x.dtype)
    return project(x, params.unembedding)


def step_losses(
    config: ms.Config,
    policy: ms.Policy,
    params: ms.Params,
    state: ms.MultiState,
    tokens: Int[Array, " T"],
    targets: Int[Array, " T"],
) -> tuple[ms.MultiState, Float[Array, " T"]]:
    """What `ms.nll` returns, by scanning `ms.step`."""

    def one(state: ms.MultiState, pair: tuple[Array, Array]) -> tuple[ms.MultiState, Array]:
        token, target = pair
        state, logits = ms.step(config, policy, params, state, token)
        return state, losses_of(logits[None], target[None])[0]

    return lax.scan(one, state, (tokens, targets))


def first_token(
    config: ms.Config,
    policy: ms.Policy,
    params: ms.Params,
    state: ms.MultiState,
    tokens: Int[Array, " T"],
    *,
    mode: str,
) -> tuple[ms.MultiState, Int[Array, ""]]:
    """Reads a prompt and says the likeliest token after it; the state is what decoding goes on from."""
    state, logits = ms.prefill(config, policy, params, state, tokens, mode=mode)
    return state, logits.argmax().astype(jnp.int32)
