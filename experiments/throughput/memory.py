"""How many rows fit: the paper's Table 1, by arithmetic, by XLA's count, and on accelerators by doing it."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import msrnn_jax as ms
from experiments.common import published
from experiments.throughput.programs import continue_greedily
from experiments.throughput.settings import Settings
from experiments.throughput.timing import Bench, Model, Row, Series, compiled, program_bytes, ratio, row_of, take_turns
from msrnn_jax.devices.memory import largest_batch, state_bytes, working_bytes
from msrnn_jax.io.units import GIB, tree_bytes
from msrnn_jax.model.state_ops import fork

PAPER_GIB = 32.0  # of the V100 in the paper's Table 1
USABLE = 0.97  # of what JAX has of an accelerator: some is lost between arrays


def run(settings: Settings, bench: Bench) -> dict[str, Any]:
    """One row for every dtype and budget, the last of each for full attention."""
    memory = {dtype: total_bytes(settings, bench, dtype) for dtype in settings.dtypes}
    on_accelerator = jax.default_backend() != "cpu"
    largest = on_accelerator if settings.memory.largest is None else settings.memory.largest
    rows = []
    for dtype in settings.dtypes:
        room = memory[dtype]
        found = [_analyse(settings, bench, dtype, policy, budget, room) for policy, budget in pairs(settings)]
        rows += decode_at_largest(settings, bench, dtype, found, room) if largest else found
    return {"memory_bytes": memory, "rows": rows}


def check_memory(settings: Settings, bench: Bench) -> None:
    """Refuses a memory that does not hold the weights."""
    for dtype in settings.dtypes:
        memory, weights = total_bytes(settings, bench, dtype), tree_bytes(bench.abstract(dtype).params)
        if weights > memory:
            have, need = memory / GIB, weights / GIB
            raise ValueError(f"memory_gib is {have:.3g}; the {dtype} weights alone take {need:.3g} GiB")


def total_bytes(settings: Settings, bench: Bench, dtype: str) -> int:
    """The memory that is to be filled, the weights of this dtype in it."""
    if settings.memory.full_batch is not None:
        (config, params), budget = bench.abstract(dtype), settings.memory.full
        row = state_bytes(config, ms.Full(), budget) + working_bytes(config, ms.Full(), budget)
        return tree_bytes(params) + settings.memory.full_batch * row
    if settings.memory.gib is not None:
        return int(settings.memory.gib * GIB)
    facts = jax.local_devices()[0].memory_stats() or {}
    return int(USABLE * facts["bytes_limit"]) if "bytes_limit" in facts else int(PAPER_GIB * GIB)


def pairs(settings: Settings) -> list[tuple[ms.Policy, int]]:
    """Policies and budgets: ours at every budget, and full attention over its whole text."""
    ours = ms.parse_policy(settings.policy)
    return [*((ours, budget) for budget in settings.memory.budgets), (ms.Full(), settings.memory.full)]


def _analyse(settings: Settings, bench: Bench, dtype: str, policy: ms.Policy, budget: int, memory: int) -> Row:
    config, params = bench.abstract(dtype)
    weights, state = tree_bytes(params), state_bytes(config, policy, budget)
    working = working_bytes(config, policy, budget)
    bench.report(f"{dtype}: compiling {policy} {budget} for XLA's count")
    return {
        "dtype": dtype,
        "policy": str(policy),
        "budget": budget,
        "weight_bytes": weights,
        "state_bytes": state,
        "working_bytes": working,
        "largest_batch": largest_batch(memory, weights, state + working),
        "check": check(config, policy, params, budget, settings.memory.check_batch, settings.decode.new_tokens),
    }


def check(
    config: ms.Config, policy: ms.Policy, params: Any, budget: int, batch: int, count: int
) -> dict[str, int | float]:
    """XLA's own count for the compiled loop over batched steps, beside ours; weights may be shapes alone."""
    states = jax.eval_shape(lambda: fork(ms.init_state(config, policy, budget), batch))
    tokens = jax.ShapeDtypeStruct((batch,), jnp.int32)
    program, seconds = compiled(continue_greedily, config, policy, params, states, tokens, donate=(3,), count=count)
    layer = states.layers[0]
    return {
        "batch": batch,
        "expected_arguments": tree_bytes((params, states, tokens)),
        "expected_temporary": batch * working_bytes(config, policy, budget),
        **program_bytes(program),
        "one_layer": tree_bytes((layer.keys, layer.values)),
        "compile_seconds": seconds,
    }


def decode_at_largest(settings: Settings, bench: Bench, dtype: str, rows: list[Row], memory: int) -> list[Row]:
    """The same rows, with the batch that fits by XLA's count too, its speed, and that over full attention's.

    A step costs the same wherever it is in the text, full attention's too, whose slots are all there from the
    start; so some steps stand for sequences of any length.
    """
    model = bench.model(dtype)
    room = _room(settings, model, rows[-1], memory)
    series = [_series(settings, bench, model, row, room) for row in rows]
    found = take_turns([one for one in series if one is not None], settings.slow_turns, bench.report)
    full = next((one.name for one in series if one is not None and one.facts["policy"] == "full"), None)
    result = []
    for row, one in zip(rows, series, strict=True):
        timed = None if one is None else row_of(found, one.name)
        relative = None if timed is None or full is None else ratio(found, timed["series"], full)
        result.append({**row, "timed": timed, "relative": relative})
    return result


