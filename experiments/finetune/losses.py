"""What training makes small: the loss of the next token, and how far the model is from one that forgets nothing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

import msrnn_jax as ms
from msrnn_jax.evaluation.losses import compare, losses_of
from msrnn_jax.model.extend import scan_chunks
from msrnn_jax.model.llama import unembed


class Teacher(NamedTuple):
    """A model that forgets nothing, and its state."""

    params: ms.Params
    state: ms.MultiState


class Losses(NamedTuple):
    """Means over the tokens of a segment, in nats."""

    nats: Array  # [] of the next token
    kl: Array  # [] from the teacher's predictions, KL(teacher || model); 0 without one
    gate: Any = 0.0  # [] what is asked of a gate beside these, see gating.py; 0 without one


def read_segment(
    config: ms.Config,
    policy: ms.Policy,
    params: ms.Params,
    state: ms.MultiState,
    tokens: Int[Array, " S+1"],
    teacher: Teacher | None,
    chunk: int,
) -> tuple[Losses, tuple[ms.MultiState, ms.MultiState | None]]:
    """Reads a segment on from a state.

    No gradient flows into the state it begins with. Every chunk is computed again for the gradient, through the layers
    and through the unembedding, so that memory is that of a chunk and of a state for each.

    Args:
      tokens: of the segment and the one after it.

    Returns:
      The losses, the model's state after the segment, and the teacher's.
    """
    state = lax.stop_gradient(state)
    state, x = _read_stream(config, policy, params, state, tokens[:-1], chunk)
    losses, behind = losses_of_stream(config, params, x, tokens, teacher, chunk)
    return losses, (state, behind)


def losses_of_stream(
    config: ms.Config,
    params: ms.Params,
    x: Float[Array, "S D"],
    tokens: Int[Array, " S+1"],
    teacher: Teacher | None,
    chunk: int,
) -> tuple[Losses, ms.MultiState | None]:
    """The losses of what was read, and the teacher's state after it has read the same."""
    inputs, targets = tokens[:-1], tokens[1:]
    if teacher is None:
        return _losses(config, params, x, targets, None, chunk), None
    behind, full = _read_stream(config, ms.Full(), teacher.params, teacher.state, inputs, chunk)
    compared = lax.stop_gradient((teacher.params, full))
    return _losses(config, params, x, targets, compared, chunk), lax.stop_gradient(behind)


def _read_stream(
    config: ms.Config, policy: ms.Policy, params: ms.Params, state: ms.MultiState, tokens: Array, chunk: int
) -> tuple[ms.MultiState, Float[Array, "S D"]]:
    state, _, x = scan_chunks(config, policy, params, state, tokens, None, None, chunk=chunk, reader=_stream)
    return state, x


def _stream(config: ms.Config, params: ms.Params, x: Float[Array, "C D"], beside: None) -> Float[Array, "C D"]:
    del config, params, beside
    return x


def _losses(
    config: ms.Config,
    params: ms.Params,
    x: Float[Array, "S D"],
    targets: Int[Array, " S"],
    teacher: tuple[ms.Params, Float[Array, "S D"]] | None,
    chunk: int,
) -> Losses:
    @jax.checkpoint
    def one(item: tuple[Array, ...]) -> Losses:
        x, targets, *full = item
        logits = unembed(config, params, x)
        if teacher is None:
            nats = losses_of(logits, targets)
            return Losses(nats, jnp.zeros_like(nats))
        found = compare(logits, unembed(config, teacher[0], full[0]), targets)
        return Losses(found["nats"], found["kl"])

    streams = (x, targets) if teacher is None else (x, targets, teacher[1])
    count = x.shape[0]
    whole = count // chunk * chunk
    parts = []
    if whole:
        cut = jax.tree.map(lambda leaf: leaf[:whole].reshape(whole // chunk, chunk, *leaf.shape[1:]), streams)
        parts.append(jax.tree.map(jnp.sum, lax.map(one, cut)))
    if whole < count:
        parts.append(jax.tree.map(jnp.sum, one(jax.tree.map(lambda leaf: leaf[whole:], streams))))
    return jax.tree.map(lambda *sums: sum(sums) / count, *parts)
