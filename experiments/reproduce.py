"""Runs every experiment of the paper, one after the other, and reports on all of them.

python -m experiments.reproduce checkpoints/smollm2-135m --data path/to/data

The data folder has the folders pg19_test, squality, qasper and prompts, or some of them. Every experiment goes on where
it stopped, so this command does too. One that fails does not keep the others from running.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from experiments.common.console import say
from experiments.common.options import Checkpoint, Dtype, Preset
from experiments.common.study import read_record
from msrnn_jax.cli.errors import CLOSED, plain_errors
from msrnn_jax.cli.interrupts import ending_when_told
from msrnn_jax.cli.options import MeshText
from msrnn_jax.cli.usage import Command
from msrnn_jax.io.journal import Line
from msrnn_jax.recurrence.checks import check_dtype

PRESETS = ("small", "paper")
ROOT = pathlib.Path(__file__).parent.parent
PATIENCE = 5.0  # seconds that an interrupted experiment gets before it is killed


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One of those that are run.

    Attributes:
      data: folders of which it reads at least one, each by an own --data.
      has_presets: whether it takes --preset.
      beside: arguments by preset.
    """

    name: str
    data: tuple[str, ...] = ()
    has_presets: bool = True
    beside: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def result(self, out: pathlib.Path) -> pathlib.Path:
        return out / f"{self.name}.json{'l' if self.has_presets else ''}"


