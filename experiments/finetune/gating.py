"""What a forgetting gate is trained by, while the model stays as it is."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

import msrnn_jax as ms
from experiments.finetune.losses import Losses, Teacher, losses_of_stream
from msrnn_jax.model.llama import after_attention, attention_inputs, context_of
from msrnn_jax.params import LayerParams
from msrnn_jax.policies import Gate, Learned
from msrnn_jax.recurrence.attention import attention_logits, softmax, weighted_values
from msrnn_jax.recurrence.chunk import all_born_with, attend_chunk
from msrnn_jax.recurrence.indexing import take_rows
from msrnn_jax.state import LayerState, StepContext

OBJECTIVES = ("soft", "rank", "straight", "attention")


@dataclasses.dataclass(frozen=True)
class Gating:
    """How a gate is trained.

    Attributes:
      objective: "soft", every token fades out of attention as the gate says, and nothing is forgotten. "rank", tokens
        are weighed by how far their score is above that of the first which the budget would not hold: sigmoid(distance
        / temperature). "straight", the state forgets as it will in use, by `extend`, but gradients are those of "rank"
        at the same tokens. "attention", the gate alone must predict what every query attends to: KL(attention ||
        softmax of scores), without a model that reads with it.
      hinge: what the number of tokens held is weighed with: mean of max(0, held / budget - 1), where held is the sum
        of the weights of all tokens.
      temperature: of "rank" and "straight".
    """

    objective: str
    hinge: float
    temperature: float = 0.3


def read_gated(
    config: ms.Config,
    policy: Learned,
    gating: Gating,
    gate: Gate,
    params: ms.Params,
    tokens: Int[Array, " S+1"],
    budget: int,
    distill: bool,
    chunk: int,
) -> Losses:
    """Reads a stretch from an empty state, with gradients for the gate alone.

    All of it goes through each layer at once, since what a token is worth shows long after it came, and each layer is
    computed again for the gradient.

    Args:
      tokens: of the stretch and the one after it.
      distill: whether the distance to the model that forgets nothing is wanted.
      chunk: tokens that are unembedded together.
    """
    policy, count = policy.replace(weights=gate), tokens.shape[0] - 1
    empty = ms.init_state(config, policy, budget)
    context = context_of(config, empty, tokens[:-1], forgetting=False)
    x, asked = take_rows(params.embedding, context.token), []
    for index, (weights, layer) in enumerate(zip(params.layers, empty.layers, strict=True)):
        block = partial(_read_layer, config, gating, budget, index)
        # Products with weights are kept, and attention, which takes more memory than time, is computed again.
        block = jax.checkpoint(block, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        x, loss = block(policy, weights, layer, x, context)
        asked.append(loss)
    of_gate = jnp.stack(asked).mean()
    if gating.objective == "attention":
        return Losses(jnp.zeros_like(of_gate), jnp.zeros_like(of_gate), of_gate)
    teacher = Teacher(params, ms.init_state(config, ms.Full(), count)) if distill else None
    losses, _ = losses_of_stream(config, params, x, tokens, teacher, chunk)
    return losses._replace(gate=of_gate)


def loss_of(gating: Gating | None, distill: float, losses: Losses) -> Array:
    """What is made small."""
    if gating is not None and gating.objective == "attention":
        return losses.gate
    of_model = (1 - distill) * losses.nats + distill * losses.kl
    return of_model if gating is None else of_model + gating.hinge * losses.gate


def _read_layer(
    config: ms.Config,
    gating: Gating,
    budget: int,
    index: int,
    policy: Learned,
    weights: LayerParams,
    empty: LayerState,
    x: Float[Array, "S D"],
    context: StepContext,
) -> tuple[Float[Array, "S D"], Float[Array, ""]]:
    """What comes out of one layer, and what is asked of its gates.

    Args:
      empty: the state from which hard choices are made.
    """
    query, key, value, context = attention_inputs(config, weights, x, context, index)
    layer = _hold_all(policy, empty, key, value, context, index)
    grouped = jnp.moveaxis(query.reshape(query.shape[0], key.shape[1], -1, query.shape[2]), 0, 1)  # [K, S, G, H]
    products = attention_logits(grouped, layer.keys)
    visible = layer.positions[:, None] <= context.position[None, :, None]  # [#K, S, S]
    if gating.objective == "attention":
        probs = softmax(products, visible, config.head_dim)
        asked = _surprise(policy, layer, lax.stop_gradient(probs), context.position)
    else:
        bias = _log_weights(policy, gating, layer, context, budget)
        probs = softmax(products, visible, config.head_dim, bias)
        held = jnp.where(visible, jnp.exp(jnp.where(visible, bias, 0)), 0).sum(axis=-1)  # [#K, S]
        asked = jax.nn.relu(held / budget - 1).mean()
    mixed = jnp.moveaxis(weighted_values(probs, layer.values).astype(query.dtype), 0, 1).reshape(query.shape)
    if gating.objective == "straight":
        now = context.replace(forgetting=True)
        _, chosen = attend_chunk(config, policy, empty, query, key, value, now, index)
        mixed = mixed + lax.stop_gradient(chosen - mixed)
    return after_attention(config, weights, x, mixed), asked


def _log_weights(
    policy: Learned, gating: Gating, layer: LayerState, context: StepContext, budget: int
) -> Float[Array, "#K S S"]:
    """What is added to the attention logits of every query for every token; anything for those still to come."""
    if gating.objective == "soft":
        return jax.vmap(policy.replace(soft=True).bias, (None, 0), 1)(layer, context.seen)

    def of_query(t: Array) -> Float[Array, "#K S"]:
        score, before = policy.score(layer, t), layer.positions < t
        stays = policy.protected(layer, t) if policy.protects else jnp.zeros_like(before)
        ranked = jnp.where(before, jnp.where(stays, jnp.inf, score), -jnp.inf)
        best = lax.top_k(ranked, min(budget + 1, before.shape[1]))[0]
        if best.shape[1] <= budget:
            return jnp.zeros_like(score)
        last, first = best[:, budget - 1 : budget], best[:, budget:]  # that is held, and that is not
        full = jnp.isfinite(first) & jnp.isfinite(last)  # else all are held, or all that are held are protected
        edge = (jnp.where(full, first, 0) + jnp.where(full, last, 0)) / 2
        weight = jax.nn.log_sigmoid((score - edge) / gating.temperature)
        return jnp.where(full & before & ~stays, weight, 0)

    return jax.vmap(of_query, out_axes=1)(context.position)


def _hold_all(
    policy: Learned,
    empty: LayerState,
    key: Float[Array, "S K H"],
    value: Float[Array, "S K H"],
    context: StepContext,
    index: int,
) -> LayerState:
    """The state of a layer that holds all tokens of a stretch, in their order, each with what its gate says."""
    return empty.replace(
        keys=jnp.moveaxis(key, 0, 1),
        values=jnp.moveaxis(value, 0, 1),
        positions=jnp.broadcast_to(context.position, (empty.num_rows, len(context.position))),
        stats=all_born_with(policy, empty, value, context, index),
        index=index,
    )


def _surprise(
    policy: Learned, layer: LayerState, probs: Float[Array, "K S G M"], times: Int[Array, " S"]
) -> Float[Array, ""]:
    """KL(attention || softmax of scores) over the tokens that could be forgotten, mean over queries and rows."""
    attention = probs.mean(axis=2)  # [K, S, M]
    attention = attention if policy.scope == "head" else attention.mean(axis=0, keepdims=True)

    def of_query(t: Array, attention: Array) -> Array:
        there = (layer.positions < t) & ~policy.protected(layer, t + 1)  # [#K, M]
        attention = jnp.where(there, attention, 0)
        attention = attention / jnp.maximum(attention.sum(axis=1, keepdims=True), 1e-30)
        guess = jax.nn.log_softmax(jnp.where(there, policy.score(layer, t), -1e9), axis=1)
        known = jnp.log(jnp.maximum(attention, 1e-30))
        return jnp.where(there, attention * (known - guess), 0).sum(axis=1)  # [#K]

    return jax.vmap(of_query, in_axes=(0, 1))(times, attention).mean()
