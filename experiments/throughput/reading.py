"""Tokens per second of reading a text with its losses, beside full attention, single steps and transformers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import msrnn_jax as ms
from experiments.throughput.programs import first_token, step_losses
from experiments.throughput.settings import OVERFILL, Settings
from experiments.throughput.timing import Bench, Row, Series, compiled, program_bytes, ratio, row_of, take_turns
from msrnn_jax.model.prefill import PROMPT_MODES

PEER = "transformers"
STEP = "scan of step"


class Variant(NamedTuple):
    """One way to read."""

    policy: str
    budget: int
    chunk: int

    @property
    def name(self) -> str:
        return f"{self.policy} budget {self.budget} chunk {self.chunk}"


def run_extend(settings: Settings, bench: Bench) -> dict[str, Any]:
    """For every dtype the grid, which also finds full attention's better chunk, and then the whole text."""
    names = ("grid", "whole", "grid_ratios", "whole_ratios", "losses", "memory")
    results: dict[str, list[Row]] = {name: [] for name in names}
    base = default(settings).name
    for dtype in settings.dtypes:
        grid = _grid(settings, bench, dtype)
        results["grid"] += grid
        whole, losses = _whole(settings, bench, dtype, _better_full(grid))
        results["whole"] += whole
        results["losses"].append({"dtype": dtype, **losses})
        # On the whole text ours over each of the others, in the grid each variation over ours.
        others = [row["series"] for row in whole if row["series"] != base]
        results["whole_ratios"] += [{"dtype": dtype, **ratio(whole, base, other)} for other in others]
        others = [row["series"] for row in grid if row["series"] != base]
        results["grid_ratios"] += [{"dtype": dtype, **ratio(grid, other, base)} for other in others]
        results["memory"].append(_memory(settings, bench, row_of(whole, base)))
    return results


def default(settings: Settings) -> Variant:
    """What is varied."""
    return Variant(str(ms.parse_policy(settings.policy)), settings.extend.budget, settings.extend.chunk)


def variants(settings: Settings) -> list[Variant]:
    """One factor at a time. Full attention holds the whole text, and is tried at the default chunk and the largest."""
    extend, base = settings.extend, default(settings)
    chunks = [base.chunk, *extend.chunks]
    made = [base._replace(chunk=chunk) for chunk in chunks]
    made += [base._replace(budget=budget) for budget in extend.budgets]
    policies = [ms.parse_policy(policy) for policy in extend.policies]
    made += [base._replace(policy=str(policy)) for policy in policies if policy.forgets]
    made += [Variant("full", extend.tokens, chunk) for chunk in (base.chunk, max(chunks))]
    return list(dict.fromkeys(made))


def _grid(settings: Settings, bench: Bench, dtype: str) -> list[Row]:
    count = settings.extend.grid_tokens
    series = [_reading(bench, dtype, variant, count, {}) for variant in variants(settings)]
    return take_turns(series, settings.slow_turns, bench.report, warm=False)


def _better_full(grid: list[Row]) -> Variant:
    row = max((row for row in grid if row["policy"] == "full"), key=lambda row: row["tokens_per_second"])
    return Variant(row["policy"], row["budget"], row["chunk"])


def _whole(settings: Settings, bench: Bench, dtype: str, full: Variant) -> tuple[list[Row], Row]:
    """The comparison, and the mean losses as a sign that all did the same work."""
    count, kept = settings.extend.tokens, {}
    series = [_reading(bench, dtype, variant, count, kept) for variant in (default(settings), full)]
    series.append(_stepping(settings, bench, dtype))
    peer = bench.peer(dtype)
    if peer is not None:
        tokens = bench.tokens(count + 1)
        read = peer.losses(tokens[:-1], tokens[1:])
        series.append(Series(PEER, lambda: kept.update({PEER: read()}), count, {"dtype": dtype}))
    rows = take_turns(series, settings.slow_turns, bench.report, warm=False)
    losses = {name: float(np.mean(values)) for name, values in kept.items()}
    if peer is not None:
        losses["largest_difference_of_full"] = float(np.abs(kept[full.name] - kept[PEER]).max())
    return rows, losses


