"""A conversation as a value: a state that has seen it, and what to do to it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from msrnn_jax.checkpoint.state_file import load_states, read_header, save_states
from msrnn_jax.config import Config
from msrnn_jax.generation.decoding import make_rules, start_decoding
from msrnn_jax.generation.sampling import Sampler
from msrnn_jax.generation.streaming import TextStream, row_of
from msrnn_jax.model.extend import CHUNK
from msrnn_jax.model.prefill import prefill
from msrnn_jax.model.state_ops import adopt, compress, with_budget
from msrnn_jax.params import Params
from msrnn_jax.policies import POLICIES, Policy, parse_policy
from msrnn_jax.policies.budgets import largest_budget, rows_for, slots_for
from msrnn_jax.recurrence.checks import check_protection, check_room
from msrnn_jax.recurrence.sliding_window import check_windows
from msrnn_jax.recurrence.slots import init_state, share_out
from msrnn_jax.state import EMPTY, MultiState
from msrnn_jax.text.tokenizer import MARK, Tokenizer


class ChatModel(NamedTuple):
    """Who answers."""

    config: Config
    params: Params
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What a conversation has come to; nothing that is done to it changes it.

    What the model remembers of it are the state's slots, so it may go on for ever. What was said is kept beside them as
    text, since a chat template may write it in another way later on.
    """

    policy: Policy
    state: MultiState  # of one sequence
    messages: tuple[Mapping[str, str], ...] = ()  # all that was said, each a `role` and a `content`
    tokens: tuple[int, ...] = ()  # what the state has seen
    before: MultiState | None = None  # has seen the first of them, up to the last answer
    closed: bool = True  # the last answer ended with a stop token

    @property
    def turns(self) -> int:
        """Answers given."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def budgets(self) -> list[int]:
        """Of every layer."""
        return [int(layer.budget.max()) for layer in self.state.layers]


class Answer(NamedTuple):
    """An answer in the making."""

    piece: str  # what is new of it
    conversation: Conversation  # as it is after everything so far


def begin_conversation(
    model: ChatModel, policy: Policy, budget: int, *, positions: str = "absolute", dtype: Any = None
) -> Conversation:
    """One in which nothing was said."""
    return Conversation(policy, init_state(model.config, policy, budget, positions=positions, dtype=dtype))


def answer(
    model: ChatModel,
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

    The state has then seen the tokens of the whole conversation, as the chat template writes it now, and those of the
    answer. Where the template writes an earlier answer in another way than the model did (it drops thinking, trims,
    closes an answer that was cut; or the model spelled a word by other tokens than the tokenizer), the state from
    before that answer goes on, and what the template writes is read; an empty one, where even that has seen
    something else.

    Args:
      system: what the model is told first of all, where this is the first message; an empty text takes the place of a
        template's own.
      seed: of the draws; every turn draws anew.
      stopped: asked before every block of tokens; True ends it, and what was read but not yet answered is as if
        it had not been said.

    Raises:
      ValueError: for an empty message, one that the chat template refuses, a conversation that a policy which
        forgets nothing cannot hold.
    """
    if not message.strip():
        raise ValueError("the message is empty; it must have at least one character")
    policy, messages = conversation.policy, conversation.messages
    if not messages and system is not None:
        messages = ({"role": "system", "content": system},)
    messages += ({"role": "user", "content": message},)
    tokens, lasting, lead = _opening(model.tokenizer, messages)
    state, logits = _going_on(model.config, conversation, tokens), None
    at, before = int(state.t), state
    check_room(model.config, policy, state, len(tokens) - at, max_new_tokens)
    while at < len(tokens):
        if stopped():
            return
        end = min(at + CHUNK, lasting if at < lasting else len(tokens))
        state, logits = _read(model, policy, state, tokens[at:end])
        at = end
        before = state if at <= lasting else before
    assert logits is not None
    draft = start_decoding(jax.tree.map(lambda leaf: leaf[None], state), logits[None])
    key = jax.random.fold_in(jax.random.key(seed), conversation.turns)
    rules = make_rules(key[None], model.tokenizer.stop, max_new_tokens)
    writer = TextStream(model.config, policy, model.params, model.tokenizer, [tokens], draft, rules, sampler)
    written, shown, row = "", "", writer.rows[0]
    for (piece,) in writer:
        written += piece
        text = written.removeprefix(lead)
        if lead.startswith(written) and not row.finish:
            text = ""  # nothing yet but what may be the template's own
        said = (*messages, {"role": "assistant", "content": text})
        seen = (*tokens, *row.tokens)
        now = Conversation(policy, row_of(writer.states, 0), said, seen, before, row.finish == "stop")
        yield Answer(text[len(shown) :], now)
        shown = text
        if stopped():
            return


class _Opening(NamedTuple):
    tokens: list[int]  # of a conversation up to the answer that comes next
    lasting: int  # how many of them the template will write again when the conversation goes on
    lead: str  # what it will write between them and the answer


