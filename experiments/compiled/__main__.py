"""What the compilers of a TPU v5e and an H100 make of `step` and `extend`, on a machine with neither.

python -m experiments.compiled

XLA compiles for a device that is described, so programs, buffers and copies are real; only time is not there. It needs
the compilers, which `make compiled` puts into .venv-compiled. Layers are alike, so what a layer launches is what a
model of two layers launches beyond one of one; everything else is of as many layers as asked for. Nothing is computed,
and no weights are needed.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from experiments.common.console import say, show
from experiments.common.options import command_of, settings_of
from experiments.common.origin import check_out, write_result
from experiments.common.shapes import SHAPES
from experiments.compiled.programs import PROGRAMS, Case, compile_case
from experiments.compiled.targets import TOPOLOGIES, target_devices
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.io.units import spell_bytes

NAME = "compiled"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled: every combination."""

    targets: tuple[str, ...] = tuple(TOPOLOGIES)
    programs: tuple[str, ...] = PROGRAMS
    batches: tuple[int, ...] = (0, 8)
    layers: tuple[int, ...] = (1,)
    shape: str = "llama-2-7b"
    policy: str = "tova"
    budget: int = 512
    positions: str = "absolute"
    dtype: str = "bfloat16"


def run(settings: Settings, console: Console) -> list[dict[str, Any]]:
    """A row for every program."""
    same = ("shape", "policy", "budget", "positions", "dtype")
    fixed: dict[str, Any] = {name: getattr(settings, name) for name in same}
    for target in settings.targets:
        target_devices(target)  # refuses before work
    rows = []
    for target, program, batch in itertools.product(settings.targets, settings.programs, settings.batches):
        say(console, f"compiling {program} for {target}, batch {batch}")
        cases = {
            layers: Case(target, program, batch=batch, layers=layers, **fixed) for layers in (1, 2, *settings.layers)
        }
        made = {layers: compile_case(case) for layers, case in cases.items()}
        kernels = made[2].program.kernels() - made[1].program.kernels()
        for layers in settings.layers:
            one = made[layers]
            rows.append(
                {
                    "target": target,
                    "program": program,
                    "batch": batch,
                    "layers": layers,
                    "compile_seconds": one.seconds,
                    "compile_cpu_seconds": one.cpu_seconds,
                    "weight_bytes": one.weights,
                    "state_bytes": one.state,
                    "temporary_bytes": one.temporaries,
                    "aliased_bytes": one.aliased,
                    "weights_copied": one.weights_copied(),
                    "caches_copied": one.caches_copied(),
                    "kernels_of_a_layer": kernels,
                    "kernels_of_a_token_and_layer": kernels / one.case.tokens,
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]], settings: Settings) -> Table:
    """The rows, for reading."""
    made = Table("target", "program", title=f"{settings.shape}, {settings.policy} {settings.budget}")
    for title in ("batch", "layers", "weights", "state", "temporaries", "copies of weights, caches"):
        made.add_column(title, justify="right")
    for title in ("kernels of a token and layer", "seconds to compile, of CPUs"):
        made.add_column(title, justify="right")
    for row in rows:
        sizes = (spell_bytes(row[name]) for name in ("weight_bytes", "state_bytes", "temporary_bytes"))
        copies = f"{len(row['weights_copied'])}, {len(row['caches_copied'])}"
        seconds = f"{row['compile_seconds']:.1f}, {row['compile_cpu_seconds']:.1f}"
        last = f"{row['kernels_of_a_token_and_layer']:.1f}", seconds
        made.add_row(row["target"], row["program"], f"{row['batch']}", f"{row['layers']}", *sizes, copies, *last)
    return made


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=command_of({NAME: Settings()}), help=__doc__)
@plain_errors
def main(
    target: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(TOPOLOGIES)}; repeat it.")] = None,
    program: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PROGRAMS)}; repeat it.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=0, help="Rows, 0 for one state alone; repeat it.")] = None,
    layers: Annotated[list[int] | None, typer.Option(min=1, help="Layers of the model; repeat it. Default: 1.")] = None,
    shape: Annotated[str, typer.Option(help=f"Of a model: {', '.join(SHAPES)}.")] = Settings.shape,
    policy: Annotated[str, typer.Option(help="As in msrnn perplexity.")] = Settings.policy,
    budget: Annotated[int, typer.Option(help="Multi-state size.")] = Settings.budget,
    positions: Annotated[str, typer.Option(help="As in msrnn perplexity.")] = Settings.positions,
    dtype: Annotated[str, typer.Option(help="Dtype of weights and states.")] = Settings.dtype,
    out: Annotated[pathlib.Path, typer.Option(help="JSON to write.")] = pathlib.Path("results/compiled.json"),
) -> None:
    check_out(out)
    given: dict[str, Any] = {"targets": target, "programs": program, "batches": batch, "layers": layers}
    given |= {"shape": shape, "policy": policy, "budget": budget, "positions": positions, "dtype": dtype}
    settings = settings_of({NAME: Settings()}, NAME, **given)
    for what, names, known in (("shape", [settings.shape], SHAPES), ("program", settings.programs, PROGRAMS)):
        for name in names:
            if name not in known:
                raise ValueError(f"{what} is {name!r}; it must be one of {', '.join(known)}")
    rows = run(settings, Console(stderr=True))
    write_result(out, NAME, settings, {"rows": rows})
    show(table(rows, settings))


if __name__ == "__main__":
    app()
