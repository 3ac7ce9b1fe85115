"""Text generation: prompts in, tokens and states out, in one jitted program."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Int

from msrnn_jax.checks import (
    MAX_BUDGET,
    Budget,
    Count,
    as_lengths,
    as_tokens,
    check_params,
    check_policy,
    check_room,
    whole,
)
from msrnn_jax.config import Config
from msrnn_jax.extend import CHUNK
from msrnn_jax.llama import advance, unembed
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.prefill import check_mode, prefill
from msrnn_jax.sampling import Greedy, Sampler
from msrnn_jax.slots import init_state
from msrnn_jax.state import MultiState

PROMPT_MULTIPLE = 32  # short prompts are padded to a multiple of this, long ones to whole chunks: few compilations


def generate(
    config: Config,
    policy: Policy,
    params: Params,
    prompts: Int[Array, "B T"] | np.ndarray | Sequence[Sequence[int]],
    lengths: Int[Array, " B"] | np.ndarray | Sequence[int] | None = None,
    *,
    budget: Budget,
    max_new_tokens: Count = 256,
    sampler: Sampler = Greedy(),  # noqa: B008, a frozen value
    key: Array | None = None,
    stop: Sequence[int] = (),
    mode: str = "stepwise",
    slots: Count | None = None,
    positions: str = "absolute",
    dtype: Any = None,
) -> tuple[Int[Array, "B M"], Int[Array, " B"], MultiState]:
    """Continues every prompt, each row by itself, until a stop token or `max_new_tokens`.

    Jitted: another prompt of the same padded length, other stop tokens, another key or another budget below
    the same `slots` compiles nothing; another number of rows, slots or new tokens, policy or sampler does.

    Args:
      prompts: B prompts, padded on the right to T.
      lengths: how many tokens of each prompt are real, from 1; by default T.
      budget: the multi-state size, as in `init_state`.
      max_new_tokens: M, the most tokens a row may get; at least 1.
      sampler: `Greedy()` or `Temperature(...)`.
      key: a PRNG key, or B of them; one is folded with each row's number. Needed unless the sampler is greedy.
      stop: token numbers that end a row; the one that did is the row's last token.
      mode: how prompts are read, "stepwise" or "oneshot" (see `prefill`).
      slots, positions, dtype: as in `init_state`; give `slots` to serve several budgets by one compilation.

    Returns:
      tokens [B, M], zero beyond each row's length; lengths [B]; and the states [B, ...], which have seen
      prompt and continuation, the last token included: a further `prefill` goes on from there.

    Raises:
      ValueError: for an empty prompt and any argument out of its range, naming it.
    """
    check_mode(mode)
    check_policy(policy)
    check_params(config, params)
    if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler is {sampler!r}; it must be a sampler, such as Greedy() or Temperature(0.8)")
    prompts, lengths = _check_prompts(config, prompts, lengths)
    max_new_tokens = whole("max_new_tokens", max_new_tokens, 1, MAX_BUDGET)
    stop_tokens = as_tokens(config, "stop", stop)
    if stop_tokens.ndim != 1:
        raise ValueError(f"stop is {stop!r}; it must be a sequence of token numbers")
    empty = init_state(config, policy, budget, slots=slots, positions=positions, dtype=dtype)
    check_room(policy, empty, lengths + max_new_tokens)
    keys = _row_keys(sampler, key, prompts.shape[0])
    padding = -prompts.shape[1] % (PROMPT_MULTIPLE if prompts.shape[1] <= CHUNK else CHUNK)
    prompts = jnp.pad(prompts, ((0, 0), (0, padding)))
    return _generate(config, policy, params, empty, prompts, lengths, keys, stop_tokens, sampler, max_new_tokens, mode)


@partial(jax.jit, static_argnames=("max_new_tokens", "mode"))
def _generate(
    config: Config,
    policy: Policy,
    params: Params,
    empty: MultiState,
    prompts: Array,
    lengths: Array,
    keys: Array,
    stop: Array,
    sampler: Sampler,
    max_new_tokens: int,
    mode: str,
) -> tuple[Array, Array, MultiState]:
    rows = prompts.shape[0]
    states, logits = jax.vmap(lambda prompt, length: prefill(config, policy, params, empty, prompt, length, mode))(
        prompts, lengths
    )

    def write_token(state: MultiState, token: Array, real: Array) -> tuple[MultiState, Array]:
        state, x = advance(config, policy, params, state, token, real=real)
        return state, unembed(config, params, x)

    def unfinished(carry: Any) -> Array:
        count, running, *_ = carry
        return (count < max_new_tokens) & running.any()

    def one(carry: Any) -> Any:
        count, running, states, logits, tokens, lengths = carry
        row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
        chosen = jnp.where(running, jax.vmap(sampler)(logits, row_keys), 0)  # [B]
        states, logits = jax.vmap(write_token)(states, chosen, running)
        tokens = lax.dynamic_update_slice_in_dim(tokens, chosen[:, None], count, axis=1)
        lengths = lengths + running.astype(jnp.int32)
        running = running & ~(chosen[:, None] == stop[None]).any(axis=1)
        return count + 1, running, states, logits, tokens, lengths

    start = (
        jnp.zeros((), jnp.int32),
        jnp.ones(rows, bool),
        states,
        logits,
        jnp.zeros((rows, max_new_tokens), jnp.int32),
        jnp.zeros(rows, jnp.int32),
    )
    _, _, states, _, tokens, lengths = lax.while_loop(unfinished, one, start)
    return tokens, lengths, states


def _check_prompts(config: Config, prompts: Any, lengths: Any) -> tuple[Array, Array]:
    prompts = as_tokens(config, "prompts", prompts)
    if prompts.ndim != 2 or 0 in prompts.shape:
        raise ValueError(f"prompts has shape {prompts.shape}; it must be [B, T] with at least one row and one token")
    rows, longest = prompts.shape
    lengths = as_lengths("lengths", np.full(rows, longest) if lengths is None else lengths, longest)
    if lengths.shape != (rows,):
        raise ValueError(f"lengths has shape {lengths.shape}; it must be [{rows}], one per prompt")
    return prompts, lengths


def _row_keys(sampler: Sampler, key: Array | None, rows: int) -> Array:
    if key is None and sampler.random:
        raise ValueError(f"key is missing; {sampler} draws at random and needs one")
    given: Array = jax.random.key(0) if key is None else key
    if not isinstance(given, jax.Array):
        raise ValueError(f"key is {key!r}; it must be a PRNG key, such as jax.random.key(0)")
    if not jnp.issubdtype(given.dtype, jax.dtypes.prng_key):
        given = jax.random.wrap_key_data(given)
    if given.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(given, jnp.arange(rows))
    if given.shape != (rows,):
        raise ValueError(f"key has shape {given.shape}; it must be one key or {rows}, one per prompt")
    return given
