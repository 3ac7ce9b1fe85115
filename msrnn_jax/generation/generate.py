"""Text generation: prompts in, tokens and states out, in one jitted program or block by block."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Int

from msrnn_jax.config import Config
from msrnn_jax.generation.decoding import BLOCK, Block, DecodingState, decode, decode_block, unfinished
from msrnn_jax.generation.request import Request, make_request, read_prompts, start_from
from msrnn_jax.generation.sampling import Greedy, Sampler
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import MAX_BUDGET, Budget, Count, Slots, check_int
from msrnn_jax.state import MultiState


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
    prompt_policy: Policy | None = None,
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
      prompt_policy: what is forgotten of prompts is then decided by this one, and `policy` goes on with what is left,
        whose statistics begin anew (see `hand_over`).
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
    start = start_from(
        config, policy, state, budget, slots=slots, positions=positions, dtype=dtype, prompt_policy=prompt_policy
    )
    given = prompts, lengths, max_new_tokens, sampler, key, stop, mode, prompt_policy
    request = make_request(config, policy, params, start, *given)
    tokens, draft = _generate(config, policy, params, request, sampler, max_new_tokens, mode, prompt_policy)
    return tokens, draft.lengths, draft.states


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
    prompt_policy: Policy | None = None,
    slots: Slots | None = None,
    positions: str | None = None,
    dtype: Any = None,
) -> Iterator[Block]:
    """What `generate` returns, in blocks as it is written: the first of one token, the others of up to `BLOCK`.

    Every block is one call of a compiled program, the same for any `max_new_tokens`. Arguments and errors are
    those of `generate`; errors come before the first block is asked for.
    """
    max_new_tokens = check_int("max_new_tokens", max_new_tokens, 1, MAX_BUDGET)
    start = start_from(
        config, policy, state, budget, slots=slots, positions=positions, dtype=dtype, prompt_policy=prompt_policy
    )
    given = prompts, lengths, max_new_tokens, sampler, key, stop, mode, prompt_policy
    request = make_request(config, policy, params, start, *given)
    return _stream(config, policy, params, request, sampler, mode, prompt_policy)


def _stream(
    config: Config,
    policy: Policy,
    params: Params,
    request: Request,
    sampler: Sampler,
    mode: str,
    prompt_policy: Policy | None,
) -> Iterator[Block]:
    draft, most = read_prompts(config, policy, params, request, mode, prompt_policy), 1
    while unfinished(draft, request.rules):
        block = decode_block(config, policy, params, draft, request.rules, most, sampler)
        yield block
        draft, most = block.draft, BLOCK


@partial(jax.jit, static_argnames=("max_new_tokens", "mode"))
def _generate(
    config: Config,
    policy: Policy,
    params: Params,
    request: Request,
    sampler: Sampler,
    max_new_tokens: int,
    mode: str,
    prompt_policy: Policy | None,
) -> tuple[Array, DecodingState]:
    draft = read_prompts(config, policy, params, request, mode, prompt_policy)
    return decode(config, policy, params, draft, request.rules, max_new_tokens, sampler, count=max_new_tokens)
