"""Perplexity under a bounded state, by teacher forcing."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.config import Config
from msrnn_jax.model.extend import CHUNK, Unembedded, scan_chunks
from msrnn_jax.model.llama import unembed
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import Count, as_tokens, check_int, check_reading
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
    chunk = check_int("chunk", chunk, 1)
    state, _, losses = scan_chunks(config, policy, params, state, tokens, targets, length, chunk=chunk, reader=LOSSES)
    return state, losses


def losses_of(logits: Float[Array, "C V"], targets: Int[Array, " C"]) -> Float[Array, " C"]:
    """-log p(target) in nats."""
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]


LOSSES = Unembedded(losses_of)


def read_losses(config: Config, params: Params, x: Float[Array, "C D"], beside: dict[str, Array]) -> dict[str, Array]:
    """Nats [C] of every target."""
    return {"nats": losses_of(unembed(config, params, x), beside["targets"])}


def read_fidelity(config: Config, params: Params, x: Float[Array, "C D"], beside: dict[str, Array]) -> dict[str, Array]:
    """Losses, and nearness to the full model, whose logits are computed again from its residual stream."""
    return compare(unembed(config, params, x), unembed(config, params, beside["full"]), beside["targets"])


def read_streams(config: Config, params: Params, x: Float[Array, "C D"], beside: dict[str, Array]) -> dict[str, Array]:
    """What `read_fidelity` says of the full model itself, and its residual stream x [C, D]."""
    logits = unembed(config, params, x)
    return {**compare(logits, logits, beside["targets"]), "x": x}


def compare(logits: Float[Array, "C V"], full: Float[Array, "C V"], targets: Int[Array, " C"]) -> dict[str, Any]:
    """Losses, KL(full || policy) in nats, and 1 where the likeliest token is the full model's; each [C].

    Where logits are no numbers there is no likeliest token, and all three are nan.
    """
    ours, theirs = jax.nn.log_softmax(logits, axis=-1), jax.nn.log_softmax(full, axis=-1)
    same = jnp.argmax(logits, axis=-1) == jnp.argmax(full, axis=-1)
    known = ~jnp.isnan(jnp.max(logits, axis=-1) + jnp.max(full, axis=-1))
    return {
        "nats": losses_of(logits, targets),
        "kl": jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1),
        "agreement": jnp.where(known, same.astype(jnp.float32), jnp.nan),
    }
