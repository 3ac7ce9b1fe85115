"""One command for every experiment: what it calls, what it says of what failed, and how it stops."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from experiments import reproduce
from experiments.reproduce import EXPERIMENTS, NAMES, Settings, app, arguments_of, is_timed, spell_seconds

ROOT = pathlib.Path(__file__).parents[2]
STAND_IN = """
import json, os, pathlib, sys, time
name, out = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
folder = out if name == "report" else out.parent
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "calls", "a") as calls:
    calls.write(json.dumps([os.getpid(), *sys.argv[1:]]) + "\\n")
time.sleep(60 * (name == os.environ.get("WAITS")))
sys.exit(3 * (name == os.environ.get("FAILS")))
"""


@pytest.fixture
def data(tmp_path) -> pathlib.Path:
    for name in ("pg19_test", "squality", "qasper", "prompts"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for name in ("long.jsonl", "short.jsonl"):
        (tmp_path / "data" / "prompts" / name).touch()
    return tmp_path / "data"


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> pathlib.Path:
    """A program that is called in place of every experiment and writes down how."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(reproduce, "module", lambda name: [sys.executable, str(script), name])
    return script


def call(data: pathlib.Path, *arguments: str):
    out = data.parent / "out"
    command = ["ckpt", "--data", str(data), "--out", str(out), *arguments]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def calls(data: pathlib.Path) -> dict[str, list[str]]:
    found = [json.loads(line) for line in (data.parent / "out" / "calls").read_text().splitlines()]
    report = data.parent / "out" / "report" / "calls"
    found += [json.loads(line) for line in report.read_text().splitlines()]
    return {name: arguments for _, name, *arguments in found}


def test_every_experiment_runs_with_its_data_and_the_report_last(data, stand_in):
    result = call(data)
    assert result.exit_code == 0, result.output
    found = calls(data)
    assert list(found) == [*NAMES, "report"]
    out, books = data.parent / "out", ["--data", str(data / "pg19_test")]
    for name in ("language_modeling", "retention", "needle", "extrapolation"):
        assert found[name] == ["ckpt", *books, "--preset", "small", "--out", str(out / f"{name}.jsonl")]
    both = ["--data", str(data / "squality"), "--data", str(data / "qasper")]
    assert found["understanding"][:5] == ["ckpt", *both]
    assert found["generation"][:3] == ["ckpt", "--data", str(data / "prompts" / "long.jsonl")]
    assert found["throughput"][-2:] == ["--out", str(out / "throughput.json")] and "--preset" not in found["throughput"]
    assert found["report"] == [str(out), "--out", str(out / "report")]
    for name in (*NAMES, "report"):
        assert name in result.stdout


def test_one_that_fails_keeps_none_from_running(data, stand_in, monkeypatch):
    monkeypatch.setenv("FAILS", "retention")
    result = call(data)
    assert result.exit_code == 2
    assert list(calls(data)) == [*NAMES, "report"]
    assert result.stderr.splitlines()[-1] == "error: retention: failed with exit code 3"


def test_what_has_no_data_is_named_and_the_others_run(data, stand_in):
    (data / "pg19_test").rmdir()
    (data / "qasper").rmdir()
    result = call(data)
    assert result.exit_code == 2
    assert list(calls(data)) == ["understanding", "generation", "throughput", "report"]
    last = result.stderr.splitlines()[-1]
    for name in ("language_modeling", "retention", "needle", "extrapolation"):
        assert f"{name}: not run: {str(data)!r} has no folder pg19_test" in last
    assert str(data / "qasper") not in calls(data)["understanding"]


def test_only_some(data, stand_in):
    options = ["--only", "needle", "--only", "throughput", "--preset", "paper", "--dtype", "bfloat16"]
    options += ["--mesh", "data=2"]
    result = call(data, *options)
    assert result.exit_code == 0, result.output
    found = calls(data)
    assert list(found) == ["needle", "throughput", "report"]
    assert found["needle"][3:9] == ["--preset", "paper", "--dtype", "bfloat16", "--mesh", "data=2"]
    assert not {"--dtype", "--mesh"} & set(found["throughput"])  # which times several dtypes, on one device


