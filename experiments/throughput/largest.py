"""Decoding at the largest batch that fits, budget by budget: the throughput of the paper's Table 1."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import msrnn_jax as ms
from experiments.throughput.bench import Bench, Model
from experiments.throughput.programs import continue_greedily
from experiments.throughput.settings import Settings
from experiments.throughput.timing import Row, Series, compiled, program_bytes, ratio, row_of, take_turns
from msrnn_jax.fork import fork


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
