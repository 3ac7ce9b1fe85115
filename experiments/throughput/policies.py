"""What every policy costs beside Window: time of a step and of a token in `extend`, and bytes of its statistics."""

from typing import Any

import jax
import jax.numpy as jnp

import msrnn_jax as ms
from experiments.throughput.decode import greedily
from experiments.throughput.settings import Settings, read_by_each
from experiments.throughput.timing import Bench, Model, Row, Series, compiled, ratio, take_turns
from msrnn_jax.io.units import tree_bytes
from msrnn_jax.model.state_ops import fork
from msrnn_jax.policies import Learned, init_gate

BASE = ms.Window()
EXTEND = "extend"
NO_MORE, MORE, UNDECIDED = "no more", "more", "undecided"


def run(settings: Settings, bench: Bench) -> dict[str, Any]:
    """Times one kind of work after the other, in which all policies of one dtype take turns.

    Returns:
      `rows`, the series; `ratios`, each policy's time over Window's; `pairs`, that of cutting now and then over that of
      cutting at every token; `bytes`, those of a state.
    """
    results: dict[str, list[Row]] = {name: [] for name in ("rows", "ratios", "pairs", "bytes")}
    policies = {str(policy): policy for policy in (BASE, *map(ms.parse_policy, settings.policies.compared))}
    for dtype in settings.dtypes:
        states: dict[str, ms.MultiState] = {}
        config = bench.model(dtype).config
        policies = {name: _with_gate(policy, config) for name, policy in policies.items()}
        for kind in kinds(settings):
            series = [_series(settings, bench, dtype, policy, kind, states) for policy in policies.values()]
            rows = take_turns(series, settings.slow_turns, bench.report, warm=False)
            results["rows"] += rows
            results["ratios"] += [_ratio(rows, dtype, kind, name, str(BASE)) for name in policies if name != str(BASE)]
            results["pairs"] += [_ratio(rows, dtype, kind, *pair) for pair in pairs(policies)]
        counts = (count_bytes(config, policy, settings.decode.budget) for policy in policies.values())
        results["bytes"] += [{"dtype": dtype, **count} for count in counts]
    results["pairs"] = [{**pair, "costs": verdict(pair["each"])} for pair in results["pairs"]]
    return results


def _with_gate(policy: ms.Policy, config: ms.Config) -> ms.Policy:
    """A learned policy has an untrained gate where it has none: that costs what a trained one does."""
    if not isinstance(policy, Learned) or policy.weights is not None:
        return policy
    return policy.replace(weights=init_gate(config, jax.random.key(0)))


def kinds(settings: Settings) -> list[str]:
    """The kinds of work. `extend` comes first, since it fills the states."""
    return [EXTEND, *map(stepping, settings.policies.batches)]


def stepping(batch: int) -> str:
    """The kind of work of so many rows that are decoded together."""
    return f"step batch {batch}"


def pairs(policies: dict[str, ms.Policy]) -> list[tuple[str, str]]:
    """Names of policies that cut now and then, each with that of the same one which cuts at every token."""
    found = ((name, str(policy.replace(every=1))) for name, policy in policies.items() if policy.every > 1)
    return [(name, at_each) for name, at_each in found if at_each in policies]


def verdict(each: list[float]) -> str:
    """What ratios of times say, if all say the same."""
    if max(each) <= 1:
        return NO_MORE
    return MORE if min(each) > 1 else UNDECIDED


def count_bytes(config: ms.Config, policy: ms.Policy, budget: int) -> Row:
    """Slots of a layer, the mean of all, and the bytes of a state that is never made."""
    layers = jax.eval_shape(lambda: ms.init_state(config, policy, budget)).layers
    return {
        "policy": str(policy),
        "slots": sum(layer.num_slots for layer in layers) / len(layers),
        "keys_and_values": tree_bytes([(layer.keys, layer.values) for layer in layers]),
        "positions": tree_bytes([layer.positions for layer in layers]),
        "statistics": tree_bytes([layer.stats for layer in layers]),
        "row_statistics": tree_bytes([layer.row_stats for layer in layers]),
    }


def _ratio(rows: list[Row], dtype: str, kind: str, of: str, over: str) -> Row:
    return {"dtype": dtype, "policy": of, "work": kind, **ratio(rows, f"{of} {kind}", f"{over} {kind}", "time")}


def _series(
    settings: Settings, bench: Bench, dtype: str, policy: ms.Policy, kind: str, states: dict[str, ms.MultiState]
) -> Series:
    """The work of one policy; `extend` leaves a full state in `states`, from which every call starts."""
    name = str(policy)
    bench.report(f"{dtype}: compiling {name} {kind}")
    facts = {"dtype": dtype, "policy": name, "work": kind, "budget": settings.decode.budget}
    if kind == EXTEND:
        return _extending(settings, bench, policy, facts, states)
    batch = next(batch for batch in settings.policies.batches if stepping(batch) == kind)
    steps = -(-settings.decode.new_tokens // policy.every) * policy.every  # so that a call has its share of the cuts
    return _steps(bench.model(dtype), policy, states[name], batch, steps, facts)


def _extending(
    settings: Settings, bench: Bench, policy: ms.Policy, facts: Row, states: dict[str, ms.MultiState]
) -> Series:
    """Reading with losses, as in the section extend, but from a full state, so that policies cut as they will."""
    (config, params), count = bench.model(facts["dtype"]), read_by_each(settings)
    tokens = bench.tokens(2 * count + 1)
    empty = ms.init_state(config, policy, settings.decode.budget)
    chunk, first = settings.extend.chunk, (tokens[:count], tokens[1 : count + 1])
    program, seconds = compiled(ms.nll, config, policy, params, empty, *first, chunk=chunk)
    state = states[str(policy)] = program(config, policy, params, empty, *first)[0]
    rest = tokens[count:-1], tokens[count + 1 :]

    def call() -> None:
        jax.block_until_ready(program(config, policy, params, state, *rest))

    more = {"chunk": chunk, "steps": count, "compile_seconds": seconds}
    return Series(f"{policy} {EXTEND}", call, count, {**facts, **more})


def _steps(model: Model, policy: ms.Policy, state: ms.MultiState, batch: int, steps: int, facts: Row) -> Series:
    """Decoding as in the section decode. Its states are made before every call: all at once would fill the memory."""
    program, seconds = greedily(model, policy, state, batch, steps)
    tokens, made = jnp.zeros(batch, jnp.int32), []

    def prepare() -> None:
        made.append(jax.block_until_ready(fork(state, batch)))

    def call() -> None:
        program(model.config, policy, model.params, made.pop(), tokens)[1].block_until_ready()

    more = {"batch": batch, "steps": steps, "compile_seconds": seconds}
    return Series(f"{policy} {stepping(batch)}", call, batch * steps, {**facts, **more}, prepare)
