"""When every layer forgot which token: the recurrence, with that written down beside the state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int

from msrnn_jax.config import Config
from msrnn_jax.model.llama import advance
from msrnn_jax.model.prefill import prefill
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import as_tokens
from msrnn_jax.state import EMPTY, LayerState, MultiState

STILL_HELD = 2**31 - 1  # so that a token is held after step t exactly if its position <= t < freed
FREED_BEFORE = EMPTY  # forgotten before the recording began, nobody knows when


def start_record(state: MultiState, count: int) -> Int[Array, "L #K T"]:
    """The record for the tokens at positions 0 .. count - 1, before the first of the steps that it will follow.

    Args:
      state: from which they start; the tokens that it has seen and no longer holds are `FREED_BEFORE`.
      count: T, static: so many tokens of the text are written down, whether seen already or not.
    """
    held = jnp.stack([_held(layer, count) for layer in state.layers])
    return jnp.where(held | ~_read(state, count), STILL_HELD, FREED_BEFORE).astype(jnp.int32)


def follow(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    freed: Int[Array, "L #K T"],
    tokens: Int[Array, " C"],
    length: Int[Array, ""] | None = None,
) -> tuple[MultiState, Int[Array, "L #K T"]]:
    """Steps over tokens and writes down after which step each was freed.

    Pure and jittable; memory is that of the state and of one number per layer, row and token of the text.

    Args:
      freed: what `start_record` or an earlier call returned, for the text that the state has seen and these tokens.
      length: how many of the tokens are real; padding on the right changes nothing. None means all.

    Returns:
      The state and the record: the first step t (the position of the token read in it) after which a token was no
      longer held, t itself where it went in its own step, `STILL_HELD` where it is held or not yet read.

    Raises:
      ValueError: for tokens outside the vocabulary where they are not traced.
    """

    return follow_with(config, policy, params, state, freed, tokens, length, also=lambda state: None)[0]


def follow_with(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    freed: Int[Array, "L #K T"],
    tokens: Int[Array, " C"],
    length: Int[Array, ""] | None = None,
    *,
    also: Callable[[MultiState], Any],
) -> tuple[tuple[MultiState, Int[Array, "L #K T"]], Any]:
    """`follow`, and what `also` says of the state after every step, leaves [C, ...]; at padding the last real one's."""

    def one(carry: tuple[MultiState, Array], item: tuple[Array, Array]) -> tuple[tuple[MultiState, Array], Any]:
        state, freed = carry
        token, index = item
        state, _ = advance(config, policy, params, state, token, real=None if length is None else index < length)
        return (state, _note(state, freed)), also(state)

    tokens = as_tokens(config, "tokens", tokens)
    indices = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    return lax.scan(one, (state, freed), (tokens, indices))


def follow_oneshot(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    freed: Int[Array, "L #K T"],
    tokens: Int[Array, " C"],
    length: Int[Array, ""] | None = None,
) -> tuple[MultiState, Int[Array, "L #K T"]]:
    """`follow` for a prompt in the mode "oneshot" (see `prefill`): whatever goes, goes after its last token."""
    state, _ = prefill(config, policy, params, state, tokens, length, mode="oneshot")
    return state, _note(state, freed)


def _note(state: MultiState, freed: Int[Array, "L #K T"]) -> Int[Array, "L #K T"]:
    """The record after a step: tokens that were read, and held until now, and no longer are."""
    count = freed.shape[2]
    held = jnp.stack([_held(layer, count) for layer in state.layers])
    gone = _read(state, count) & ~held & (freed == STILL_HELD)
    return jnp.where(gone, state.t - 1, freed)


def _read(state: MultiState, count: int) -> Array:
    """Which of the tokens at positions 0 .. count - 1 the state has seen, [1, 1, T]."""
    return jnp.arange(count, dtype=jnp.int32)[None, None] < state.t


def _held(layer: LayerState, count: int) -> Array:
    """Which of the tokens at positions 0 .. count - 1 every row holds, [#K, T]."""
    places = jnp.where(layer.positions == EMPTY, count, layer.positions)  # a negative index would count from the end

    def mark(places: Int[Array, " S"]) -> Array:
        return jnp.zeros(count, bool).at[places].set(True, mode="drop")

    return jax.vmap(mark)(places)