def test_the_papers_stories_have_one_instruction(data):
    generation = next(one for one in EXPERIMENTS if one.name == "generation")
    settings = Settings("ckpt", data, "paper", data.parent)
    assert "--data" not in arguments_of(settings, generation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "other"), "only is 'other'; it must be one of language_modeling"),
        (("--preset", "huge"), "preset is 'huge'; it must be one of small, paper"),
        (("--data", "absent"), "data is 'absent', which is no folder"),
        (("--dtype", "int8"), "int8"),
    ],
)
def test_wrong_options_are_refused_before_any_work(data, stand_in, arguments, message):
    result = call(data, *arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert not (data.parent / "out").exists()


def test_times_of_the_same_weights_are_not_taken_again(tmp_path):
    path, asked = tmp_path / "throughput.json", Settings("ckpt", tmp_path, "small", tmp_path)
    assert not is_timed(asked, path)
    path.write_text("{")
    assert not is_timed(asked, path)
    row = {"relative": {"each": [1.0]}}
    found = {"settings": {"checkpoint": "ckpt", "memory": {"full_batch": 8}}, "memory": {"rows": [row]}}
    path.write_text(json.dumps({**found, "model_sha256": {"float32": "a" * 16}}))
    assert is_timed(asked, path), "no other result says otherwise"
    others = tmp_path / "needle.jsonl"
    header = {"kind": "needle run", "experiment": "needle", "dtype": "float32", "environment": "e", "planned": []}
    header |= {"config_sha256": "c", "settings": {}}
    others.write_text(json.dumps({**header, "model_sha256": "a" * 16}) + '\n{"kind": "nee')
    assert is_timed(asked, path)
    others.write_text(json.dumps({**header, "model_sha256": "b" * 16}) + "\n")
    assert not is_timed(asked, path), "other weights"
    others.write_text(json.dumps({**header, "model_sha256": "b" * 16, "dtype": "bfloat16"}) + "\n")
    assert is_timed(asked, path), "weights of another dtype have another hash"
    assert not is_timed(dataclasses.replace(asked, preset="paper"), path)
    assert not is_timed(dataclasses.replace(asked, checkpoint="other"), path)
    row["relative"] = None
    path.write_text(json.dumps({**found, "model_sha256": {"float32": "a" * 16}}))
    assert not is_timed(asked, path), "it was not run at the largest batch"


@pytest.mark.exhaustive
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_at_once(data, stand_in, stop, code):
    """Sent to the command alone: what it runs is stopped with it, and nothing else is started."""
    driver = stand_in.with_name("driver.py")
    driver.write_text(
        "import sys\nfrom experiments import reproduce\n"
        f"reproduce.module = lambda name: [sys.executable, {str(stand_in)!r}, name]\nreproduce.app()\n"
    )
    command = [sys.executable, str(driver), "ckpt", "--data", str(data), "--out", str(data.parent / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WAITS": "understanding"}
    log = data.parent / "out" / "calls"
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (log.exists() and "understanding" in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(stop)
        _, error = process.communicate(timeout=30)
    assert process.returncode == code, error
    assert b"Traceback" not in error
    started = [json.loads(line) for line in log.read_text().splitlines()]
    assert [name for _, name, *_ in started] == ["language_modeling", "understanding"]
    with pytest.raises(ProcessLookupError):
        os.kill(started[-1][0], 0)


@pytest.mark.exhaustive
def test_the_first_line_of_a_real_failure_reaches_the_user(data, capfd, monkeypatch):
    """Without any stand-in: a checkpoint that is none."""
    assert reproduce.execute([*reproduce.module("report"), str(data / "absent")]) == 2
    assert capfd.readouterr().err == f"error: results is {str(data / 'absent')!r}, which is no folder\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min")])
def test_times_for_reading(seconds, text):
    assert spell_seconds(seconds) == text