BOOKS = ("pg19_test",)
FULL_BATCH = 8  # rows of full attention, as in the paper's Table 1
FULL_STOPS_THERE = ("--full-batch", str(FULL_BATCH), "--dtype", "float32")
LARGEST = ("--section", "memory", "--largest")
EXPERIMENTS = (
    Experiment("language_modeling", BOOKS),
    Experiment("understanding", ("squality", "qasper")),
    Experiment("generation"),  # its prompts are one file of a folder, see `arguments_of`
    Experiment("retention", BOOKS),
    Experiment("needle", BOOKS),
    Experiment("extrapolation", BOOKS),
    Experiment("throughput", (), False, {"small": (*LARGEST, *FULL_STOPS_THERE), "paper": LARGEST}),
)
NAMES = tuple(one.name for one in EXPERIMENTS)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is run on what."""

    checkpoint: str
    data: pathlib.Path
    preset: str
    out: pathlib.Path
    dtype: str | None = None
    mesh: str | None = None


@dataclasses.dataclass(frozen=True)
class Ended:
    """How an experiment ended."""

    name: str
    said: str
    seconds: float
    is_fine: bool


def run(settings: Settings, names: Sequence[str], console: Console) -> list[Ended]:
    """Runs these experiments, those whose data is missing left out, and then the report."""
    ended = []
    for experiment in EXPERIMENTS:
        if experiment.name in names:
            ended.append(_run_one(settings, experiment, console))
            say(console, f"{ended[-1].name}: {ended[-1].said}, {spell_seconds(ended[-1].seconds)}")
    started = time.perf_counter()
    code = execute([*module("report"), str(settings.out), "--out", str(settings.out / "report")])
    ended.append(_ended("report", code, time.perf_counter() - started))
    return ended


def _run_one(settings: Settings, experiment: Experiment, console: Console) -> Ended:
    missing = lacks(settings.data, experiment)
    if missing:
        return Ended(experiment.name, missing, 0.0, False)
    if not experiment.has_presets and is_timed(settings, experiment.result(settings.out)):
        return Ended(
            experiment.name, f"there already; remove {experiment.result(settings.out)} to time again", 0.0, True
        )
    arguments = arguments_of(settings, experiment)
    say(console, f"{experiment.name}: {' '.join(arguments)}")
    started = time.perf_counter()
    code = execute([*module(experiment.name), *arguments])
    return _ended(experiment.name, code, time.perf_counter() - started)


def _ended(name: str, code: int, seconds: float) -> Ended:
    return Ended(name, "done" if code == 0 else f"failed with exit code {code}", seconds, code == 0)


def lacks(data: pathlib.Path, experiment: Experiment) -> str:
    """What an experiment needs of the data folder that is not there; nothing if it can run."""
    if not experiment.data or any((data / name).is_dir() for name in experiment.data):
        return ""
    return f"not run: {str(data)!r} has no folder {' or '.join(experiment.data)}"


def arguments_of(settings: Settings, experiment: Experiment) -> list[str]:
    """What an experiment is called with."""
    places = [settings.data / name for name in experiment.data if (settings.data / name).is_dir()]
    if experiment.name == "generation" and settings.preset == "small":
        places = sorted((settings.data / "prompts").glob("*.jsonl"))[:1]  # the paper has one instruction for all
    given = [settings.checkpoint, *(part for place in places for part in ("--data", str(place)))]
    if experiment.has_presets:
        given += ["--preset", settings.preset]
        for option in ("dtype", "mesh"):
            value = getattr(settings, option)
            given += [] if value is None else [f"--{option}", value]
    return [*given, *experiment.beside.get(settings.preset, ()), "--out", str(experiment.result(settings.out))]


def is_timed(settings: Settings, result: pathlib.Path) -> bool:
    """Whether the times are there already that would be taken: of this checkpoint and preset, and no other weights."""
    try:
        found = json.loads(result.read_text(encoding="utf-8"))
        asked, memory = found["settings"], found["settings"]["memory"]
        weights = dict(found["model_sha256"])
        is_whole = all(row["relative"]["each"] for row in found["memory"]["rows"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    fits = memory["full_batch"] == (FULL_BATCH if settings.preset == "small" else None)
    others = [header for path in result.parent.glob("*.jsonl") if (header := _latest(path)) is not None]
    same = all(weights.get(one["dtype"], one["model_sha256"]) == one["model_sha256"] for one in others)
    return asked["checkpoint"] == settings.checkpoint and fits and is_whole and same


def _latest(results: pathlib.Path) -> Line | None:
    """The latest run in a file of results, None where it is none."""
    try:
        return read_record(results, results.stem).header
    except ValueError:
        return None


def module(name: str) -> list[str]:
    """How an experiment is started."""
    return [sys.executable, "-m", f"experiments.{name}"]


def execute(command: Sequence[str]) -> int:
    """Runs a command to its end, and ends it with this process where that is interrupted."""
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), known)))}
    with subprocess.Popen(command, env=environment) as process:
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    if code == CLOSED:  # it writes where this process does
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return code


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C in a terminal reaches both processes; a signal to this one alone is passed on."""
    for seconds, send in ((0.5, None), (PATIENCE, process.terminate), (None, process.kill)):
        if send is not None:
            send()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def spell_seconds(seconds: float) -> str:
    """Such as `1 h 02 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def table(ended: Sequence[Ended]) -> Table:
    """What ran how long, and how it ended."""
    made = Table("experiment", "time", "")
    for one in ended:
        made.add_row(one.name, spell_seconds(one.seconds), one.said)
    return made


def check(settings: Settings, names: Sequence[str]) -> None:
    """Refuses, before any work, what could not be run.

    Raises:
      ValueError: for an unknown experiment, preset or dtype, and for a data folder that is none.
    """
    if settings.dtype is not None:
        check_dtype(settings.dtype)
    for name in names:
        if name not in NAMES:
            raise ValueError(f"only is {name!r}; it must be one of {', '.join(NAMES)}")
    if settings.preset not in PRESETS:
        raise ValueError(f"preset is {settings.preset!r}; it must be one of {', '.join(PRESETS)}")
    if not settings.data.is_dir():
        raise ValueError(f"data is {str(settings.data)!r}, which is no folder")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    data: Annotated[pathlib.Path, typer.Option(help="Folder with pg19_test, squality, qasper and prompts.")],
    preset: Preset = "small",
    only: Annotated[list[str] | None, typer.Option(help=f"Repeat it. Default: all, {', '.join(NAMES)}.")] = None,
    out: Annotated[pathlib.Path, typer.Option(help="Folder of results.")] = pathlib.Path("results"),
    dtype: Dtype = None,
    mesh: MeshText = None,
) -> None:
    settings, names = Settings(checkpoint, data, preset, out, dtype, mesh), only or NAMES
    check(settings, names)
    with ending_when_told():
        ended = run(settings, names, Console(stderr=True))
    Console().print(table(ended))
    failed = [one for one in ended if not one.is_fine]
    if failed:
        raise ValueError("; ".join(f"{one.name}: {one.said}" for one in failed))


if __name__ == "__main__":
    app()
