"""Perplexity under a bounded state, by teacher forcing."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.checks import Count, as_tokens, check_reading, whole
from msrnn_jax.config import Config
from msrnn_jax.extend import CHUNK, Unembedded, read
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.state import MultiState


def nll(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    tokens: Int[Array, " T"] | np.ndarray | Sequence[int],
    targets: Int[Array, " T"] | np.ndarray | Sequence[int],
    length: Count | Int[Array, ""] | None = None,
    *,
    chunk: Count = CHUNK,
) -> tuple[MultiState, Float[Array, " T"]]:
    """Reads tokens and measures how well each next one was foreseen.

    Args:
      tokens: what is read, padded on the right.
      targets: what should follow each of them.
      length: how many tokens are real, from 1; by default all.
      chunk: as in `extend`.

    Returns:
      The state after the last real token, and -log p(target) in nats at every token, 0 at padding.

    Raises:
      ValueError: for shapes that differ, tokens outside the vocabulary, a full state that would outgrow its
        budget.
    """
    tokens, length = check_reading(config, policy, params, state, tokens, length)
    targets = as_tokens(config, "targets", targets)
    if tokens.shape != targets.shape:
        raise ValueError(f"targets has shape {targets.shape}; it must be that of tokens, {tokens.shape}")
    chunk = whole("chunk", chunk, 1)
    state, _, losses = read(config, policy, params, state, tokens, targets, length, chunk=chunk, reader=LOSSES)
    return state, losses


def losses_of(logits: Float[Array, "C V"], targets: Int[Array, " C"]) -> Float[Array, " C"]:
    """-log p(target) in nats."""
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]


LOSSES = Unembedded(losses_of)


def segment(tokens: Sequence[int] | np.ndarray, size: int, *, bos: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into non-overlapping segments.

    Args:
      size: tokens of the text in a segment, see `check_size`; the last one may have fewer.
      bos: a token to put before every segment, so that all tokens of the text are predicted. By default the first of
        each segment is context only.

    Returns:
      [B, size] int32, or [B, 1 + size] with `bos`, the last padded with zeros, and how many tokens of each are real. A
      last segment with nothing to predict is left out.

    Raises:
      ValueError: for a size below 2 or a text below two tokens; below one with `bos`.
    """
    tokens = np.asarray(tokens, np.int32)
    before = [] if bos is None else [bos]
    least = 2 - len(before)
    check_size(size, least)
    if tokens.size < least:
        raise ValueError(f"the text has {tokens.size} tokens; it must have at least {least}")
    parts = [[*before, *tokens[start : start + size]] for start in range(0, tokens.size, size)]
    parts = [part for part in parts if len(part) > 1]
    padded = np.zeros((len(parts), len(before) + size), np.int32)
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    return padded, np.asarray([len(part) for part in parts], np.int32)


def check_size(size: int, least: int = 2) -> None:
    """Refuses a segment in which there is nothing to predict: of one token, unless BOS is put before it."""
    if size < least:
        what = "one token of context and one to predict" if least > 1 else "one token to predict"
        raise ValueError(f"segment size is {size}; it must be at least {least}, {what}")


class Mean(NamedTuple):
    """A token-weighted mean over segments."""

    value: float
    stderr: float  # over segments; nan for a single one


def mean_over(sums: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray) -> Mean:
    """The mean per token of what is known of every segment as a sum over its tokens.

    The standard error is that of a ratio of sums: segments are the independent draws, weighted by tokens.

    Args:
      sums: one for every segment.
      counts: tokens of every segment.
    """
    sums, weights = np.asarray(sums, np.float64), np.asarray(counts, np.float64)  # [B]
    total = weights.sum()
    with np.errstate(invalid="ignore"):  # inf - inf, where a model yields no numbers
        mean = float(sums.sum() / total)
        spread = float(np.sqrt(((sums - mean * weights) ** 2).sum())) / float(total)
    number = len(sums)
    return Mean(mean, spread * math.sqrt(number / (number - 1)) if number > 1 else math.nan)


class Perplexity(NamedTuple):
    """Token-weighted mean loss over segments."""

    perplexity: float  # exp(nll)
    nll: float  # nats per predicted token
    stderr: float  # of nll, over segments; nan for a single one
    tokens: int  # predicted tokens
    segments: int


def perplexity_of(sums: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray) -> Perplexity:
    """Perplexity from the sums of losses, in nats, and the predicted tokens of every segment."""
    mean = mean_over(sums, counts)
    return Perplexity(perplexity_from(mean.value), *mean, int(np.sum(counts)), len(counts))


def perplexity_from(nll: float) -> float:
    """exp of nats per token, inf where that is no number of this size."""
    with np.errstate(over="ignore"):
        return float(np.exp(nll))
