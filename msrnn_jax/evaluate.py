"""Perplexity under a bounded state, by teacher forcing."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from msrnn_jax.checks import Count, as_lengths, as_tokens, check_params, check_protection, check_room, check_state
from msrnn_jax.config import Config
from msrnn_jax.llama import advance, unembed
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.slots import init_state
from msrnn_jax.state import MultiState


def nll(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    tokens: Int[Array, " T"] | np.ndarray | Sequence[int],
    targets: Int[Array, " T"] | np.ndarray | Sequence[int],
    length: Count | Int[Array, ""] | None = None,
) -> tuple[MultiState, Float[Array, " T"]]:
    """Reads tokens and measures how well each next one was foreseen.

    Args:
      tokens: what is read, padded on the right.
      targets: what should follow each of them.
      length: how many tokens are real, from 1; by default all.

    Returns:
      The state after the last real token, and -log p(target) in nats at every token, 0 at padding.

    Raises:
      ValueError: for shapes that differ, tokens outside the vocabulary, a full state that would outgrow its
        budget.
    """
    check_params(config, params)
    check_state(config, policy, state)
    check_protection(policy, [layer.budget for layer in state.layers])
    tokens, targets = as_tokens(config, "tokens", tokens), as_tokens(config, "targets", targets)
    if tokens.ndim != 1 or tokens.shape[0] == 0 or tokens.shape != targets.shape:
        raise ValueError(f"tokens {tokens.shape} and targets {targets.shape} must both be [T], with at least one token")
    if length is not None:
        length = as_lengths("length", length, tokens.shape[0])
    check_room(policy, state, tokens.shape[0] if length is None else length)
    return _nll(config, policy, params, state, tokens, targets, length)


@jax.jit  # a scan over a new closure would compile at every call outside jit
def _nll(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    tokens: Int[Array, " T"],
    targets: Int[Array, " T"],
    length: Int[Array, ""] | None,
) -> tuple[MultiState, Float[Array, " T"]]:
    def one(state: MultiState, item: tuple[Array, Array, Array]) -> tuple[MultiState, Array]:
        token, target, index = item
        real = None if length is None else index < length
        state, x = advance(config, policy, params, state, token, real=real)
        logits = unembed(config, params, x)
        loss = jax.nn.logsumexp(logits) - logits[target]
        return state, loss if real is None else jnp.where(real, loss, 0.0)

    return lax.scan(one, state, (tokens, targets, jnp.arange(tokens.shape[0], dtype=jnp.int32)))


def segment(tokens: Sequence[int] | np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into non-overlapping segments.

    Returns:
      [B, size] int32, the last padded with zeros, and how many tokens of each are real. A last segment of
      one token has nothing to predict and is left out.

    Raises:
      ValueError: for a size below 2 or a text below two tokens.
    """
    tokens = np.asarray(tokens, np.int32)
    if size < 2:
        raise ValueError(f"segment size is {size}; it must be at least 2, one token of context and one to predict")
    if tokens.size < 2:
        raise ValueError(f"the text has {tokens.size} tokens; it must have at least 2")
    lengths = [min(size, tokens.size - start) for start in range(0, tokens.size, size)]
    lengths = np.asarray([length for length in lengths if length > 1], np.int32)
    padded = np.zeros(len(lengths) * size, np.int32)
    kept = min(tokens.size, padded.size)
    padded[:kept] = tokens[:kept]
    return padded.reshape(len(lengths), size), lengths


def segment_texts(texts: Sequence[Sequence[int]], size: int, most: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cuts several texts, each by itself; `most` > 0 keeps the first segments only."""
    cut = [segment(tokens, size) for tokens in texts]
    segments, lengths = (np.concatenate(parts) for parts in zip(*cut, strict=True))
    return (segments[:most], lengths[:most]) if most else (segments, lengths)


def segment_nll(
    config: Config,
    policy: Policy,
    params: Params,
    tokens: Int[Array, " T"],
    length: Count | Int[Array, ""],
    budget: Any,
    *,
    slots: int | None = None,
    positions: str = "absolute",
) -> Float[Array, " T-1"]:
    """-log p in nats of every token of a segment but the first, from an empty state; 0 at padding.

    Args:
      tokens: one segment, padded on the right.
      length: how many of its tokens are real, from 2.
      budget, slots, positions: as in `init_state`.
    """
    empty = init_state(config, policy, budget, slots=slots, positions=positions)
    return nll(config, policy, params, empty, tokens[:-1], tokens[1:], length - 1)[1]


class Perplexity(NamedTuple):
    """Token-weighted mean loss over segments."""

    perplexity: float  # exp(nll)
    nll: float  # nats per predicted token
    stderr: float  # of nll, over segments; nan for a single one
    tokens: int  # predicted tokens
    segments: int


def perplexity(losses: Float[Array, "B T"] | np.ndarray, counts: Sequence[int] | np.ndarray) -> Perplexity:
    """Sums up losses per segment.

    The standard error is that of a ratio of sums: segments are the independent draws, weighted by tokens.

    Args:
      losses: nats per predicted token, 0 at padding.
      counts: predicted tokens of every segment.
    """
    sums = np.asarray(losses, np.float64).sum(axis=1)  # [B]
    weights = np.asarray(counts, np.float64)  # [B]
    total = weights.sum()
    mean = float(sums.sum() / total)
    number = len(sums)
    spread = float(np.sqrt(((sums - mean * weights) ** 2).sum())) / float(total)
    stderr = spread * math.sqrt(number / (number - 1)) if number > 1 else math.nan
    return Perplexity(math.exp(mean), mean, stderr, int(total), number)
