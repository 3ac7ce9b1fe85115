"""One traced text as JSON values: its tokens, when every layer freed each, and what they were traced with."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from msrnn_jax.checkpoint.identity import fingerprint
from msrnn_jax.config import Config
from msrnn_jax.generation.generate import generate
from msrnn_jax.io.provenance import provenance, text_hash
from msrnn_jax.model.prefill import check_mode, check_pinned, pin_prompt
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import as_tokens, check_int, check_room
from msrnn_jax.recurrence.sliding_window import room_for
from msrnn_jax.recurrence.slots import init_state
from msrnn_jax.state import MultiState
from msrnn_jax.text.display import token_texts
from msrnn_jax.text.tokenizer import Tokenizer
from msrnn_jax.tracing.lifetimes import STILL_HELD, follow, follow_oneshot, start_record

BLOCK = 64  # tokens between two reports, and between two chances for ctrl-C

_begin = jax.jit(start_record, static_argnames="count")
_follow = jax.jit(follow, donate_argnames="freed")
_follow_oneshot = jax.jit(follow_oneshot, donate_argnames="freed")


class Prompt(NamedTuple):
    """The text that is traced."""

    text: str
    tokens: list[int]  # what is read of it
    uncut: int  # how many tokens it has


class TraceSettings(NamedTuple):
    """How it is traced."""

    policy: Policy
    budget: int
    mode: str
    positions: str
    max_new_tokens: int  # generated after the prompt, greedily


def read_prompt(tokenizer: Tokenizer, text: str, *, chat: bool, max_tokens: int) -> Prompt:
    """Tokens of a prompt, at most `max_tokens` of them.

    Raises:
      ValueError: for a prompt without tokens.
    """
    most = check_int("max_tokens", max_tokens, 1)
    tokens = tokenizer.chat([{"role": "user", "content": text}]) if chat else tokenizer.encode(text)
    if not tokens:
        raise ValueError(f"prompt {text!r} is empty; it must have at least one token")
    return Prompt(text, tokens[:most], len(tokens))


def make_settings(
    config: Config, policy: Policy, budget: int | None, mode: str, positions: str, max_new_tokens: int, prompt: int
) -> tuple[TraceSettings, MultiState]:
    """The settings and the state they start from, everything checked before the weights are read.

    Args:
      budget: None for 64, or for all tokens that a later one can see where the policy forgets nothing.
      prompt: tokens of the prompt.
    """
    check_mode(mode)
    count = prompt + check_int("max_new_tokens", max_new_tokens, 0)
    size = budget if budget is not None else 64 if policy.forgets else room_for(config, positions, count)
    empty = init_state(config, policy, size, positions=positions)
    check_room(config, policy, empty, count)
    check_pinned(policy, empty, prompt)
    return TraceSettings(policy, size, mode, positions, max_new_tokens), empty


def trace_prompt(
    config: Config,
    params: Params,
    tokenizer: Tokenizer,
    prompt: Prompt,
    settings: TraceSettings,
    empty: MultiState,
    report: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Reads a prompt, continues it if asked to, and says when every token was freed.

    Args:
      report: called with what is being done.

    Returns:
      JSON values. `freed[layer][row][token]` is the step after which the row no longer held the token, None where
      it still holds it at the end; `#K` rows, one if all heads of a layer forget the same.
    """
    generated = _continue(config, params, tokenizer, prompt, settings, report)
    tokens = [*prompt.tokens, *generated]
    freed = freed_at(config, params, tokens, len(prompt.tokens), settings, empty, report)
    record = {
        "prompt_tokens": len(prompt.tokens),
        "prompt_tokens_uncut": prompt.uncut,
        "generated_tokens": len(generated),
        "policy": str(settings.policy),
        "scope": settings.policy.scope,
        "budget": settings.budget,
        "mode": settings.mode,
        "positions": settings.positions,
        "dtype": config.dtype,
        "tokens": tokens,
        "texts": token_texts(tokenizer, tokens),
        "freed": [[[None if t == STILL_HELD else t for t in row] for row in layer] for layer in freed.tolist()],
    }
    record["layers"] = [layer_row(record, layer) for layer in range(config.num_layers)]
    return {
        **record,
        "text_sha256": text_hash(prompt.text),
        "model_sha256": fingerprint(config, params),
        **provenance(),
    }


def _continue(
    config: Config,
    params: Params,
    tokenizer: Tokenizer,
    prompt: Prompt,
    settings: TraceSettings,
    report: Callable[[str], None],
) -> list[int]:
    if not settings.max_new_tokens:
        return []
    report("generating")
    tokens, lengths, _ = generate(
        config,
        settings.policy,
        params,
        [prompt.tokens],
        budget=settings.budget,
        max_new_tokens=settings.max_new_tokens,
        stop=tokenizer.stop,
        mode=settings.mode,
        positions=settings.positions,
    )
    return tokens[0, : int(lengths[0])].tolist()


def freed_at(
    config: Config,
    params: Params,
    tokens: Sequence[int],
    prompt: int,
    settings: TraceSettings,
    state: MultiState,
    report: Callable[[str], None] = lambda message: None,
) -> Int[np.ndarray, "L #K T"]:
    """When every token was freed, see `follow`: the first `prompt` of them read in the mode of the settings.

    Raises:
      ValueError: for tokens outside the vocabulary.
    """
    count = len(tokens)
    padded = np.zeros(-(-count // BLOCK) * BLOCK + BLOCK, np.int32)  # so that few lengths are compiled for
    padded[:count] = as_tokens(config, "the text", tokens)
    freed = _begin(state, len(padded))
    state = pin_prompt(state, prompt)
    done = prompt if settings.mode == "oneshot" else 0
    report("compiling")
    if done:
        block, length = jnp.asarray(padded[: -(-done // BLOCK) * BLOCK]), jnp.asarray(done, jnp.int32)
        state, freed = _follow_oneshot(config, settings.policy, params, state, freed, block, length)
    while done < count:
        block, length = jnp.asarray(padded[done : done + BLOCK]), jnp.asarray(min(BLOCK, count - done), jnp.int32)
        state, freed = jax.block_until_ready(_follow(config, settings.policy, params, state, freed, block, length))
        done = min(count, done + BLOCK)
        report(f"{done} of {count} tokens")
    return np.asarray(freed)[:, :, :count]


def layer_row(record: dict[str, Any], layer: int) -> dict[str, Any]:
    """What a layer holds in the end, over all its rows.

    `recent` is the share of what it holds that a window of the same size would hold; `mean_life` the mean number of
    steps after which a token that is freed was held: over all tokens it would be the mean number held, a constant.
    """
    freed = record["freed"][layer]
    count = len(record["tokens"])
    held = [[position for position, t in enumerate(row) if t is None] for row in freed]
    every = [position for row in held for position in row]
    lives = [t - position for row in freed for position, t in enumerate(row) if t is not None]
    return {
        "layer": layer,
        "budget": record["budget"],
        "held": [len(row) for row in held],
        "oldest": min(every, default=None),
        "recent": sum(position >= count - record["budget"] for position in every) / len(every) if every else None,
        "mean_life": sum(lives) / len(lives) if lives else None,
    }
