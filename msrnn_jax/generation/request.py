"""What is to be continued, from where and how far, once it is checked; and reading the prompts."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jaxtyping import Int, UInt32

from msrnn_jax.config import Config
from msrnn_jax.generation.decoding import DecodingRules, DecodingState, make_rules, start_decoding
from msrnn_jax.generation.sampling import Sampler
from msrnn_jax.model.extend import CHUNK
from msrnn_jax.model.prefill import check_fresh, check_mode, check_pinned, prefill
from msrnn_jax.model.state_ops import check_hand_over, hand_over
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.policies.random import hash32
from msrnn_jax.recurrence.checks import (
    Budget,
    Slots,
    as_lengths,
    as_tokens,
    check_params,
    check_policy,
    check_protection,
    check_room,
    check_state,
)
from msrnn_jax.recurrence.slots import init_state, share_out
from msrnn_jax.state import MultiState

PROMPT_MULTIPLE = 32  # short prompts are padded to a multiple of this, long ones to whole chunks: few compilations


class Request(struct.PyTreeNode):
    """What is to be continued and how far; checked."""

    start: MultiState  # of every row [B, ...], or one for all
    prompts: Array  # [B, T] int32, padded on the right
    lengths: Array  # [B] int32
    rules: DecodingRules


def start_from(
    config: Config,
    policy: Policy,
    state: MultiState | None,
    budget: Budget | None,
    *,
    slots: Slots | None,
    positions: str | None,
    dtype: Any,
    prompt_policy: Policy | None = None,
) -> MultiState:
    """The states given, or an empty one for all rows, of the policy that reads prompts.

    Raises:
      ValueError: where neither states nor a budget are given, and for anything beside states that they settle.
    """
    if state is None:
        if budget is None:
            raise ValueError("budget is missing; give it, or a state to go on from")
        positions = "absolute" if positions is None else positions
        if prompt_policy is not None and prompt_policy.pyramid is None:
            budget = share_out(policy, config.num_layers, budget)
        reader = policy if prompt_policy is None else prompt_policy
        return init_state(config, reader, budget, slots=slots, positions=positions, dtype=dtype)
    given = {"budget": budget, "slots": slots, "positions": positions, "dtype": dtype, "prompt_policy": prompt_policy}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is {value!r}, but the state has its own; give one of the two")
    return state


def check_start(config: Config, policy: Policy, state: MultiState, rows: int) -> None:
    """Refuses what the rows of a batch cannot start from: one state for all of them, or states [B, ...]."""
    if isinstance(state, MultiState) and state.t.ndim:
        wrong = {leaf.shape[:1] for leaf in jax.tree.leaves(state)} - {(rows,)}
        if wrong:
            raise ValueError(f"state has leaves {list(wrong.pop())}; it must be of {rows} rows, one per prompt")
        check_state(config, policy, jax.eval_shape(lambda state: jax.tree.map(lambda leaf: leaf[0], state), state))
    else:
        check_state(config, policy, state)
    check_protection(policy, [layer.budget for layer in state.layers])


def check_prompt_policy(policy: Policy, prompt_policy: Policy, budgets: Sequence[Any]) -> None:
    """Refuses a policy that cannot go on with what another has left of a prompt, at the budgets of all layers."""
    check_policy(prompt_policy)
    check_hand_over(prompt_policy, policy)
    check_protection(policy, budgets)
    if not policy.forgets:
        raise ValueError(f"prompt_policy is {prompt_policy}, but {policy} forgets nothing; leave one of them out")


def make_request(
    config: Config,
    policy: Policy,
    params: Params,
    start: MultiState,
    prompts: Any,
    lengths: Any,
    max_new_tokens: int,
    sampler: Sampler,
    key: Array | None,
    stop: Sequence[int],
    mode: str,
    prompt_policy: Policy | None = None,
) -> Request:
    """Checks what `generate` is given and pads the prompts."""
    check_mode(mode)
    check_policy(policy)
    reader = policy if prompt_policy is None else prompt_policy
    if prompt_policy is not None:
        check_prompt_policy(policy, prompt_policy, [layer.budget for layer in start.layers])
    check_params(config, params)
    if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler is {sampler!r}; it must be a sampler, such as Greedy() or Temperature(0.8)")
    prompts, lengths = _check_prompts(config, prompts, lengths)
    stop_tokens = as_tokens(config, "stop", stop)
    if stop_tokens.ndim != 1:
        raise ValueError(f"stop is {stop!r}; it must be a sequence of token numbers")
    rows, longest = prompts.shape
    check_start(config, reader, start, rows)
    check_fresh(mode, start)
    check_pinned(reader, start, lengths)
    check_room(config, reader, start, lengths, max_new_tokens)
    padding = -longest % (PROMPT_MULTIPLE if longest <= CHUNK else CHUNK)
    return Request(
        start=start,
        prompts=jnp.pad(prompts, ((0, 0), (0, padding))),
        lengths=lengths,
        rules=make_rules(_row_keys(sampler, key, prompts, lengths), stop_tokens, max_new_tokens),
    )


@partial(jax.jit, static_argnames="mode")
def read_prompts(
    config: Config, policy: Policy, params: Params, request: Request, mode: str, prompt_policy: Policy | None = None
) -> DecodingState:
    """Reads the prompts, under a policy of their own if there is one."""

    def one(state: MultiState, prompt: Array, length: Array) -> tuple[MultiState, Array]:
        if prompt_policy is None:
            return prefill(config, policy, params, state, prompt, length, mode)
        state, logits = prefill(config, prompt_policy, params, state, prompt, length, mode)
        return hand_over(config, prompt_policy, policy, state), logits

    each = 0 if request.start.t.ndim else None
    states, logits = jax.vmap(one, (each, 0, 0))(request.start, request.prompts, request.lengths)
    return start_decoding(states, logits)


def _check_prompts(config: Config, prompts: Any, lengths: Any) -> tuple[Array, Array]:
    prompts = as_tokens(config, "prompts", prompts)
    if prompts.ndim != 2 or 0 in prompts.shape:
        raise ValueError(f"prompts has shape {prompts.shape}; it must be [B, T] with at least one row and one token")
    rows, longest = prompts.shape
    lengths = as_lengths("lengths", np.full(rows, longest) if lengths is None else lengths, longest)
    if lengths.shape != (rows,):
        raise ValueError(f"lengths has shape {lengths.shape}; it must be [{rows}], one per prompt")
    return prompts, lengths


def _row_keys(sampler: Sampler, key: Array | None, prompts: Int[Array, "B T"], lengths: Int[Array, " B"]) -> Array:
    rows = prompts.shape[0]
    if key is None and sampler.random:
        raise ValueError(f"key is missing; {sampler} draws at random and needs one")
    given: Array = jax.random.key(0) if key is None else key
    if not isinstance(given, jax.Array):
        raise ValueError(f"key is {key!r}; it must be a PRNG key, such as jax.random.key(0)")
    if not jnp.issubdtype(given.dtype, jax.dtypes.prng_key):
        given = jax.random.wrap_key_data(given)
    if given.ndim == 0:
        place = jnp.arange(prompts.shape[1], dtype=jnp.int32)
        prompts = jnp.where(place[None] < lengths[:, None], prompts, -1)  # what padding holds does not matter
        fold = jax.vmap(jax.random.fold_in)
        return fold(jax.vmap(jax.random.fold_in, (None, 0))(given, _digests(prompts)), _occurrences(prompts))
    if given.shape != (rows,):
        raise ValueError(f"key has shape {given.shape}; it must be one key or {rows}, one per prompt")
    return given


def _digests(prompts: Int[Array, "B T"]) -> UInt32[Array, " B"]:
    """A number of every prompt, so that other prompts draw other noise; -1 is padding, and counts for nothing."""
    place = jnp.arange(prompts.shape[1], dtype=jnp.uint32)
    bits = prompts.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + place[None] * jnp.uint32(0x85EBCA77)
    return jnp.where(prompts < 0, jnp.uint32(0), hash32(bits)).sum(axis=1, dtype=jnp.uint32)


def _occurrences(prompts: Int[Array, "B T"]) -> Int[Array, " B"]:
    """How many rows before each one have the same prompt; padded with -1."""
    index = jnp.arange(prompts.shape[0], dtype=jnp.int32)

    def before(row: Array) -> Array:
        same = (prompts == prompts[row][None]).all(axis=1)
        return (same & (index < row)).sum(dtype=jnp.int32)

    return lax.map(before, index)