def _opening(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> _Opening:
    tokens, text = tokenizer.chat(messages), tokenizer.render(messages)
    later = [*messages, {"role": "assistant", "content": MARK}, {"role": "user", "content": MARK}]
    try:
        tokens_later, text_later = tokenizer.chat(later), tokenizer.render(later)
    except ValueError:  # a template that takes no more turns says so when there is one
        return _Opening(tokens, len(tokens), "")
    place = text_later.find(MARK, len(text)) if text_later.startswith(text) else -1
    return _Opening(tokens, _agreeing(tokens, tokens_later), text_later[len(text) : max(place, len(text))])


def _agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common, from the first on."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _going_on(config: Config, conversation: Conversation, tokens: Sequence[int]) -> MultiState:
    """The newest state that has seen nothing but the first of the tokens, and not all of them."""
    agreeing = min(_agreeing(conversation.tokens, tokens), len(tokens) - 1)
    for state in (conversation.state, conversation.before):
        if state is not None and int(state.t) <= agreeing:
            return state
    return _emptied(config, conversation.policy, conversation.state)


def _emptied(config: Config, policy: Policy, state: MultiState) -> MultiState:
    budgets, slots = zip(*((layer.budget, layer.num_slots) for layer in state.layers), strict=True)
    return init_state(config, policy, budgets, slots=slots, positions=state.mode, dtype=state.layers[0].keys.dtype)


def _read(model: ChatModel, policy: Policy, state: MultiState, tokens: list[int]) -> tuple[MultiState, jax.Array]:
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
    old, before = conversation.policy, conversation.before
    states = [conversation.state] + ([] if before is None else [before])
    budgets = conversation.budgets if budget is None else share_out(policy, config.num_layers, budget)
    rows = rows_for(policy, config.num_kv_heads)
    check_windows(config, conversation.state.mode, [slots_for(policy, each, rows) for each in budgets])
    if any(count > each for state in states for count, each in zip(held(state), budgets, strict=True)):
        deciding = old if policy == old else _unprotecting(old)
        for number, state in enumerate(states):
            most = [largest_budget(old, layer.num_slots, layer.num_rows) for layer in state.layers]
            less = [min(pair) for pair in zip(budgets, most, strict=True)]
            states[number] = compress(deciding, state, less, shrink=True)
    if policy == old:  # whose statistics stay
        check_protection(policy, budgets)
        states = [
            state.replace(layers=tuple(with_budget(policy, *pair) for pair in zip(state.layers, budgets, strict=True)))
            for state in states
        ]
    else:
        states = [adopt(policy, state, budgets, config=config) for state in states]
    return dataclasses.replace(
        conversation, policy=policy, state=states[0], before=None if before is None else states[1]
    )


def _unprotecting(policy: Policy) -> Policy:
    """The policy without protected tokens, where it can do without: an observation window it needs."""
    try:
        return policy.replace(sinks=0, recent=0)
    except ValueError:
        return policy.replace(sinks=0)


def held(state: MultiState) -> list[int]:
    """How many tokens each layer holds, the most of its rows."""
    return [int((np.asarray(layer.positions) != EMPTY).sum(axis=1).max()) for layer in state.layers]


def save_conversation(path: str, model: ChatModel, conversation: Conversation) -> None:
    """Writes a conversation as a state file (see `save_state`)."""
    messages = [dict(message) for message in conversation.messages]
    notes = {"messages": messages, "tokens": list(conversation.tokens), "closed": conversation.closed}
    states = [conversation.state] + ([] if conversation.before is None else [conversation.before])
    save_states(path, model.config, conversation.policy, model.params, states, notes=notes)


def load_conversation(path: str, model: ChatModel, policy: Policy) -> Conversation:
    """Reads one that was saved, under the policy it was saved with.

    Args:
      policy: the one in use. A file's own is taken where it is one of ours; somebody's own policy is code, which
        no state file may name, so then it must be in use already.
    """
    text = read_header(path)["policy"]
    if text.partition(":")[0] in POLICIES:
        policy = parse_policy(text)
    (state, *before), notes = load_states(path, model.config, policy, model.params)
    messages, tokens, closed = notes.get("messages"), notes.get("tokens"), notes.get("closed")
    if (
        not isinstance(messages, list)
        or not all(isinstance(message, dict) and message.keys() == {"role", "content"} for message in messages)
        or not all(isinstance(part, str) for message in messages for part in message.values())
        or not isinstance(tokens, list)
        or not all(type(token) is int and 0 <= token < model.config.vocab_size for token in tokens)
        or [len(tokens), *(int(earlier.t) <= len(tokens) for earlier in before)]
        != [int(state.t)] + [True] * len(before)
        or not isinstance(closed, bool)
    ):
        raise ValueError(f"state {path!r} is of no conversation; it must be one that /save wrote")
    return Conversation(policy, state, tuple(messages), tuple(tokens), before[0] if before else None, closed)
