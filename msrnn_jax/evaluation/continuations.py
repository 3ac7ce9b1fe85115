"""How well continuations are foreseen by states that have read what goes before."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from msrnn_jax.config import Config
from msrnn_jax.evaluation.losses import losses_of
from msrnn_jax.model.extend import CHUNK, Unembedded, scan_chunks
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.state import MultiState
from msrnn_jax.text.tokens import pad

BLOCK = 16 * CHUNK  # tokens that one call of the program reads
WIDTHS = (1, 8, 32, CHUNK, 4 * CHUNK, BLOCK)  # that calls are padded to: few programs are compiled


def score_continuations(
    config: Config,
    policy: Policy,
    params: Params,
    states: MultiState,
    logits: Float[Array, "B V"],
    continuations: Sequence[Sequence[int]],
) -> tuple[Float[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """What every row's continuation costs after what its state has read.

    Args:
      states: [B, ...]; a policy that forgets nothing needs room for the continuations.
      logits: of the first token of each continuation, as `prefill` returns them.
      continuations: B of them, of any lengths from 1.

    Returns:
      -log p(continuation) in nats, the sum over its tokens, in float64; and whether each of its tokens was the
      likeliest one.
    """
    tokens, lengths = pad(continuations)
    first, is_first = _foresee(logits, jnp.asarray(tokens[:, 0]))
    nats, greedy = np.asarray(first, np.float64), np.asarray(is_first)
    for start in range(0, tokens.shape[1] - 1, BLOCK):
        some = tokens[:, start : start + BLOCK + 1]
        width = next(width for width in WIDTHS if width >= some.shape[1] - 1)
        some = np.pad(some, ((0, 0), (0, width + 1 - some.shape[1])))
        count = np.clip(lengths - 1 - start, 0, width).astype(np.int32)
        states, more, missed = _read(config, policy, params, states, jnp.asarray(some), jnp.asarray(count))
        nats, greedy = nats + np.asarray(more, np.float64), greedy & ~np.asarray(missed)
    return nats, greedy


@jax.jit
def _foresee(logits: Float[Array, "B V"], tokens: Int[Array, " B"]) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """-log p of a token in nats, and whether it is the likeliest."""
    return losses_of(logits, tokens), jnp.argmax(logits, axis=-1).astype(jnp.int32) == tokens


_READER = Unembedded(_foresee)


@jax.jit
def _read(
    config: Config,
    policy: Policy,
    params: Params,
    states: MultiState,
    tokens: Int[Array, "B M"],
    lengths: Int[Array, " B"],
) -> tuple[MultiState, Float[Array, " B"], Bool[Array, " B"]]:
    """Reads all but the last of the tokens, of which the first `lengths` are real, and foresees all but the first."""

    def one(state: MultiState, tokens: Array, length: Array) -> tuple[MultiState, Array, Array]:
        read = partial(scan_chunks, config, policy, params, state, reader=_READER)
        state, _, (nats, hits) = read(tokens[:-1], tokens[1:], length)
        real = jnp.arange(tokens.shape[0] - 1, dtype=jnp.int32) < length
        return state, nats.sum(), (real & ~hits).any()

    return jax.vmap(one)(states, tokens, lengths)
