"""What the model reads of a case: the text and the question in tokens, and where in them the needle is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Int

from experiments.needle.haystack import CHOICES, CITIES, DIGITS, SENTENCE, Case
from msrnn_jax.text.tokenizer import Tokenizer

ORDERS = ("after", "before")  # of the question, which is asked after the text in both
MULTIPLE = 32  # texts and questions are padded to it, so that few shapes are compiled for
SLACK = 2  # tokens that a text may take more beside others than alone
Span = tuple[int, int]  # the first token, and the one after the last
WIDTH = DIGITS + 1  # most tokens of a value with the space before it
NOWHERE = (0, 0)


class Prompt(NamedTuple):
    """A case in one order."""

    lead: list[int]  # all before the question that is to be answered
    tail: list[int]  # this question, and how the answer begins
    values: list[list[int]]  # [CHOICES], continuations; the right one first
    value: Span  # of the right value in the text
    question: Span | None  # where it was asked before the text


class Room(NamedTuple):
    """Sizes that prompts are padded to."""

    lead: int
    tail: int


def write_prompt(tokenizer: Tokenizer, case: Case, order: str, chat: bool) -> Prompt:
    """Encodes a case.

    Raises:
      ValueError: for a chat without a template, or one that does not keep what is said; a tokenizer that joins the
        answer to what comes before it.
    """
    asked = case.question if chat else f"Question: {case.question}"
    said = f"{case.text}\n\n{asked}"
    if order == "before":
        said = f"{asked}\n\n{said}"
    whole = f"{_opened(tokenizer, said)}{case.opening}" if chat else f"{said}\nAnswer: {case.opening}"
    tokens, ends = _encode(tokenizer, whole, chat)
    if said not in whole:
        raise ValueError("chat template: it changes what is said, so the needle cannot be found in it")
    start = whole.index(said)
    last = start + len(said) - len(asked)
    first = sum(end <= last for end in ends)
    continued = [_encode(tokenizer, f"{whole} {value}", chat)[0] for value in case.values]
    if any(longer[: len(tokens)] != tokens for longer in continued):
        raise ValueError("the tokenizer joins an answer to the words before it, so it cannot be judged by itself")
    return Prompt(
        lead=tokens[:first],
        tail=tokens[first:],
        values=[longer[len(tokens) :] for longer in continued],
        value=_span(ends, whole.index(case.value), case.value),
        question=_span(ends, start, asked) if order == "before" else None,
    )


def rooms_for(tokenizer: Tokenizer, lengths: Sequence[int], chat: bool) -> dict[int, Room]:
    """For each length sizes that hold every case of it in any order, whatever is drawn.

    Raises:
      ValueError: as `write_prompt`.
    """
    around, tail = 0, 0
    for city in CITIES:
        values = ("0" * DIGITS,) * CHOICES
        text = SENTENCE.format(city=city, value=values[0])
        for order in ORDERS:
            prompt = write_prompt(tokenizer, Case(0, 0.0, 0, text, city, values, ""), order, chat)
            around = max(around, len(prompt.lead) - len(tokenizer.encode(text)))
            tail = max(tail, len(prompt.tail))
    return {length: Room(_rounded(length + around + SLACK), _rounded(tail)) for length in lengths}


def _rounded(count: int) -> int:
    return -(-count // MULTIPLE) * MULTIPLE


def _encode(tokenizer: Tokenizer, text: str, chat: bool) -> tuple[list[int], list[int]]:
    """Tokens, and the character at which each ends; a chat template writes the special tokens itself."""
    return tokenizer.encode_with_ends(text, special=not chat)


def _opened(tokenizer: Tokenizer, message: str) -> str:
    """A chat's first message and the beginning of the answer to it."""
    if tokenizer.template is None:
        raise ValueError("chat is on, but the checkpoint has no chat template; it must be off")
    return tokenizer.render([{"role": "user", "content": message}])


def _span(ends: Sequence[int], start: int, text: str) -> Span:
    """The tokens that end within a text: one that only brings the space before it does not."""
    return sum(end <= start for end in ends), sum(end <= start + len(text) for end in ends)


class Batch(struct.PyTreeNode):
    """B prompts with a budget each, padded on the right."""

    lead: Array  # [B, T] int32
    lead_lengths: Array  # [B] int32
    tail: Array  # [B, Q] int32
    tail_lengths: Array  # [B] int32
    values: Array  # [B, CHOICES, WIDTH] int32, the right one first
    value_lengths: Array  # [B, CHOICES] int32
    value: Array  # [B, 2] int32, positions of the right value in the text: the first, and the one after the last
    question: Array  # [B, 2] int32, those of the question before the text
    budgets: Array  # [B] int32


def make_batch(prompts: Sequence[Prompt], budgets: Sequence[int], room: Room) -> Batch:
    """All prompts under the first budget, then under the next."""
    rows = [prompt for _ in budgets for prompt in prompts]
    values = [value for prompt in rows for value in prompt.values]
    return Batch(
        lead=_pad([prompt.lead for prompt in rows], room.lead),
        lead_lengths=_whole([len(prompt.lead) for prompt in rows]),
        tail=_pad([prompt.tail for prompt in rows], room.tail),
        tail_lengths=_whole([len(prompt.tail) for prompt in rows]),
        values=_pad(values, WIDTH).reshape(len(rows), CHOICES, WIDTH),
        value_lengths=_whole([len(value) for value in values]).reshape(len(rows), CHOICES),
        value=_whole([prompt.value for prompt in rows]),
        question=_whole([prompt.question or NOWHERE for prompt in rows]),
        budgets=_whole([budget for budget in budgets for _ in prompts]),
    )


def _pad(rows: Sequence[Sequence[int]], size: int) -> Int[Array, "B T"]:
    padded = np.zeros((len(rows), size), np.int32)
    for place, row in zip(padded, rows, strict=True):
        if len(row) > size:
            raise ValueError(
                f"the tokenizer makes {len(row)} tokens where {size} were expected; its cities or digits differ"
            )
        place[: len(row)] = row
    return jnp.asarray(padded)


def _whole(values: Sequence[Any]) -> Array:
    return jnp.asarray(np.asarray(values, np.int32))
