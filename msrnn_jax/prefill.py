"""Reading a prompt: many tokens into the state, the logits of the last one out."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from msrnn_jax.checks import (
    Count,
    as_lengths,
    as_tokens,
    check_params,
    check_protection,
    check_room,
    check_state,
    concrete,
)
from msrnn_jax.compress import keep_best
from msrnn_jax.config import Config
from msrnn_jax.llama import advance, unembed
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.slots import cut, grow
from msrnn_jax.state import MultiState

PROMPT_MODES = ("stepwise", "oneshot")


def prefill(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    tokens: Int[Array, " T"] | np.ndarray | Sequence[int],
    length: Count | Int[Array, ""] | None = None,
    mode: str = "stepwise",
) -> tuple[MultiState, Float[Array, " V"]]:
    """Reads a prompt.

    Args:
      tokens: padded on the right; padding writes nothing and advances nothing.
      length: how many of the tokens are real, from 1; by default all.
      mode: "stepwise" is the recurrence, T steps. "oneshot" is the authors' `generate`: from an empty state,
        full attention over the whole prompt, the policy observing every row, then one cut to the budget
        (under `jit`, where nobody can see that a state is not empty, over what it holds as well).

    Returns:
      The state after the last real token, and the logits of the token that follows it.

    Raises:
      ValueError: for an empty prompt, tokens outside the vocabulary, a length outside 1 .. T, an unknown
        mode, "oneshot" from a state that has seen tokens, a full state that would outgrow its budget.
    """
    check_params(config, params)
    check_state(config, policy, state)
    check_protection(policy, [layer.budget for layer in state.layers])
    check_mode(mode)
    tokens = as_tokens(config, "tokens", tokens)
    if tokens.ndim != 1 or tokens.shape[0] == 0:
        raise ValueError(f"tokens has shape {tokens.shape}; it must be [T] with at least one token")
    if length is not None:
        length = as_lengths("length", length, tokens.shape[0])
    check_room(policy, state, tokens.shape[0] if length is None else length)
    seen = concrete(state.t)
    if mode == "oneshot" and seen is not None and seen.any():
        raise ValueError(f"mode 'oneshot' starts from an empty state; this one has seen {int(seen)} tokens")
    return _prefill(config, policy, params, state, tokens, length, mode)


@partial(jax.jit, static_argnames="mode")  # a scan over a new closure would compile at every call outside jit
def _prefill(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    tokens: Int[Array, " T"],
    length: Int[Array, ""] | None,
    mode: str,
) -> tuple[MultiState, Float[Array, " V"]]:
    if mode == "stepwise":
        state, x = _read(config, policy, params, state, tokens, length, forgetting=True)
        return state, unembed(config, params, x)
    roomy = state.replace(layers=tuple(grow(policy, layer, tokens.shape[0]) for layer in state.layers))
    roomy, x = _read(config, policy, params, roomy, tokens, length, forgetting=False)
    layers = [
        cut(keep_best(policy, wide, roomy.t), layer.num_slots)
        for wide, layer in zip(roomy.layers, state.layers, strict=True)
    ]
    return roomy.replace(layers=tuple(layers)), unembed(config, params, x)


def check_mode(mode: str) -> None:
    """Refuses an unknown prompt mode."""
    if mode not in PROMPT_MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(PROMPT_MODES)}")


def _read(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    tokens: Int[Array, " T"],
    length: Int[Array, ""] | None,
    *,
    forgetting: bool,
) -> tuple[MultiState, Float[Array, " D"]]:
    """Steps over the tokens; returns the state and the residual stream of the last real one."""

    def one(carry: tuple[MultiState, Array], item: tuple[Array, Array]) -> tuple[tuple[MultiState, Array], None]:
        state, last = carry
        token, index = item
        real = None if length is None else index < length
        state, x = advance(config, policy, params, state, token, real=real, forgetting=forgetting)
        return (state, x if real is None else jnp.where(real, x, last)), None

    nothing = jnp.zeros_like(params.embedding[0])
    index = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    (state, x), _ = lax.scan(one, (state, nothing), (tokens, index))
    return state, x
