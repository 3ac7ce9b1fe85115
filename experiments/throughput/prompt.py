"""Seconds from a prompt to its first token, beside transformers."""

from typing import Any

import jax

import msrnn_jax as ms
from experiments.throughput.bench import Bench
from experiments.throughput.programs import first_token
from experiments.throughput.settings import Settings
from experiments.throughput.timing import Series, compiled, ratio, take_turns
from msrnn_jax.prefill import PROMPT_MODES

PEER = "transformers"


def run(settings: Settings, bench: Bench) -> dict[str, Any]:
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
