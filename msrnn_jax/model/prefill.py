"""Reading a prompt: many tokens into the state, the logits of the last one out."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.config import Config
from msrnn_jax.model.extend import CHUNK, scan_chunks
from msrnn_jax.model.llama import unembed
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import Count, check_int, check_reading, concrete
from msrnn_jax.recurrence.eviction import evict_to_budget
from msrnn_jax.recurrence.sliding_window import free_expired, window_in
from msrnn_jax.recurrence.slots import grow_slots, shrink_slots
from msrnn_jax.state import LayerState, MultiState

PROMPT_MODES = ("stepwise", "oneshot")


def prefill(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    tokens: Int[Array, " T"] | np.ndarray | Sequence[int],
    length: Count | Int[Array, ""] | None = None,
    mode: str = "stepwise",
    *,
    chunk: Count = CHUNK,
) -> tuple[MultiState, Float[Array, " V"]]:
    """Reads a prompt.

    Args:
      tokens: padded on the right; padding writes nothing and advances nothing.
      length: how many of the tokens are real, from 1; by default all.
      mode: "stepwise" is the recurrence, T steps. "oneshot" is the authors' `generate`: from an empty state,
        full attention over the whole prompt (within the window, in layers that have one), the policy observing
        every row, then one cut to the budget. Tokens that no later query can see go first. (Under `jit` a state that
        is not empty is not refused; full attention then goes over what it holds as well.)
      chunk: as in `extend`.

    Returns:
      The state after the last real token, and the logits of the token that follows it.

    Raises:
      ValueError: for an empty prompt, tokens outside the vocabulary, a length outside 1 .. T, an unknown
        mode, "oneshot" from a state that has seen tokens, a full state that would outgrow its budget, and a prompt
        that is longer than the budget of a policy that keeps it.
    """
    check_mode(mode)
    tokens, length = check_reading(config, policy, params, state, tokens, length)
    check_fresh(mode, state)
    check_pinned(policy, state, tokens.shape[0] if length is None else length)
    return _prefill(config, policy, params, state, tokens, length, mode, check_int("chunk", chunk, 1))


@partial(jax.jit, static_argnames=("mode", "chunk"))
def _prefill(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    tokens: Int[Array, " T"],
    length: Int[Array, ""] | None,
    mode: str,
    chunk: int,
) -> tuple[MultiState, Float[Array, " V"]]:
    slots = [layer.num_slots for layer in state.layers]
    state = pin_prompt(state, tokens.shape[0] if length is None else length)
    oneshot = mode == "oneshot"
    if oneshot:
        state = state.replace(layers=tuple(grow_slots(policy, layer, tokens.shape[0]) for layer in state.layers))
    state, x, _ = scan_chunks(config, policy, params, state, tokens, None, length, chunk=chunk, forgetting=not oneshot)
    if oneshot:
        layers = []
        for index, layer in enumerate(state.layers):
            window = window_in(config, state.mode, index, forgetting=True)
            layer = layer if window is None else free_expired(layer, window, state.t)
            layers.append(evict_to_budget(policy, layer.replace(index=index), state.t).replace(index=0))
        state = state.replace(layers=tuple(map(shrink_slots, layers, slots)))
    return state, unembed(config, params, x)


def pin_prompt(state: MultiState, length: Count | Array) -> MultiState:
    """The state with so many more tokens pinned, in layers where all that was seen is: the prompt goes on."""

    def pin(layer: LayerState) -> LayerState:
        if layer.pinned is None:
            return layer
        return layer.replace(pinned=jnp.where(layer.pinned == state.t, state.t + length, layer.pinned))

    return state.replace(layers=tuple(map(pin, state.layers)))


def check_pinned(policy: Policy, state: MultiState, length: Any) -> None:
    """Refuses a prompt that its policy keeps and that no budget holds, as far as lengths are known."""
    seen, more = concrete(state.t), concrete(length)
    if not policy.prompt or seen is None or more is None:
        return
    for layer in state.layers:
        pinned, budget = concrete(layer.pinned), concrete(layer.budget)
        if pinned is None or budget is None:
            continue
        prompts = np.where(pinned == seen, seen + more, pinned)
        least = budget.min(axis=-1) if budget.ndim > pinned.ndim else budget  # of the heads of a row
        for prompt, size in zip(prompts.ravel(), np.broadcast_to(least, prompts.shape).ravel(), strict=True):
            recent = policy.recent_of(int(size))
            if prompt + recent > size:
                raise ValueError(
                    f"the prompt has {prompt} tokens, which {policy} keeps with {recent} recent ones, but the budget "
                    f"is {size}; it must be at least their sum"
                )


def check_fresh(mode: str, state: MultiState) -> None:
    """Refuses the mode "oneshot" for a state, or states of a batch, that has seen tokens, as far as that is known."""
    seen = concrete(state.t)
    if mode == "oneshot" and seen is not None and seen.any():
        raise ValueError(f"mode 'oneshot' starts from an empty state; this one has seen {int(seen.max())} tokens")


def check_mode(mode: str) -> None:
    """Refuses an unknown prompt mode."""
    if mode not in PROMPT_MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(PROMPT_MODES)}")
