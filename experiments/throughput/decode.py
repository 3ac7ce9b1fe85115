"""Milliseconds per step against position, budget and batch, beside the products with weights and transformers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import msrnn_jax as ms
from experiments.throughput.programs import continue_greedily, multiply_greedily
from experiments.throughput.settings import Settings, seen
from experiments.throughput.timing import Bench, Model, Row, Series, compiled, move, program_bytes, ratio, take_turns
from msrnn_jax.model.state_ops import fork


def run(settings: Settings, bench: Bench) -> dict[str, Any]:
    """Times everything of one dtype in the same turns."""
    rows, ratios = [], []
    for dtype in settings.dtypes:
        series = [
            *_ours(settings, bench, dtype),
            *_floors(settings, bench, dtype),
            *_peers(settings, bench, dtype),
        ]
        bench.report(f"{dtype}: {len(series)} series")
        found = take_turns(series, settings.turns, bench.report, warm=False)
        rows += found
        ratios += [{"dtype": dtype, **one} for one in _ratios(settings, found)]
    return {"rows": rows, "ratios": ratios}


def ours(budget: int, batch: int, position: int | None = None) -> str:
    """The name of a series of steps."""
    return f"step budget {budget} batch {batch}" + ("" if position is None else f" at {position}")


def floor(batch: int) -> str:
    """The name of a series of products alone."""
    return f"products batch {batch}"


def theirs(batch: int) -> str:
    """The name of a series of transformers."""
    return f"transformers batch {batch}"


def greedily(model: Model, policy: ms.Policy, state: ms.MultiState, batch: int, count: int) -> tuple[Any, float]:
    """The compiled loop over steps that overwrites its states, and the seconds its compilation took."""
    states = jax.eval_shape(lambda state: fork(state, batch), state)
    tokens = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return compiled(continue_greedily, model.config, policy, model.params, states, tokens, donate=(3,), count=count)


def keep_going(program: Any, model: Model, policy: ms.Policy, states: ms.MultiState) -> Callable[[], None]:
    """A call that decodes on from where the last one ended."""
    tokens = jnp.zeros(states.t.shape, jnp.int32)

    def call() -> None:
        nonlocal states, tokens
        states, tokens = program(model.config, policy, model.params, states, tokens)
        tokens.block_until_ready()

    return call


def _ours(settings: Settings, bench: Bench, dtype: str) -> list[Series]:
    """One factor varied at a time: batch, budget, position."""
    decode, model = settings.decode, bench.model(dtype)
    wanted: list[tuple[int, int, int | None]] = [(decode.budget, batch, None) for batch in decode.batches]
    wanted += [(budget, 1, None) for budget in decode.budgets]
    wanted += [(decode.budget, 1, position) for position in (decode.early, decode.late)]
    states = _states(settings, bench, dtype)
    programs: dict[tuple[int, int], tuple[Any, float]] = {}
    made = []
    for budget, batch, position in dict.fromkeys(wanted):
        state = states[budget] if position is None else move(states[budget], position)
        if (budget, batch) not in programs:
            bench.report(f"{dtype}: compiling {ours(budget, batch)}")
            programs[budget, batch] = greedily(model, bench.policy, state, batch, decode.new_tokens)
        program, seconds = programs[budget, batch]
        facts = {
            "dtype": dtype,
            "policy": settings.policy,
            "budget": budget,
            "batch": batch,
            "steps": decode.new_tokens,
            "position": int(state.t),
            "compile_seconds": seconds,
            "bytes": program_bytes(program),
        }
        call = keep_going(program, model, bench.policy, fork(state, batch))
        made.append(Series(ours(budget, batch, position), call, batch * decode.new_tokens, facts))
    return made


def _states(settings: Settings, bench: Bench, dtype: str) -> dict[int, ms.MultiState]:
    """A full state by budget: after the prompt for the default one, else cut down from that of the largest."""
    decode, largest = settings.decode, max(settings.decode.budgets)
    first = bench.filled(dtype, bench.policy, decode.budget, seen(decode, decode.budget))
    large = bench.filled(dtype, bench.policy, largest, seen(decode, largest))
    cut = {budget: ms.compress(bench.policy, large, budget, shrink=True) for budget in decode.budgets}
    return {**cut, decode.budget: first}


def _floors(settings: Settings, bench: Bench, dtype: str) -> list[Series]:
    count, params = settings.decode.new_tokens, bench.model(dtype).params
    made = []
    for batch in dict.fromkeys((1, *settings.decode.batches)):
        tokens = jnp.zeros(batch, jnp.int32)
        program, seconds = compiled(multiply_greedily, params, tokens, count=count)
        facts = {"dtype": dtype, "batch": batch, "steps": count, "compile_seconds": seconds}

        def call(program: Any = program, tokens: jax.Array = tokens) -> None:
            program(params, tokens).block_until_ready()

        made.append(Series(floor(batch), call, batch * count, facts))
    return made


def _peers(settings: Settings, bench: Bench, dtype: str) -> list[Series]:
    decode, peer = settings.decode, bench.peer(dtype)
    if peer is None:
        return []
    made = []
    for batch in decode.batches:
        call = peer.decoding(bench.tokens(decode.prompt), batch, decode.new_tokens)
        facts = {"dtype": dtype, "batch": batch, "steps": decode.new_tokens, "position": decode.prompt}
        made.append(Series(theirs(batch), call, batch * decode.new_tokens, facts))
    return made


def _ratios(settings: Settings, rows: list[Row]) -> list[Row]:
    decode = settings.decode
    made = [ratio(rows, ours(decode.budget, 1, decode.late), ours(decode.budget, 1, decode.early), "time")]
    for row in rows:
        if row["series"].startswith("step"):
            made.append(ratio(rows, row["series"], floor(row["batch"]), "time"))
    for batch in decode.batches:
        if any(row["series"] == theirs(batch) for row in rows):
            made.append(ratio(rows, ours(decode.budget, batch), theirs(batch)))
    return made
