"""One measurement by two processes, on loopback: the results of one, and a killed process loses nothing."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from toy import make_toy
from typer.testing import CliRunner

from msrnn_jax.cli.app import app
from msrnn_jax.devices import processes
from msrnn_jax.io.environment import CLUSTER, COORDINATOR

TWO = ("launch", "--processes", "2", "--")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A toy, and a folder of documents of different lengths."""
    folder = tmp_path_factory.mktemp("hosts")
    make_toy(folder / "toy")
    (folder / "books").mkdir()
    dice = np.random.default_rng(0)
    for number, length in enumerate((190, 61, 120)):
        (folder / "books" / f"{number}.txt").write_text("".join(dice.choice(list("abcdefgh "), length)))
    return folder


def arguments(folder: pathlib.Path, *more: str) -> list[str]:
    given = ["perplexity", str(folder / "toy"), "--text", str(folder / "books"), "--segment", "40", "--batch", "2"]
    return [*given, "--policy", "full", "--policy", "tova", "--budget", "4", "--budget", "9", "--json", *more]


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def start(*given: str, **options) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **options.pop("env", {})}
    return subprocess.Popen([sys.executable, "-m", "msrnn_jax", *given], **pipes, env=environment, **options)


def results(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def same(found: list[dict], wanted: list[dict]) -> None:
    """Equal but for what sums in another order change."""
    for ours, theirs in zip(found, wanted, strict=True):
        for name in ("policy", "budget", "tokens", "documents", "text_sha256", "model_sha256"):
            assert ours[name] == theirs[name]
        assert ours["nll"] == pytest.approx(theirs["nll"], rel=1e-5)
        assert ours["stderr"] == pytest.approx(theirs["stderr"], rel=1e-3)


@pytest.fixture(scope="module")
def wanted(folder: pathlib.Path) -> list[dict]:
    """What one process finds."""
    result = CliRunner().invoke(app, arguments(folder))
    assert result.exit_code == 0, result.output
    return results(result.stdout)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mesh", ["data=2", "model=2"])
def test_two_processes_find_what_one_does(folder: pathlib.Path, wanted: list[dict], mesh: str) -> None:
    out = folder / f"{mesh}.jsonl"
    output, said = start(*TWO, *arguments(folder, "--mesh", mesh, "--out", str(out))).communicate(timeout=300)
    same(results(output), wanted)
    assert said == ""
    lines = results(out.read_text())
    assert len(lines) == 1 + 3 * 10 and len({json.dumps(line, sort_keys=True) for line in lines}) == len(lines)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", ["0", "1"])
def test_a_killed_process_is_named_and_the_same_command_goes_on(
    folder: pathlib.Path, wanted: list[dict], number: str
) -> None:
    """Process 0 writes the results, and is where the others meet."""
    out = folder / f"killed_{number}.jsonl"
    given = arguments(folder, "--mesh", "data=2", "--out", str(out))
    running = start(*TWO, *given)
    while not (out.exists() and out.read_text().count("\n") >= 4):
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    os.kill(_process(running.pid, number), signal.SIGKILL)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGKILL
    assert f"process {number} of 2 was killed by SIGKILL" in said
    assert "goes on from the results that are written" in said
    assert "Traceback" not in said and "memory" not in said
    before = out.read_text()
    output, _ = start(*TWO, *given).communicate(timeout=300)
    same(results(output), wanted)
    lines = results(out.read_text())
    assert out.read_text().startswith(before[: before.rindex("\n") + 1])
    segments = [line for line in lines if line["kind"] == "msrnn perplexity segment"]
    assert len(segments) == 3 * 10


def _process(launcher: int, number: str) -> int:
    """The process with that number that a launcher has started."""
    for path in pathlib.Path("/proc").iterdir():
        try:
            parent = (path / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if parent == str(launcher) and f"MSRNN_PROCESS={number}\0" in (path / "environ").read_text():
                return int(path.name)
        except (OSError, IndexError):
            continue
    raise AssertionError("no such process")


@pytest.mark.exhaustive
def test_hosts_started_by_hand_find_each_other_and_see_when_one_is_gone(
    folder: pathlib.Path, wanted: list[dict]
) -> None:
    launch = ("launch", "--processes", "2", "--coordinator", f"127.0.0.1:{_free_port()}", "--process")
    given = arguments(folder, "--mesh", "data=2")
    running = [start(*launch, str(number), "--", *given) for number in range(2)]
    (output, said), (other, _) = (process.communicate(timeout=300) for process in running)
    same(results(output), wanted)
    assert other == "" and [process.returncode for process in running] == [0, 0], said
    second = start(*launch, "1", "--", *given)
    first = _started(folder, "by_hand.jsonl", *launch, "0", "--")
    os.kill(_process(second.pid, "1"), signal.SIGKILL)
    _, said = first.communicate(timeout=30)
    assert first.returncode == 3 and "another process is gone" in said and "goes on from the results" in said
    _, said = second.communicate(timeout=30)
    assert "process 1 of 2 was killed by SIGKILL" in said


def test_what_is_wrong_is_said_once_and_all_processes_end(folder: pathlib.Path) -> None:
    running = start(*TWO, *arguments(folder, "--mesh", "data=1"))
    _, said = running.communicate(timeout=120)
    assert running.returncode == 2
    assert said.strip() == "error: mesh is of 1 devices; it must take all 2 of the 2 processes"


@pytest.mark.exhaustive
def test_ending_the_launcher_ends_its_processes(folder: pathlib.Path) -> None:
    running = _started(folder, "ended.jsonl", *TWO)
    ours = [_process(running.pid, number) for number in "01"]
    start_of_end = time.monotonic()
    running.terminate()
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - start_of_end < 4.5  # they listen to SIGTERM, and are not killed after 5 s
    assert not any(pathlib.Path(f"/proc/{process}").exists() for process in ours)


def _started(folder: pathlib.Path, name: str, *launch: str) -> subprocess.Popen[str]:
    """A measurement that has written some lines."""
    out = folder / name
    running = start(*launch, *arguments(folder, "--mesh", "data=2", "--out", str(out)))
    while not (out.exists() and out.read_text().count("\n") >= 3):
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    return running


def test_the_reason_is_shown_and_not_what_it_leads_to(folder: pathlib.Path) -> None:
    """Process 1 alone lacks its checkpoint; process 0 waits for it, or finds it gone."""
    code = "import sys, os, runpy; sys.argv[2] += '-' * int(os.environ['MSRNN_PROCESS']); " + (
        "runpy.run_module('msrnn_jax', run_name='__main__', alter_sys=True)"
    )
    shared = {"MSRNN_COORDINATOR": f"127.0.0.1:{_free_port()}", "MSRNN_PROCESSES": "2"}
    settings = [{**shared, "MSRNN_PROCESS": str(number)} for number in range(2)]
    program = "from msrnn_jax.cli.launch import run; import json, sys; sys.exit(run(*json.loads(sys.argv[1])))"
    command = [sys.executable, "-c", code, *arguments(folder, "--mesh", "data=2")]
    ended = subprocess.run(
        [sys.executable, "-c", program, json.dumps([command, settings])], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert "toy-' does not exist" in ended.stderr and "process 1 of 2 ended with exit code 2" in ended.stderr
    assert "cannot be read" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--", "generate", "x"], "command is 'generate'; only perplexity can be shared"),
        (["--processes", "0", "--", "perplexity", "x"], "processes is 0"),
        (["--processes", "2", "--process", "1", "--", "perplexity", "x"], "--coordinator HOST:PORT must be given"),
        (["--processes", "2", "--process", "2", "--coordinator", "a:1", "--", "perplexity", "x"], "from 0 to 1"),
        (["--cluster", "--processes", "2", "--", "perplexity", "x"], "give --cluster alone"),
        (["--coordinator", "a:b", "--", "perplexity", "x"], "coordinator is 'a:b'; it must be HOST:PORT"),
        (["--coordinator", "a:99999", "--", "perplexity", "x"], "coordinator is 'a:99999'; it must be HOST:PORT"),
        (["--", "perplexity", "x", "--text", "-"], "several processes cannot share standard input"),
    ],
)
def test_refuses_what_cannot_be_launched(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["launch", *options])
    assert result.exit_code == 2 and message in result.output


def test_a_cluster_that_does_not_say_enough_is_named(monkeypatch):
    """JAX looks into variables that a cluster should have set."""

    def initialize():
        raise KeyError("SLURM_NTASKS")

    monkeypatch.setenv(COORDINATOR, CLUSTER)
    monkeypatch.setattr(processes, "_keep_stdout", lambda: None)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="the other processes cannot be joined .*SLURM_NTASKS"):
        processes.join_processes()
