"""Text from prompts as it is written: pieces of text, stop strings, and states that have seen just what was kept."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax import Array

from msrnn_jax.config import Config
from msrnn_jax.generation.decoding import BLOCK, DecodingRules, DecodingState, decode_block, unfinished
from msrnn_jax.generation.request import make_request, read_prompts, start_from
from msrnn_jax.generation.sampling import Greedy, Sampler
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import MAX_BUDGET, Budget, Count, Slots, as_tokens, check_int
from msrnn_jax.state import MultiState
from msrnn_jax.text.byte_tokens import stable_length
from msrnn_jax.text.tokenizer import Tokenizer
from msrnn_jax.text.tokens import pad

CONTEXT = 8  # tokens of the prompt that the first new one is decoded after: some tokenizers join words there


@dataclasses.dataclass
class Continuation:
    """What one row has got so far."""

    text: str = ""  # without what stopped it
    tokens: list[int] = dataclasses.field(default_factory=list)  # with what stopped it
    finish: str = ""  # "stop" (a token), "stop string", "length", or "" while it is being written


class Detokenizer:
    """Turns tokens into text as they come."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        self.tokenizer = tokenizer
        self.context = list(prompt[-CONTEXT:])
        self.before = tokenizer.decode(self.context)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of all tokens after the prompt, with a character that they complete."""
        text = self.tokenizer.decode([*self.context, *tokens])
        return text[len(os.path.commonprefix([self.before, text])) :]


def stream_text(
    config: Config,
    policy: Policy,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    budget: Budget | None = None,
    state: MultiState | None = None,
    max_new_tokens: Count = 256,
    sampler: Sampler = Greedy(),  # noqa: B008, a frozen value
    key: Array | None = None,
    stop: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    mode: str = "stepwise",
    prompt_policy: Policy | None = None,
    slots: Slots | None = None,
    positions: str | None = None,
    dtype: Any = None,
) -> "TextStream":
    """Continues texts, to be iterated over for what is new in each.

    Args:
      prompts: texts, or tokens such as `tokenizer.chat` makes; of any lengths.
      stop: token numbers that end a row; by default the tokenizer's.
      stop_strings: a row ends where one of them is complete, and its text before the first that is. U+FFFD in them
        is that of the text, where bytes are no character: known once later bytes can make none of them.
      budget, state, max_new_tokens, sampler, key, mode, prompt_policy, slots, positions, dtype: as in
        `generate`.

    Raises:
      ValueError: as `generate`, and for an empty prompt or stop string.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts is {prompts!r}; it must be a sequence of at least one prompt")
    rows = [
        tokenizer.encode(prompt) if isinstance(prompt, str) else as_tokens(config, "prompts", prompt).tolist()
        for prompt in prompts
    ]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise ValueError(f"prompt {prompt!r} is empty; it must have at least one token")
    check_stop_strings(stop_strings)
    padded, lengths = pad(rows)
    request = make_request(
        config,
        policy,
        params,
        start_from(
            config, policy, state, budget, slots=slots, positions=positions, dtype=dtype, prompt_policy=prompt_policy
        ),
        padded,
        lengths,
        check_int("max_new_tokens", max_new_tokens, 1, MAX_BUDGET),
        sampler,
        key,
        tokenizer.stop if stop is None else stop,
        mode,
        prompt_policy,
    )
    draft = read_prompts(config, policy, params, request, mode, prompt_policy)
    return TextStream(config, policy, params, tokenizer, rows, draft, request.rules, sampler, stop_strings)


def check_stop_strings(stop_strings: Sequence[str]) -> None:
    """Refuses what would end every row before it begins."""
    if isinstance(stop_strings, str) or not all(isinstance(string, str) and string for string in stop_strings):
        raise ValueError(f"stop_strings is {stop_strings!r}; it must be a sequence of strings that are not empty")


