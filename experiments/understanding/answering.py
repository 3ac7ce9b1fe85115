"""What a model says to a question: answers written from several readings at once, and how likely the people's are."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.continuing import continue_greedily, stops
from experiments.model import Model
from experiments.understanding.prompts import Asked
from experiments.understanding.reading import Reading, logits_after, reference_nats, widen
from experiments.understanding.tasks import TASKS
from msrnn_jax.policies import Policy
from msrnn_jax.state import MultiState


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
