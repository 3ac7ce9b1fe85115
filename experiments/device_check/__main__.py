"""Whether a GPU or TPU computes what it must, and how near to its limits it runs, in five minutes.

python -m experiments.device_check

First a small model: kernels against the scan that they replace, `extend` against `step`, float32 against the CPU's.
Then LLaMA-2-7B in bfloat16, with random weights: decoding, as a share of the bandwidth (weights and states, each read
once a step), and perplexity with and without kernels, as a share of the operations (products with weights alone). On a
CPU a tiny model takes its place. A part that fails is told in its row, and the rest goes on. Exit code 1 if something
is not what it must be. (A lone row held differently can be two scores that are equal but for rounding: try --seed 1.)
"""

import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax
import typer
from rich.console import Console
from rich.table import Table

from experiments.common.console import say, show
from experiments.common.origin import check_out, write_result
from experiments.common.shapes import SHAPES
from experiments.device_check.device import PEAKS, Peak
from experiments.device_check.exact import CHECKS, Exactness, policies
from experiments.device_check.settings import Settings
from experiments.device_check.speed import DTYPE, Speed
from experiments.throughput.timing import Row
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command
from msrnn_jax.io.errors import typed_line

NAME = "device_check"
EXACT, SPEED = "exact", "speed"
Work = Callable[[], Row]


class Clock:
    """Does one part after the other, while there is time."""

    def __init__(self, seconds: float):
        self.seconds, self.started, self.longest = seconds, time.monotonic(), 0.0

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def do(self, work: Work) -> Row:
        """What came of a part, or why nothing did. It begins if there is time for one like the longest so far."""
        begun = self.elapsed()
        if begun + self.longest >= self.seconds:
            return {"skipped": f"no time after {begun:.0f} s"}
        try:
            return work()
        except Exception as error:  # of XLA, mostly, for want of memory
            return {"error": typed_line(error)}
        finally:
            self.longest = max(self.longest, self.elapsed() - begun)


def run(settings: Settings, peak: Peak, console: Console) -> dict[str, Any]:
    """The rows of all parts: those first that there must be time for."""
    clock, found = Clock(60 * settings.minutes), {EXACT: [], SPEED: []}
    exact, speed = Exactness(settings.seed), Speed(settings, peak, partial(say, console))

    def checks(observing: bool) -> list[tuple[str, Row, Work]]:
        """Those of the policies that look at attention, or of the others."""
        return [
            (EXACT, {"check": name, "policy": str(policy)}, partial(exact.check, name, policy))
            for policy in policies()
            if policy.observes == observing
            for name in CHECKS
        ]

    timed: list[tuple[str, Row, Work]] = [
        (SPEED, {"part": "decode", "batch": batch, "kernels": None}, partial(speed.decode, batch))
        for batch in dict.fromkeys((1, settings.batch))
    ]
    timed += [
        (SPEED, {"part": "perplexity", "batch": 1, "kernels": setting}, partial(speed.perplexity, setting))
        for setting in ("off", "on")
    ]
    for kind, about, work in (*checks(observing=True), *timed, *checks(observing=False)):
        say(console, f"{kind}: {', '.join(f'{value}' for value in about.values() if value)}")
        found[kind].append({**about, **clock.do(work)})
    return {**found, "peak": peak._asdict(), "seconds": clock.elapsed()}


def failures(result: dict[str, Any]) -> list[Row]:
    """The checks that were begun and not passed."""
    return [row for row in result[EXACT] if not row.get("passed", "skipped" in row)]