class TextStream:
    """Writes text block by block; iterate over it for what is new in every row.

    A row ends at a stop token, at a stop string or at its limit. Where a stop string is found within a block, the
    block is written again up to the token that completed it, so that no state has seen more than was kept.

    Attributes:
      rows: one `Continuation` per prompt, complete once the iteration has ended.
      draft: what the rows can be continued from; its states have seen prompts and `rows[...].tokens`.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        params: Params,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        draft: DecodingState,
        rules: DecodingRules,
        sampler: Sampler,
        stop_strings: Sequence[str] = (),
    ):
        self.model = (config, policy, params)
        self.draft, self.rules, self.sampler = draft, rules, sampler
        self.stop_strings = tuple(stop_strings)
        self.detokenizers = [Detokenizer(tokenizer, prompt) for prompt in prompts]
        self.rows = [Continuation() for _ in prompts]
        self.shown = [0] * len(prompts)  # characters given out

    @property
    def states(self) -> MultiState:
        """The states [B, ...], which have seen everything that is kept."""
        return self.draft.states

    def __iter__(self) -> Iterator[list[str]]:
        most = 1  # the first token is shown at once
        while unfinished(self.draft, self.rules):
            self._block(most)
            yield self._news()
            most = BLOCK

    def _block(self, most: int) -> None:
        before = self.draft
        after, news = self._write(before, most)
        ends = [self._end(*each) for each in zip(self.rows, self.detokenizers, news, strict=True)]
        for index, end in enumerate(ends):
            if end is not None:
                limits = self.rules.limits.at[index].set(before.lengths[index] + end)
                self.rules = self.rules.replace(limits=limits)
        if any(end is not None and end < len(new) for end, new in zip(ends, news, strict=True)):
            after, news = self._write(before, most)
        self.draft = after
        for index, (row, new) in enumerate(zip(self.rows, news, strict=True)):
            row.tokens += new
            if row.finish:
                continue
            row.text = self.detokenizers[index].text(row.tokens)
            if ends[index] is None and not after.running[index]:
                row.finish = "stop"
                row.text = self.detokenizers[index].text(row.tokens[:-1])
            elif after.lengths[index] >= self.rules.limits[index]:
                row.finish = "length"
            place = _first(row.text, self.stop_strings) if row.finish else None
            if place is not None:  # also one of broken bytes, which nothing can mend any more
                row.finish, row.text = "stop string", row.text[:place]

    def _write(self, draft: DecodingState, most: int) -> tuple[DecodingState, list[list[int]]]:
        """The draft after a block, and the new tokens of every row."""
        block = decode_block(*self.model, draft, self.rules, most, self.sampler)
        return block.draft, [row[:count].tolist() for row, count in zip(block.tokens, block.counts, strict=True)]

    def _end(self, row: Continuation, detokenizer: Detokenizer, new: list[int]) -> int | None:
        """After how many of the new tokens a stop string is complete, or None."""
        if row.finish or not self.stop_strings or not self._is_complete(row, detokenizer, new):
            return None
        return next(end for end in range(1, len(new) + 1) if self._is_complete(row, detokenizer, new[:end]))

    def _is_complete(self, row: Continuation, detokenizer: Detokenizer, new: list[int]) -> bool:
        text = detokenizer.text(row.tokens + new)
        return _first(text[: stable_length(text)], self.stop_strings) is not None

    def _news(self) -> list[str]:
        news = []
        for index, row in enumerate(self.rows):
            text = row.text if row.finish else row.text[: _sure(row.text, self.stop_strings)]
            news.append(text[self.shown[index] :])
            self.shown[index] = max(self.shown[index], len(text))
        return news


def _first(text: str, strings: Sequence[str]) -> int | None:
    """Where the string that begins first begins, or None."""
    found = [place for place in map(text.find, strings) if place >= 0]
    return min(found) if found else None


def _sure(text: str, strings: Sequence[str]) -> int:
    """How many characters cannot change or turn out to be part of a stop string as tokens come."""
    end = stable_length(text)
    for string in strings:
        for size in range(min(len(string) - 1, end), 0, -1):
            if text.endswith(string[:size], 0, end):
                end -= size
                break
    return end


def row_of(states: MultiState, index: int) -> MultiState:
    """The state of one row."""
    return jax.tree.map(lambda leaf: leaf[index], states)
