"""A conversation as a value: a state that has seen it, and what to do to it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from msrnn_jax.adopt import adopt, with_budget
from msrnn_jax.checks import check_protection, check_room
from msrnn_jax.compress import compress
from msrnn_jax.config import Config
from msrnn_jax.extend import CHUNK
from msrnn_jax.generate import Draft, Rules
from msrnn_jax.params import Params
from msrnn_jax.policies import POLICIES, Policy, parse_policy
from msrnn_jax.prefill import prefill
from msrnn_jax.sampling import Sampler
from msrnn_jax.slots import init_state
from msrnn_jax.state import EMPTY, MultiState
from msrnn_jax.state_file import load_state, read_header, save_state
from msrnn_jax.tokenizer import Tokenizer
from msrnn_jax.window import check_windows
from msrnn_jax.writing import Writer, row_of


class Model(NamedTuple):
    """Who answers."""

    config: Config
    params: Params
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What a conversation has come to; nothing that is done to it changes it.

    The text itself is nowhere: what is remembered of it are the state's slots, so it may go on for ever.
    """

    policy: Policy
    state: MultiState  # of one sequence
    turns: int = 0  # answers given
    closed: bool = True  # the last answer ended with a stop token

    @property
    def budgets(self) -> list[int]:
        """Of every layer."""
        return [int(layer.budget) for layer in self.state.layers]


class Answer(NamedTuple):
    """An answer in the making."""

    piece: str  # what is new of it
    conversation: Conversation  # as it is after everything so far


def begin_conversation(
    model: Model, policy: Policy, budget: int, *, positions: str = "absolute", dtype: Any = None
) -> Conversation:
    """One in which nothing was said."""
    return Conversation(policy, init_state(model.config, policy, budget, positions=positions, dtype=dtype))


def answer(
    model: Model,
    conversation: Conversation,
    message: str,
    *,
    sampler: Sampler,
    seed: int = 0,
    max_new_tokens: int = 512,
    system: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Answer]:
    """Reads a message and answers it, piece by piece.

    Args:
      system: what the model is told first of all, where this is the first message.
      seed: of the draws; every turn draws anew.
      stopped: asked before every block of tokens; True ends it, and what was read but not yet answered is as if
        it had not been said.

    Raises:
      ValueError: for an empty message, one that the chat template refuses, a conversation that a policy which
        forgets nothing cannot hold.
    """
    if not message.strip():
        raise ValueError("the message is empty; it must have at least one character")
    if conversation.turns:
        tokens = model.tokenizer.reply(message, closed=conversation.closed)
    else:
        first = [{"role": "system", "content": system}] if system else []
        tokens = model.tokenizer.chat([*first, {"role": "user", "content": message}])
    check_room(model.config, conversation.policy, conversation.state, len(tokens), max_new_tokens)
    state, logits = conversation.state, None
    for start in range(0, len(tokens), CHUNK):
        if stopped():
            return
        state, logits = _read(model, conversation.policy, state, tokens[start : start + CHUNK])
    assert logits is not None
    draft = Draft(
        states=jax.tree.map(lambda leaf: leaf[None], state),
        logits=logits[None],
        running=jnp.ones(1, bool),
        lengths=jnp.zeros(1, jnp.int32),
    )
    rules = Rules(
        keys=jax.random.fold_in(jax.random.key(seed), conversation.turns)[None],
        stop=jnp.asarray(model.tokenizer.stop, jnp.int32),
        limits=jnp.full(1, max_new_tokens, jnp.int32),
    )
    writer = Writer(model.config, conversation.policy, model.params, model.tokenizer, [tokens], draft, rules, sampler)
    for (piece,) in writer:
        state, closed = row_of(writer.states, 0), writer.rows[0].finish == "stop"
        yield Answer(piece, Conversation(conversation.policy, state, conversation.turns + 1, closed))
        if stopped():
            return


def _read(model: Model, policy: Policy, state: MultiState, tokens: list[int]) -> tuple[MultiState, jax.Array]:
    """Reads up to `CHUNK` tokens by the same compiled program, however many they are."""
    padded = np.zeros(CHUNK, np.int32)
    padded[: len(tokens)] = tokens
    return prefill(model.config, policy, model.params, state, padded, len(tokens))


def change_policy(
    config: Config, conversation: Conversation, policy: Policy, budget: int | None = None
) -> Conversation:
    """The same conversation, forgetting in another way from now on.

    Where the new budget is smaller, the old policy's scores decide what is forgotten at once; what it protects is as
    any other token then.

    Raises:
      ValueError: for a budget that the policy or the model's windows rule out.
    """
    old, state = conversation.policy, conversation.state
    budgets = conversation.budgets if budget is None else [budget] * config.num_layers
    check_windows(config, state.mode, [each + 1 for each in budgets])
    if any(count > each for count, each in zip(held(state), budgets, strict=True)):
        less = [min(each, layer.num_slots - 1) for each, layer in zip(budgets, state.layers, strict=True)]
        state = compress(old if policy == old else old.replace(sinks=0, recent=0), state, less, shrink=True)
    if policy == old:  # whose statistics stay
        check_protection(policy, budgets)
        layers = tuple(with_budget(policy, *pair) for pair in zip(state.layers, budgets, strict=True))
        return dataclasses.replace(conversation, state=state.replace(layers=layers))
    return dataclasses.replace(conversation, policy=policy, state=adopt(policy, state, budgets))


def held(state: MultiState) -> list[int]:
    """How many tokens each layer holds, the most of its rows."""
    return [int((np.asarray(layer.positions) != EMPTY).sum(axis=1).max()) for layer in state.layers]


def save_conversation(path: str, model: Model, conversation: Conversation) -> None:
    """Writes a conversation as a state file (see `save_state`)."""
    notes = {"turns": conversation.turns, "closed": conversation.closed}
    save_state(path, model.config, conversation.policy, model.params, conversation.state, notes=notes)


def load_conversation(path: str, model: Model, policy: Policy) -> Conversation:
    """Reads one that was saved, under the policy it was saved with.

    Args:
      policy: the one in use. A file's own is taken where it is one of ours; somebody's own policy is code, which
        no state file may name, so then it must be in use already.
    """
    text = read_header(path)["policy"]
    if text.partition(":")[0] in POLICIES:
        policy = parse_policy(text)
    state, notes = load_state(path, model.config, policy, model.params)
    turns, closed = notes.get("turns"), notes.get("closed")
    if type(turns) is not int or not 0 <= turns < 2**32 or not isinstance(closed, bool):
        raise ValueError(f"state {path!r} is of no conversation; it must be one that /save wrote")
    return Conversation(policy, state, turns, closed)
