"""Reading cases under several budgets at once, and what the model then answers."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Int

import msrnn_jax as ms
from experiments.common.decoding import continue_greedily
from experiments.common.model import Model
from experiments.needle.haystack import Case
from experiments.needle.prompts import WIDTH, Batch, Prompt, Room, make_batch
from msrnn_jax.evaluation.losses import losses_of
from msrnn_jax.model.llama import advance, unembed
from msrnn_jax.model.prefill import prefill
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import Slots
from msrnn_jax.recurrence.slots import init_state, slots_of
from msrnn_jax.state import MultiState

WRITTEN = WIDTH + 2  # tokens that the model writes: another digit would show
WORD = re.compile(r"\W*(\w+)")


class Held(struct.PyTreeNode):
    """Means over the sets of slots that forget by themselves: one of every layer, or of every KV head in it."""

    value_any: Array  # [B], 1 where any token of the value is held
    value_all: Array  # [B], 1 where all of them are
    question: Array  # [B], share of the tokens of the question before the text


def held_in(batch: Batch, states: MultiState) -> Held:
    """What every row's state holds."""
    value, question = _share(states, batch.value), _share(states, batch.question)
    return Held(
        value_any=(value > 0).mean(axis=(0, 2)),
        value_all=(value >= 1).mean(axis=(0, 2)),
        question=question.mean(axis=(0, 2)),
    )


def _share(states: MultiState, span: Int[Array, "B 2"]) -> Float[Array, "L B #K"]:
    """How much of a span of positions is held, a share of its tokens; 0 of an empty one."""
    first, end = span[:, :1, None], span[:, 1:, None]  # [B, 1, 1]
    number = jnp.maximum(end - first, 1).astype(jnp.float32)[None, :, 0]  # [1, B, 1]
    counts = [
        ((layer.positions >= first) & (layer.positions < end)).sum(axis=-1, dtype=jnp.int32)  # [B, #K]
        for layer in states.layers
    ]
    return jnp.stack(counts).astype(jnp.float32) / number


class Asked(NamedTuple):
    """A case as it is read."""

    case: Case
    prompt: Prompt


def ask(
    model: Model, policy: Policy, asked: Sequence[Asked], budgets: Sequence[int], room: Room, mode: str
) -> list[dict[str, Any]]:
    """Reads all cases under all budgets by one program, and has each question answered.

    Returns:
      Numbers for every case under the first budget, then under the next: see `_numbers`.
    """
    batch = model.rows(make_batch([one.prompt for one in asked], budgets, room))
    about = model.config, policy, model.params
    most = max(budgets) if policy.forgets else room.lead + room.tail + WRITTEN
    slots = slots_of(model.config, policy, most)
    if mode == "stepwise":
        states, held = _read_lead(*about, batch, slots=slots)
        states, logits = _read_tail(*about, states, batch.tail, batch.tail_lengths)
    else:
        states, logits, held = _read_at_once(*about, batch, slots=slots)
    nats = np.asarray(_judge(*about, states, logits, batch.values, batch.value_lengths), np.float64)
    answers = _write(model, policy, states, logits)
    rows = [one for _ in budgets for one in asked]
    shares = [Held(*row) for row in zip(*map(np.asarray, jax.tree.leaves(held)), strict=True)]
    return [_numbers(*row) for row in zip(rows, nats, answers, shares, strict=True)]


def _numbers(asked: Asked, nats: Float[np.ndarray, " C"], answer: str, held: Held) -> dict[str, Any]:
    case, prompt = asked
    return {
        "correct": int(is_right(answer, case.value)),
        "choice": int(nats[0] < nats[1:].min()),
        "answer_nats": float(nats[0]),
        "answer_tokens": len(prompt.values[0]),
        "answer": answer,
        "value": case.value,
        "held_any": float(held.value_any),
        "held_all": float(held.value_all),
        "held_question": None if prompt.question is None else float(held.question),
        "position": prompt.value[0],
        "prompt_tokens": len(prompt.lead) + len(prompt.tail),
    }


def is_right(answer: str, value: str) -> bool:
    """Whether the first word of an answer, letters and digits without a break, is the value."""
    word = WORD.match(answer)
    return word is not None and word[1] == value


def room_of(slots: Slots) -> int:
    """The budget of a policy that forgets nothing."""
    return int(np.asarray(slots).max()) - 1


@partial(jax.jit, static_argnames="slots")
def _read_lead(
    config: ms.Config, policy: Policy, params: Params, batch: Batch, *, slots: Slots
) -> tuple[MultiState, Held]:
    """The states when the question starts."""

    def one(tokens: Array, length: Array, budget: Array) -> MultiState:
        empty = init_state(config, policy, budget if policy.forgets else room_of(slots), slots=slots)
        return prefill(config, policy, params, empty, tokens, length)[0]

    states = jax.vmap(one)(batch.lead, batch.lead_lengths, batch.budgets)
    return states, held_in(batch, states)


@jax.jit  # given no more than it needs, so that it is compiled once for all lengths
def _read_tail(
    config: ms.Config,
    policy: Policy,
    params: Params,
    states: MultiState,
    tail: Int[Array, "B Q"],
    lengths: Int[Array, " B"],
) -> tuple[MultiState, Float[Array, "B V"]]:
    """The states when the answer goes on, and the logits of its next token."""
    return jax.vmap(partial(prefill, config, policy, params))(states, tail, lengths)


@partial(jax.jit, static_argnames="slots")
def _read_at_once(
    config: ms.Config, policy: Policy, params: Params, batch: Batch, *, slots: Slots
) -> tuple[MultiState, Float[Array, "B V"], Held]:
    """Text and question with full attention, then one cut, which sees the question."""

    def one(lead: Array, length: Array, tail: Array, more: Array, budget: Array) -> tuple[MultiState, Array]:
        empty = init_state(config, policy, budget if policy.forgets else room_of(slots), slots=slots)
        padded = jnp.pad(lead, (0, tail.shape[0]))
        prompt = jax.lax.dynamic_update_slice_in_dim(padded, tail, length, axis=0)
        return prefill(config, policy, params, empty, prompt, length + more, "oneshot")

    states, logits = jax.vmap(one)(batch.lead, batch.lead_lengths, batch.tail, batch.tail_lengths, batch.budgets)
    return states, logits, held_in(batch, states)


@jax.jit
def _judge(
    config: ms.Config,
    policy: Policy,
    params: Params,
    states: MultiState,
    logits: Float[Array, "B V"],
    values: Int[Array, "B C M"],
    lengths: Int[Array, "B C"],
) -> Float[Array, "B C"]:
    """What every value costs as the continuation, in nats: the sum over its tokens."""

    def one(state: MultiState, logits: Array, tokens: Array, length: Array) -> Array:
        real = jnp.arange(tokens.shape[0], dtype=jnp.int32) < length
        _, x = advance(config, policy, params, state, tokens, real=real)
        foreseen = jnp.concatenate([logits[None], unembed(config, params, x[:-1])])  # [M, V]
        return jnp.where(real, losses_of(foreseen, tokens), 0.0).sum()

    return jax.vmap(jax.vmap(one, (None, None, 0, 0)))(states, logits, values, lengths)


def _write(model: Model, policy: Policy, states: MultiState, logits: Float[Array, "B V"]) -> list[str]:
    """The likeliest continuation of every row."""
    rows = continue_greedily(model, policy, states, logits, WRITTEN)
    return [model.tokenizer.decode(row) for row in rows]