def tables(result: dict[str, Any], settings: Settings) -> list[Table]:
    """The rows, for reading."""
    device = jax.local_devices()[0].device_kind
    exact = Table("check", "policy", "", title=f"{device}: the same in float32, on a small model")
    for title in ("largest difference of logits", "rows held differently"):
        exact.add_column(title, justify="right")
    exact.add_column("note")
    for row in result[EXACT]:
        cells = ["pass" if row.get("passed") else "skipped" if "skipped" in row else "FAIL", "", ""]
        if "passed" in row:
            cells[1:] = f"{row['largest_difference']:.1e}", f"{row['rows_held_differently']}"
        exact.add_row(row["check"], row["policy"], *cells, _note(row, row.get("one_program", False)))
    speed = Table("part", title=f"{device}: {settings.shape}, {DTYPE}, {settings.policy} {settings.budget}")
    speed.add_column("kernels")
    for title in ("batch", "layers", "tokens/s", "GB/s", "of peak", "TFLOP/s", "of peak", "compiled in"):
        speed.add_column(title, justify="right")
    speed.add_column("note")
    programs = [row["program"] for row in result[SPEED] if "program" in row]
    for row in result[SPEED]:
        cells = [""] * 7
        if "tokens_per_second" in row:
            share = "unknown" if row["share"] is None else f"{row['share']:.1%}"
            cells = [f"{row['layers']} of {row['layers_of_all']}", f"{row['tokens_per_second']:,.0f}", *cells[2:]]
            if "bytes_per_second" in row:
                cells[2:4] = f"{row['bytes_per_second'] / 1e9:,.1f}", share
            else:
                cells[4:6] = f"{row['flops_per_second'] / 1e12:,.3g}", share
            cells[6] = f"{row['compile_seconds']:.0f} s"
        note = _note(row, programs.count(row.get("program")) > 1)
        speed.add_row(row["part"], row["kernels"] or "", f"{row['batch']}", *cells, note)
    speed.caption = f"perplexity of {settings.tokens:,} tokens; {result['seconds']:.0f} s in all"
    return [exact, speed]


def _note(row: Row, is_same: bool) -> str:
    return row.get("error") or row.get("skipped") or ("the same program" if is_same else "")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors
def main(
    shape: Annotated[
        str | None,
        typer.Option(help=f"Shape of the timed model: {', '.join(SHAPES)}. Default: llama-2-7b; tiny on a CPU."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Its layers. Default: all that fit into the memory.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Policy of the timed model, as in msrnn perplexity.")] = Settings.policy,
    budget: Annotated[int, typer.Option(min=1, help="Multi-state size.")] = Settings.budget,
    batch: Annotated[int, typer.Option(min=1, help="Rows of the larger batch, or as many as fit.")] = Settings.batch,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the text of the perplexity.")] = Settings.tokens,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a call of decoding.")] = Settings.steps,
    turns: Annotated[int, typer.Option(min=1, help="Timed calls; their median counts.")] = Settings.turns,
    minutes: Annotated[float, typer.Option(min=0, help="Time for all; what does not fit into it is skipped.")] = 5.0,
    bandwidth: Annotated[float | None, typer.Option(help="GB/s that the device has. Default: its maker's.")] = None,
    flops: Annotated[float | None, typer.Option(help="TFLOP/s in bfloat16. Default: its maker's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the small model and its text.")] = Settings.seed,
    out: Annotated[pathlib.Path, typer.Option(help="JSON to write.")] = pathlib.Path("results/device_check.json"),
) -> None:
    check_out(out)
    device = jax.local_devices()[0]
    shape = shape or ("tiny" if device.platform == "cpu" else "llama-2-7b")
    if shape not in SHAPES:
        raise ValueError(f"shape is {shape!r}; it must be one of {', '.join(SHAPES)}")
    known = PEAKS.get(device.device_kind, Peak())
    peak = Peak(
        known.bandwidth if bandwidth is None else bandwidth * 1e9, known.flops if flops is None else flops * 1e12
    )
    settings = Settings(
        shape, layers, policy, budget, batch, tokens, steps, turns, minutes, peak.bandwidth, peak.flops, seed
    )
    result = run(settings, peak, Console(stderr=True))
    write_result(out, NAME, settings, {"device_kind": device.device_kind, **result})
    show(*tables(result, settings))
    wrong = failures(result)
    if wrong:
        typer.echo(f"{len(wrong)} checks failed, of them {wrong[0]['check']} for {wrong[0]['policy']}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
