"""How many rows fit: the paper's Table 1, by arithmetic, by XLA's count, and on accelerators by doing it."""

from typing import Any

import jax
import jax.numpy as jnp

import msrnn_jax as ms
from experiments.throughput.bench import Bench
from experiments.throughput.largest import decode_at_largest
from experiments.throughput.programs import continue_greedily
from experiments.throughput.settings import Settings
from experiments.throughput.timing import Row, compiled, program_bytes
from msrnn_jax.fork import fork
from msrnn_jax.sizes import GIB, largest_batch, state_bytes, tree_bytes, working_bytes

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
