"""What a decoding step costs: against the products with the weights alone, and against the token's position.

python -m experiments.throughput checkpoints/smollm2-135m --policy tova --budget 512

The floor is the model's own matrix-vector products, chained in one jitted program that reads every weight
once and does nothing else. Floor and steps take turns in one run, and ratios are taken within a turn.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer
from jax import Array
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

import msrnn_jax as ms
from experiments.results import check_out, write_result
from msrnn_jax.checkpoint import fingerprint
from msrnn_jax.command import plain_errors
from msrnn_jax.layers import project
from msrnn_jax.texts import default_text


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is timed."""

    checkpoint: str
    policy: str = "tova"
    budget: int = 512
    early: int = 2_000  # position of the token in one series of steps
    late: int = 20_000  # and in the other
    turns: int = 40  # of floor, early steps, late steps
    calls: int = 10  # in a turn
    dtype: str | None = None


def weight_products(params: ms.Params, x: Float[Array, " D"]) -> Float[Array, " V"]:
    """Every product with a weight, each fed by the one before, and no attention, norm or rotation between."""
    for layer in params.layers:
        query = project("d,dnh->nh", x, layer.query)
        key = project("d,dkh->kh", x, layer.key)
        value = project("d,dkh->kh", x, layer.value)
        shared = jnp.repeat(key + value, query.shape[0] // key.shape[0], axis=0)
        x = x + project("nh,nhd->d", query + shared, layer.output)
        x = x + project("f,fd->d", project("d,df->f", x, layer.gate) * project("d,df->f", x, layer.up), layer.down)
    if params.unembedding is None:
        return project("d,vd->v", x, params.embedding)
    return project("d,dv->v", x, params.unembedding)


def run(settings: Settings) -> dict[str, Any]:
    """Compiles, fills the state with the default text, and times floor and steps in turns."""
    policy = ms.parse_policy(settings.policy)
    config, params = ms.load(settings.checkpoint, dtype=settings.dtype)
    tokens = jnp.asarray(
        ms.load_tokenizer(settings.checkpoint).encode(default_text())[: settings.budget + 8], jnp.int32
    )
    state = ms.init_state(config, policy, settings.budget)
    state, _ = jax.jit(ms.prefill)(config, policy, params, state, tokens)
    x = params.embedding[0]

    started = time.perf_counter()
    floor = jax.jit(weight_products).lower(params, x).compile()
    floor_compile = time.perf_counter() - started
    started = time.perf_counter()
    step = jax.jit(ms.step, donate_argnames="state").lower(config, policy, params, state, tokens[0]).compile()
    step_compile = time.perf_counter() - started

    def run_floor() -> None:
        floor(params, x).block_until_ready()

    def run_step() -> None:
        nonlocal state
        state, logits = step(config, policy, params, state, tokens[0])
        logits.block_until_ready()

    series: dict[str, list[float]] = {"floor": [], "early": [], "late": []}
    for turn in range(settings.turns + 1):
        times = {"floor": timed(run_floor, settings.calls)}
        # The order alternates, so that neither position always follows the other.
        for name in ("early", "late") if turn % 2 else ("late", "early"):
            state = move(state, getattr(settings, name))
            times[name] = timed(run_step, settings.calls)
        if turn:  # the first turn warms up
            for name, seconds in times.items():
                series[name].append(seconds)
    return {
        "model_sha256": fingerprint(params),
        "dtype": config.dtype,
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in series.items()},
        "step_over_floor": median_ratio(series["early"], series["floor"]),
        "late_over_early": median_ratio(series["late"], series["early"]),
        "compile_seconds": {"floor": floor_compile, "step": step_compile},
        "memory": memory(step, config, state),
    }


def move(state: ms.MultiState, t: int) -> ms.MultiState:
    """The same state at another time: its clock and all held positions shifted alike."""
    by = t - state.t
    layers = [
        layer.replace(positions=jnp.where(layer.positions == ms.EMPTY, ms.EMPTY, layer.positions + by))
        for layer in state.layers
    ]
    return state.replace(layers=tuple(layers), t=jnp.asarray(t, jnp.int32))


def timed(call: Callable[[], None], calls: int) -> float:
    """Seconds for one call, the mean over `calls`."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def median_ratio(first: list[float], second: list[float]) -> float:
    """The median over turns of the ratio within a turn."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def memory(step: Any, config: ms.Config, state: ms.MultiState) -> dict[str, int]:
    """Bytes as XLA counts them, beside what the state and its parts take."""
    analysis = step.memory_analysis()
    layer = state.layers[0]
    return {
        "state": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
        "aliased": analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "one_layer": layer.keys.nbytes + layer.values.nbytes,
        "logits": config.vocab_size * 4,
    }


def tables(settings: Settings, result: dict[str, Any]) -> list[Table]:
    """The result for reading."""
    speed = Table("", "ms", "ratio", title=f"Decoding, {settings.policy}, budget {settings.budget}, batch 1")
    took = result["milliseconds"]
    speed.add_row("products with the weights", f"{took['floor']:.2f}", "1")
    speed.add_row(
        f"step at t = {settings.early:,}", f"{took['early']:.2f}", f"{result['step_over_floor']:.3f} x products"
    )
    speed.add_row(
        f"step at t = {settings.late:,}", f"{took['late']:.2f}", f"{result['late_over_early']:.3f} x earlier step"
    )
    memory = Table("", "bytes", title="Memory of the step")
    for name, size in result["memory"].items():
        memory.add_row(name.replace("_", " "), f"{size:,}")
    return [speed, memory]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
@plain_errors()
def main(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT")],
    policy: Annotated[str, typer.Option(help="Policy of the steps.")] = Settings.policy,
    budget: Annotated[int, typer.Option(help="Multi-state size.")] = Settings.budget,
    turns: Annotated[int, typer.Option(help="Turns of floor, early steps, late steps.")] = Settings.turns,
    calls: Annotated[int, typer.Option(help="Calls in a turn.")] = Settings.calls,
    dtype: Annotated[str | None, typer.Option(help="Cast the weights.")] = None,
    out: Annotated[pathlib.Path, typer.Option(help="JSON to write.")] = pathlib.Path("results/throughput.json"),
) -> None:
    check_out(out)
    for name, value in (("turns", turns), ("calls", calls)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    settings = Settings(checkpoint, policy, budget, turns=turns, calls=calls, dtype=dtype)
    result = run(settings)
    write_result(out, "throughput", settings, result)
    for table in tables(settings, result):
        Console().print(table)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    app()