def _reading(bench: Bench, dtype: str, variant: Variant, count: int, kept: dict[str, np.ndarray]) -> Series:
    """Reads from an empty state, whose slots cost the same as full ones; the losses of the last call are kept."""
    config, params = bench.model(dtype)
    policy, tokens = ms.parse_policy(variant.policy), bench.tokens(count + 1)
    arguments = (config, policy, params, ms.init_state(config, policy, variant.budget), tokens[:-1], tokens[1:])
    bench.report(f"{dtype}: compiling {variant.name}")
    program, seconds = compiled(ms.nll, *arguments, chunk=variant.chunk)

    def call() -> None:
        kept[variant.name] = np.asarray(jax.block_until_ready(program(*arguments))[1])

    facts = {"dtype": dtype, **variant._asdict(), "compile_seconds": seconds, "bytes": program_bytes(program)}
    return Series(variant.name, call, count, facts)


def _stepping(settings: Settings, bench: Bench, dtype: str) -> Series:
    """A stretch of text after the state is full; it would take minutes to step over the whole."""
    extend, (config, params) = settings.extend, bench.model(dtype)
    start = extend.budget + OVERFILL
    state = bench.filled(dtype, bench.policy, extend.budget, start)
    tokens = bench.tokens(start + extend.stretch + 1)[start:]
    arguments = (config, bench.policy, params, state, tokens[:-1], tokens[1:])
    bench.report(f"{dtype}: compiling {STEP}")
    program, seconds = compiled(step_losses, *arguments)

    def call() -> None:
        jax.block_until_ready(program(*arguments))

    facts = {"dtype": dtype, "policy": settings.policy, "budget": extend.budget, "position": start}
    return Series(STEP, call, extend.stretch, facts | {"compile_seconds": seconds})


def _memory(settings: Settings, bench: Bench, row: Row) -> Row:
    """Bytes of the program that reads the whole text, and of one for a longer text that is only compiled."""
    extend, (config, params) = settings.extend, bench.abstract(row["dtype"])
    state = jax.eval_shape(lambda: ms.init_state(config, bench.policy, extend.budget))
    tokens = jax.ShapeDtypeStruct((extend.long,), jnp.int32)
    bench.report(f"{row['dtype']}: compiling for {extend.long} tokens")
    program, _ = compiled(ms.nll, config, bench.policy, params, state, tokens, tokens, chunk=extend.chunk)
    short, long = row["bytes"], program_bytes(program)
    growth = (long["peak"] - short["peak"]) / max(1, extend.long - extend.tokens)
    return {
        "dtype": row["dtype"],
        "tokens": [extend.tokens, extend.long],
        "bytes": [short, long],
        "bytes_per_token": growth,
    }


def run_prompt(settings: Settings, bench: Bench) -> dict[str, Any]:
    """Times the same prompt in every dtype."""
    rows, ratios = [], []
    for dtype in settings.dtypes:
        series = [_ours(settings, bench, dtype, mode) for mode in PROMPT_MODES]
        series += _peers(settings, bench, dtype)
        found = take_turns(series, settings.slow_turns, bench.report, warm=False)
        rows += found
        if len(series) > len(PROMPT_MODES):
            ratios += [{"dtype": dtype, **ratio(found, mode, PEER, "time")} for mode in PROMPT_MODES]
    return {"rows": rows, "ratios": ratios}


def _ours(settings: Settings, bench: Bench, dtype: str, mode: str) -> Series:
    prompt, (config, params) = settings.prompt, bench.model(dtype)
    tokens = bench.tokens(prompt.length)
    empty = ms.init_state(config, bench.policy, prompt.budget)
    bench.report(f"{dtype}: compiling {mode}")
    program, seconds = compiled(first_token, config, bench.policy, params, empty, tokens, mode=mode)

    def call() -> None:
        jax.block_until_ready(program(config, bench.policy, params, empty, tokens))

    facts = {"dtype": dtype, "policy": settings.policy, "budget": prompt.budget, "compile_seconds": seconds}
    return Series(mode, call, prompt.length, facts)


def _peers(settings: Settings, bench: Bench, dtype: str) -> list[Series]:
    peer = bench.peer(dtype)
    if peer is None:
        return []
    call = peer.first_token(bench.tokens(settings.prompt.length))
    return [Series(PEER, call, settings.prompt.length, {"dtype": dtype})]
