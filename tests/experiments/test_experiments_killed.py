"""An experiment that is killed, or whose disk is full, and started again ends in the lines of an undisturbed run."""

import importlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest
from click.testing import Result
from devices import QUICK
from full_disk import room_for
from typer.testing import CliRunner

from msrnn_jax.io.journal import Journal

# Each has a test module that offers `small_command`, arguments for a run of some seconds on data that it makes.
EXPERIMENTS = {
    "language_modeling": "test_language_modeling",
    "understanding": "test_understanding",
    "generation": "test_generation_experiment",
    "retention": "test_retention",
    "extrapolation": "test_extrapolation",
    "needle": "test_needle",
}
# Runs a command that is killed in the middle of writing: SIGKILL lets nobody clear up.
KILLED = """
import os, runpy, signal, sys
from msrnn_jax.io.journal import Journal
module, write, part, *sys.argv[1:] = sys.argv[1:]
append, left = Journal.append, int(write)

def append_or_die(self, lines):
    global left
    left -= 1
    if left:
        return append(self, lines)
    before = self.path.stat().st_size if self.path.exists() else 0
    append(self, lines)
    size = before + int(float(part) * (self.path.stat().st_size - before))
    os.truncate(self.path, size)
    os.kill(os.getpid(), signal.SIGKILL)

Journal.append = append_or_die
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_that_was_killed_or_had_no_room_ends_in_the_same_lines(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = importlib.import_module(EXPERIMENTS[name]).small_command(tmp_path)
    undisturbed, killed, full = (tmp_path / f"{what}.jsonl" for what in ("undisturbed", "killed", "full"))
    writes = []
    with monkeypatch.context() as watching:
        append = Journal.append
        watching.setattr(Journal, "append", lambda self, lines: (writes.append(len(lines)), append(self, lines)))
        run(name, [*arguments, "--out", str(undisturbed)])
    wanted = results(undisturbed)
    dice = random.Random(name)
    write = dice.randrange(2, len(writes) + 1)  # the first says what is asked
    kill(name, [*arguments, "--out", str(killed)], write, dice.random())
    assert len(results(killed)) < len(wanted)
    run(name, [*arguments, "--out", str(killed)])
    assert results(killed) == wanted
    with room_for(int(dice.uniform(0.2, 0.99) * undisturbed.stat().st_size)):
        refused = invoke(name, [*arguments, "--out", str(full)])
    assert refused.exit_code == 2 and refused.stderr.splitlines()[-1].startswith("error: "), refused.output
    assert str(full) in refused.stderr and len(results(full)) < len(wanted)
    run(name, [*arguments, "--out", str(full)])
    assert results(full) == wanted


def run(name: str, arguments: list[str]) -> None:
    """Runs the command in this process."""
    result = invoke(name, arguments)
    assert result.exit_code == 0, result.output


def invoke(name: str, arguments: list[str]) -> Result:
    """The same, whatever comes of it."""
    return CliRunner().invoke(importlib.import_module(f"experiments.{name}.__main__").app, arguments)


def kill(name: str, arguments: list[str], write: int, part: float) -> None:
    """Runs the command in a process that is killed when a part of what it writes at one time is on disk."""
    command = [sys.executable, "-c", KILLED, f"experiments.{name}", str(write), str(part), *arguments]
    environment = {**os.environ, **QUICK}  # as in this process: its numbers must be those of this one
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def results(out: pathlib.Path) -> list[dict]:
    """What was found, whole lines only, without how long it took."""
    *whole, _ = out.read_text().split("\n")
    lines = [json.loads(line) for line in whole]
    return [{**line, "seconds": 0} for line in lines if line["kind"].endswith(" result")]
