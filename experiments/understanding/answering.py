"""What a model says to a question: answers written from several readings at once, and how likely the people's are."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

import msrnn_jax as ms
from experiments.common.decoding import continue_greedily, stops
from experiments.common.model import Model
from experiments.understanding.prompts import Asked
from experiments.understanding.tasks import TASKS
from msrnn_jax.model.extend import CHUNK, scan_chunks
from msrnn_jax.model.llama import unembed
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.policies.budgets import slots_for
from msrnn_jax.recurrence.slots import grow_slots, init_state
from msrnn_jax.state import MultiState

PIECE = CHUNK  # tokens that one call of a program reads
SHORT = 32  # where few are left of a reference


class Reading(NamedTuple):
    """What was read of a prompt."""

    state: MultiState
    x: Array  # [D], of the last token, after the last layer


class Stop(NamedTuple):
    """A place on the way along a trunk from which something else goes on."""

    place: int  # tokens read before it, a multiple of PIECE or all
    budget: int  # that the state has from there on


def begin(model: Model, policy: Policy, budget: int) -> Reading:
    """Nothing read yet."""
    return Reading(init_state(model.config, policy, budget), jnp.zeros_like(model.params.embedding[0]))


def read_on(model: Model, policy: Policy, reading: Reading, tokens: np.ndarray) -> Reading:
    """Reads more of a prompt, from a multiple of PIECE on."""
    for start in range(0, len(tokens), PIECE):
        piece, length = padded(tokens[start : start + PIECE], PIECE)
        reading = Reading(*_read_piece(model.config, policy, model.params, reading.state, piece, length))
    return reading


def read_trunk(
    model: Model, policy: Policy, tokens: np.ndarray, room: int, stops: Sequence[Stop]
) -> dict[Stop, Reading]:
    """Reads a beginning without forgetting anything.

    Args:
      room: tokens of the longest prompt that may go on from it.
      stops: where the state is kept on the way, with as many slots as its budget needs.
    """
    reading, place, found = begin(model, policy, room), 0, {}
    for stop in sorted(set(stops)):
        reading = read_on(model, policy, reading, tokens[place : stop.place])
        place = stop.place
        found[stop] = reading if stop.budget == room else with_budget(policy, reading, stop.budget)
    return found


def with_budget(policy: Policy, reading: Reading, budget: int) -> Reading:
    """The reading compressed to a budget, or with room for a larger one."""
    return Reading(_with_budget(policy, reading.state, budget=budget), reading.x)


def logits_after(model: Model, reading: Reading) -> Float[Array, " V"]:
    """Of the token that follows."""
    return _unembed(model.config, model.params, reading.x)


def reference_nats(model: Model, policy: Policy, reading: Reading, tokens: np.ndarray) -> float:
    """-log p of a text that follows a prompt, in nats; under the policy, which goes on forgetting."""
    first = jax.nn.log_softmax(logits_after(model, reading))[int(tokens[0])]
    total, state = -float(first), reading.state
    inputs, targets = tokens[:-1], tokens[1:]
    start = 0
    while start < len(inputs):
        size = SHORT if len(inputs) - start <= 2 * SHORT else PIECE
        piece, length = padded(inputs[start : start + size], size)
        follow, _ = padded(targets[start : start + size], size)
        state, nats = _nll(model.config, policy, model.params, state, piece, follow, length)
        total += float(np.asarray(nats).sum(dtype=np.float64))
        start += size
    return total


def padded(tokens: np.ndarray, size: int) -> tuple[np.ndarray, np.int32]:
    """Tokens with zeros behind them, and how many are real."""
    return np.pad(tokens.astype(np.int32), (0, size - len(tokens))), np.int32(len(tokens))


@jax.jit
def _read_piece(
    config: ms.Config, policy: Policy, params: Params, state: MultiState, tokens: Int[Array, " T"], length: Array
) -> tuple[MultiState, Array]:
    state, x, _ = scan_chunks(config, policy, params, state, tokens, None, length)
    return state, x


_nll = jax.jit(ms.nll)
_unembed = jax.jit(unembed)


@partial(jax.jit, static_argnames="budget")
def _with_budget(policy: Policy, state: MultiState, *, budget: int) -> MultiState:
    state = widen(policy, state, slots_for(policy, budget, state.layers[0].num_rows))
    return ms.compress(policy, state, budget, shrink=True)


def widen(policy: Policy, state: MultiState, slots: int) -> MultiState:
    """The same state with at least so many slots."""
    more = [max(0, slots - layer.num_slots) for layer in state.layers]
    layers = [
        grow_slots(policy, layer, extra) if extra else layer for layer, extra in zip(state.layers, more, strict=True)
    ]
    return state.replace(layers=tuple(layers))


def examine(model: Model, policy: Policy, asked: Asked, readings: Sequence[Reading], most: int) -> list[dict[str, Any]]:
    """Everything that is found out about one question, for each of the readings of its prompt.

    Args:
      most: tokens of an answer.

    Returns:
      `score` and its parts in points; `answer`, its text as far as it counts, and `generated_tokens`, all that were
      written; `reference_nats`, of all references together, and `reference_tokens`.
    """
    task = TASKS[asked.document.task]
    found = []
    for reading, tokens in zip(readings, _write(model, policy, readings, most), strict=True):
        kept = tokens[:-1] if stops(model, tokens) else tokens
        answer = task.answer(model.tokenizer.decode(kept))
        nats = [reference_nats(model, policy, reading, reference) for reference in asked.references]
        found.append(
            {
                **task.score(answer, asked.question.references),
                "generated_tokens": len(tokens),
                "reference_nats": sum(nats),
                "reference_tokens": sum(map(len, asked.references)),
                "answer": answer,
            }
        )
    return found


def _write(model: Model, policy: Policy, readings: Sequence[Reading], most: int) -> list[list[int]]:
    """The likeliest next tokens after every reading, up to a token that ends an answer, that one included."""
    states = model.states(policy, _stack(policy, [reading.state for reading in readings]))
    logits = model.rows(jnp.stack([logits_after(model, reading) for reading in readings]))
    return continue_greedily(model, policy, states, logits, most)


@jax.jit
def _stack(policy: Policy, states: Sequence[MultiState]) -> MultiState:
    slots = max(layer.num_slots for state in states for layer in state.layers)
    wide = [widen(policy, state, slots) for state in states]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *wide)
