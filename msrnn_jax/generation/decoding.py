"""The decoding loop: a sampler chooses, the model reads what was chosen, each row until it ends."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from msrnn_jax.config import Config
from msrnn_jax.generation.sampling import Sampler
from msrnn_jax.model.llama import advance, unembed
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.indexing import expand_like
from msrnn_jax.state import MultiState

BLOCK = 16  # tokens of a row between two looks at what was written


class DecodingState(struct.PyTreeNode):
    """Continuations in the making."""

    states: MultiState  # [B, ...], which have seen every token so far
    logits: Array  # [B, V], of the next token
    running: Array  # [B] bool, False once a stop token was written
    lengths: Array  # [B] int32, tokens written


class DecodingRules(struct.PyTreeNode):
    """What rows draw with, and where they end."""

    keys: Array  # [B] PRNG keys
    stop: Array  # [*] int32, tokens that end a row
    limits: Array  # [B] int32, the most tokens each row may get


class Block(NamedTuple):
    """Some more tokens of every row, and where that leads to."""

    tokens: np.ndarray  # [B, BLOCK] int32, zero where a row has got none
    counts: np.ndarray  # [B] int32, new tokens of each row
    draft: DecodingState


def start_decoding(states: MultiState, logits: Float[Array, "B V"]) -> DecodingState:
    """Nothing written yet.

    Args:
      states: [B, ...], after what is continued.
      logits: of the first token that is written.
    """
    rows = logits.shape[0]
    return DecodingState(states, logits, running=jnp.ones(rows, bool), lengths=jnp.zeros(rows, jnp.int32))


def make_rules(keys: Array, stop: Array | Sequence[int], limit: int) -> DecodingRules:
    """Rules with one limit for all rows; keys [B]."""
    return DecodingRules(keys, jnp.asarray(stop, jnp.int32), jnp.full(keys.shape[0], limit, jnp.int32))


@partial(jax.jit, static_argnames="count")
def decode(
    config: Config,
    policy: Policy,
    params: Params,
    draft: DecodingState,
    rules: DecodingRules,
    most: Int[Array, ""] | int,
    sampler: Sampler,
    *,
    count: int,
) -> tuple[Int[Array, "B M"], DecodingState]:
    """Writes up to `most` tokens more in every row that is neither stopped nor at its limit.

    Args:
      count: M, room for tokens; static, at least `most`.

    Returns:
      The tokens [B, M], zero beyond those that a row got, and the draft after them.
    """
    rows = draft.running.shape[0]

    def write_token(state: MultiState, token: Array, real: Array) -> tuple[MultiState, Array]:
        state, x = advance(config, policy, params, state, token, real=real)
        return state, unembed(config, params, x)

    def wanting(carry: tuple[Array, DecodingState, Array]) -> Array:
        done, draft, _ = carry
        return (done < most) & _wanted(draft, rules).any()

    def one(carry: tuple[Array, DecodingState, Array]) -> tuple[Array, DecodingState, Array]:
        done, draft, tokens = carry
        wanted = _wanted(draft, rules)
        keys = jax.vmap(jax.random.fold_in)(rules.keys, draft.lengths)
        chosen = jnp.where(wanted, jax.vmap(sampler)(draft.logits, keys), 0)  # [B]
        states, logits = jax.vmap(write_token)(draft.states, chosen, wanted)
        draft = DecodingState(
            states=states,
            # A row that waits for others keeps what it would write next, should it go on after all.
            logits=jnp.where(expand_like(wanted, logits), logits, draft.logits),
            running=draft.running & ~(wanted & (chosen[:, None] == rules.stop[None]).any(axis=1)),
            lengths=draft.lengths + wanted.astype(jnp.int32),
        )
        return done + 1, draft, lax.dynamic_update_slice_in_dim(tokens, chosen[:, None], done, axis=1)

    start = jnp.zeros((), jnp.int32), draft, jnp.zeros((rows, count), jnp.int32)
    _, draft, tokens = lax.while_loop(wanting, one, start)
    return tokens, draft


def unfinished(draft: DecodingState, rules: DecodingRules) -> bool:
    """Whether any row may get another token; looks at the values."""
    return bool(_wanted(draft, rules).any())


def _wanted(draft: DecodingState, rules: DecodingRules) -> Bool[Array, " B"]:
    return draft.running & (draft.lengths < rules.limits)


def decode_block(
    config: Config,
    policy: Policy,
    params: Params,
    draft: DecodingState,
    rules: DecodingRules,
    most: int,
    sampler: Sampler,
) -> Block:
    """`decode` by the program that all blocks share, its results on the host."""
    tokens, after = decode(config, policy, params, draft, rules, most, sampler, count=BLOCK)
    return Block(np.asarray(tokens), np.asarray(after.lengths) - np.asarray(draft.lengths), after)
