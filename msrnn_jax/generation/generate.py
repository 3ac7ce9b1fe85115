"""Text generation: prompts in, tokens and states out, in one jitted program or block by block."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jaxtyping import Bool, Int, UInt32

from msrnn_jax.config import Config
from msrnn_jax.generation.sampling import Greedy, Sampler
from msrnn_jax.generation.start import check_start, start_from
from msrnn_jax.model.extend import CHUNK
from msrnn_jax.model.llama import advance, unembed
from msrnn_jax.model.prefill import check_fresh, check_mode, prefill
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.policies.random import hash32
from msrnn_jax.recurrence.checks import (
    MAX_BUDGET,
    Budget,
    Count,
    Slots,
    as_lengths,
    as_tokens,
    check_int,
    check_params,
    check_policy,
    check_room,
)
from msrnn_jax.recurrence.indexing import expand_like
from msrnn_jax.state import MultiState

PROMPT_MULTIPLE = 32  # short prompts are padded to a multiple of this, long ones to whole chunks: few compilations
BLOCK = 16  # tokens of a row between two looks at what was written


def generate(
    config: Config,
    policy: Policy,
    params: Params,
    prompts: Int[Array, "B T"] | np.ndarray | Sequence[Sequence[int]],
    lengths: Int[Array, " B"] | np.ndarray | Sequence[int] | None = None,
    *,
    budget: Budget | None = None,
    state: MultiState | None = None,
    max_new_tokens: Count = 256,
    sampler: Sampler = Greedy(),  # noqa: B008, a frozen value
    key: Array | None = None,
    stop: Sequence[int] = (),
    mode: str = "stepwise",
    slots: Slots | None = None,
    positions: str | None = None,
    dtype: Any = None,
) -> tuple[Int[Array, "B M"], Int[Array, " B"], MultiState]:
    """Continues every prompt, each row by itself, until a stop token or `max_new_tokens`.

    Jitted: another prompt of the same padded length, other stop tokens, another key or another budget below
    the same `slots` compiles nothing; another number of rows, slots or new tokens, policy or sampler does.

    Args:
      prompts: B prompts, padded on the right to T.
      lengths: how many tokens of each prompt are real, from 1; by default T.
      budget: the multi-state size, as in `init_state`; one per layer gives each the memory of its own.
      state: in its place, what to go on from: states [B, ...], as this function or `prefill` under `vmap` returns
        them, or one state for all rows. Budgets, slots, positions and dtype are its own.
      max_new_tokens: M, the most tokens a row may get; at least 1.
      sampler: `Greedy()`, `Temperature(...)`, `TopK`, `TopP`, `MinP`, or a `Chain` of them.
      key: a PRNG key, or B of them, needed unless the sampler is greedy. What a row draws depends on its key and
        prompt alone, so it gets the same tokens in any batch; of equal prompts under one key, each draws anew.
      stop: token numbers that end a row; the one that did is the row's last token.
      mode: how prompts are read, "stepwise" or "oneshot" (see `prefill`).
      slots, positions, dtype: as in `init_state`, positions by default "absolute"; give `slots` to serve several
        budgets by one compilation.

    Returns:
      tokens [B, M], zero beyond each row's length; lengths [B]; and the states [B, ...], which have seen
      prompt and continuation, the last token included: a further call goes on from there.

    Raises:
      ValueError: for an empty prompt, any argument out of its range, naming it, and for states of another model,
        policy or number of rows.
    """
    max_new_tokens = check_int("max_new_tokens", max_new_tokens, 1, MAX_BUDGET)
    start = start_from(config, policy, state, budget, slots=slots, positions=positions, dtype=dtype)
    task = make_task(config, policy, params, start, prompts, lengths, max_new_tokens, sampler, key, stop, mode)
    tokens, draft = _generate(config, policy, params, task, sampler, max_new_tokens, mode)
    return tokens, draft.lengths, draft.states


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


class Request(struct.PyTreeNode):
    """What is to be continued and how far; checked."""

    start: MultiState  # of every row [B, ...], or one for all
    prompts: Array  # [B, T] int32, padded on the right
    lengths: Array  # [B] int32
    rules: DecodingRules


class Block(NamedTuple):
    """Some more tokens of every row, and where that leads to."""

    tokens: np.ndarray  # [B, BLOCK] int32, zero where a row has got none
    counts: np.ndarray  # [B] int32, new tokens of each row
    draft: DecodingState


def stream(
    config: Config,
    policy: Policy,
    params: Params,
    prompts: Int[Array, "B T"] | np.ndarray | Sequence[Sequence[int]],
    lengths: Int[Array, " B"] | np.ndarray | Sequence[int] | None = None,
    *,
    budget: Budget | None = None,
    state: MultiState | None = None,
    max_new_tokens: Count = 256,
    sampler: Sampler = Greedy(),  # noqa: B008, a frozen value
    key: Array | None = None,
    stop: Sequence[int] = (),
    mode: str = "stepwise",
    slots: Slots | None = None,
    positions: str | None = None,
    dtype: Any = None,
) -> Iterator[Block]:
    """What `generate` returns, in blocks as it is written: the first of one token, the others of up to `BLOCK`.

    Every block is one call of a compiled program, the same for any `max_new_tokens`. Arguments and errors are
    those of `generate`; errors come before the first block is asked for.
    """
    max_new_tokens = check_int("max_new_tokens", max_new_tokens, 1, MAX_BUDGET)
    start = start_from(config, policy, state, budget, slots=slots, positions=positions, dtype=dtype)
    task = make_task(config, policy, params, start, prompts, lengths, max_new_tokens, sampler, key, stop, mode)
    return _stream(config, policy, params, task, sampler, mode)


def _stream(
    config: Config, policy: Policy, params: Params, task: Request, sampler: Sampler, mode: str
) -> Iterator[Block]:
    draft, most = read_prompts(config, policy, params, task, mode), 1
    while unfinished(draft, task.rules):
        block = decode_block(config, policy, params, draft, task.rules, most, sampler)
        yield block
        draft, most = block.draft, BLOCK


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


def make_task(
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
) -> Request:
    """Checks what `generate` is given and pads the prompts."""
    check_mode(mode)
    check_policy(policy)
    check_params(config, params)
    if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler is {sampler!r}; it must be a sampler, such as Greedy() or Temperature(0.8)")
    prompts, lengths = _check_prompts(config, prompts, lengths)
    stop_tokens = as_tokens(config, "stop", stop)
    if stop_tokens.ndim != 1:
        raise ValueError(f"stop is {stop!r}; it must be a sequence of token numbers")
    rows, longest = prompts.shape
    check_start(config, policy, start, rows)
    check_fresh(mode, start)
    check_room(config, policy, start, lengths, max_new_tokens)
    padding = -longest % (PROMPT_MULTIPLE if longest <= CHUNK else CHUNK)
    return Request(
        start=start,
        prompts=jnp.pad(prompts, ((0, 0), (0, padding))),
        lengths=lengths,
        rules=DecodingRules(
            keys=_row_keys(sampler, key, prompts, lengths),
            stop=stop_tokens,
            limits=jnp.full(rows, max_new_tokens, jnp.int32),
        ),
    )


@partial(jax.jit, static_argnames=("max_new_tokens", "mode"))
def _generate(
    config: Config,
    policy: Policy,
    params: Params,
    task: Request,
    sampler: Sampler,
    max_new_tokens: int,
    mode: str,
) -> tuple[Array, DecodingState]:
    draft = read_prompts(config, policy, params, task, mode)
    return decode(config, policy, params, draft, task.rules, max_new_tokens, sampler, count=max_new_tokens)


@partial(jax.jit, static_argnames="mode")
def read_prompts(config: Config, policy: Policy, params: Params, task: Request, mode: str) -> DecodingState:
    """Reads the prompts."""

    def one(state: MultiState, prompt: Array, length: Array) -> tuple[MultiState, Array]:
        return prefill(config, policy, params, state, prompt, length, mode)

    each = 0 if task.start.t.ndim else None
    states, logits = jax.vmap(one, (each, 0, 0))(task.start, task.prompts, task.lengths)
    rows = task.prompts.shape[0]
    return DecodingState(states=states, logits=logits, running=jnp.ones(rows, bool), lengths=jnp.zeros(rows, jnp.int32))


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