def _room(settings: Settings, model: Model, full: Row, memory: int) -> int:
    """Bytes for a program, these weights among its arguments, less what else is on the device.

    A memory that so many rows of full attention are to fill is at least what XLA counts for these: a CPU widens
    bfloat16 weights, which every budget then has the room for.
    """
    if settings.memory.full_batch is not None:
        batch, count = settings.memory.full_batch, settings.decode.new_tokens
        program, _ = _compile(model, ms.Full(), full["budget"], batch, count)
        memory = max(memory, program_bytes(program)["peak"])
    facts = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in facts:
        return memory
    return min(memory, facts["bytes_limit"] - facts["bytes_in_use"] + full["weight_bytes"])


def _series(settings: Settings, bench: Bench, model: Model, row: Row, memory: int) -> Series | None:
    policy, budget, count = ms.parse_policy(row["policy"]), row["budget"], settings.decode.new_tokens
    bench.report(f"{row['dtype']}: compiling {policy} {budget} at batch {row['largest_batch']}")
    program, batch, seconds = fitting(model, policy, row, memory, count)
    if program is None:
        return None
    make = jax.jit(standing, static_argnames=("budget", "batch"))
    states = None

    def prepare() -> None:
        nonlocal states
        states = jax.block_until_ready(make(model.config, policy, jax.random.key(0), budget=budget, batch=batch))

    def call() -> None:
        nonlocal states
        tokens = jnp.zeros(batch, jnp.int32)
        given, states = states, None  # the next budget needs the room
        jax.block_until_ready(program(model.config, policy, model.params, given, tokens)[1])

    facts = {"policy": row["policy"], "budget": budget, "batch": batch, "steps": count, "room_bytes": memory}
    facts |= {"compile_seconds": seconds, "bytes": program_bytes(program)}
    return Series(f"{policy} {budget}", call, batch * count, facts, prepare)


def fitting(model: Model, policy: ms.Policy, row: Row, memory: int, count: int) -> tuple[Any, int, float]:
    """The program for the largest batch that fits by XLA's count, from the one that fits by ours downwards.

    Returns:
      The program, or None where not even one row fits; the batch; and the seconds of the last compilation.
    """
    batch, weights = row["largest_batch"], row["weight_bytes"]
    while batch:
        program, seconds = _compile(model, policy, row["budget"], batch, count)
        needed = program_bytes(program)["peak"]
        if needed <= memory:
            return program, batch, seconds
        batch = min(batch - 1, int(batch * max(0, memory - weights) / (needed - weights)))
    return None, 0, 0.0


def _compile(model: Model, policy: ms.Policy, budget: int, batch: int, count: int) -> tuple[Any, float]:
    make = functools.partial(standing, model.config, policy, budget=budget, batch=batch)
    states = jax.eval_shape(make, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((batch,), jnp.int32)
    arguments = (model.config, policy, model.params, states, tokens)
    return compiled(continue_greedily, *arguments, donate=(3,), count=count)


def standing(config: ms.Config, policy: ms.Policy, key: Array, *, budget: int, batch: int) -> ms.MultiState:
    """Full states of random keys and values, all rows alike: made without a prompt, which would need room too."""
    state = ms.init_state(config, policy, budget)
    layers = []
    for layer, number in zip(state.layers, jax.random.split(key, len(state.layers)), strict=True):
        keys, values = jax.random.normal(number, (2, *layer.keys.shape), jnp.float32).astype(layer.keys.dtype)
        places = jnp.arange(layer.num_slots, dtype=jnp.int32)
        positions = jnp.where(places < budget, places, ms.EMPTY)
        positions = jnp.broadcast_to(positions[None], layer.positions.shape)
        layers.append(layer.replace(keys=keys, values=values, positions=positions))
    return fork(state.replace(layers=tuple(layers), t=jnp.asarray(budget, jnp.int32)), batch)


def summarise(result: dict[str, Any]) -> list[Row]:
    """One column of Table 1 for every dtype and budget of a result's memory section, full attention's the last.

    Returns:
      `state_bytes` of one row; `batch`, the largest that fits, by XLA's count where it was run, else by ours;
      `relative`, tokens per second at that batch over full attention's at its own, the median over turns and None
      where it was not run; `relative_each`, that of every turn; `published`, what the paper has for this budget.
    """
    return [_column(row) for row in result["memory"]["rows"]]


def _column(row: Row) -> Row:
    relative, budget = row.get("relative"), row["budget"]
    is_full = row["policy"] == "full"
    return {
        "dtype": row["dtype"],
        "policy": row["policy"],
        "budget": budget,
        "state_bytes": row["state_bytes"],
        "batch": batch_of(row),
        "relative": relative["median"] if relative else None,
        "relative_each": relative["each"] if relative else [],
        "published": _published(budget) if is_full == (budget == published.CONTEXT) else None,
    }


def batch_of(row: Mapping[str, Any]) -> int:
    """The largest that fits: by XLA's count where that was asked for, 0 if it says that no row does, else by ours."""
    if "timed" not in row:
        return row["largest_batch"]
    return row["timed"]["batch"] if row["timed"] else 0


def _published(budget: int) -> dict[str, float] | None:
    """What the paper has of LLaMA-2-7B on one V100, batches of sequences of 4,096 tokens."""
    if budget not in published.MEMORY:
        return None
    return {
        "gigabytes": published.MEMORY[budget],
        "batch": published.BATCH[budget],
        "relative": published.THROUGHPUT[budget],
    }
