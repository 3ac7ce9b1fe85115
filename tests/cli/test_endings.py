"""How commands end where nobody reads what they write, and where XLA fails; and what their help says."""

import importlib
import io
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import pytest
import tiny
import typer
from toy import make_toy

from experiments import reproduce
from msrnn_jax.cli import launch
from msrnn_jax.cli.app import app
from msrnn_jax.cli.errors import CLOSED, in_words

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if "typer.Typer(" in path.read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return make_toy(tmp_path_factory.mktemp("models") / "toy", tiny.SHALLOW)


def closed_pipe() -> int:
    """The end to write to of a pipe whose other end is closed, as by `| head` when it has seen enough."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def ends_quietly(monkeypatch, program, arguments: list[str], words: str = "") -> None:
    """Runs a program here, and Python's last flush after it."""
    complaints = io.StringIO()
    with os.fdopen(closed_pipe(), "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        monkeypatch.setattr(sys, "stderr", complaints)
        monkeypatch.setattr(sys, "stdin", io.StringIO(words))
        try:
            with pytest.raises(SystemExit) as ended:
                program(arguments)
        finally:
            monkeypatch.undo()
        assert (ended.value.code, complaints.getvalue()) == (CLOSED, "")
        nobody.write("more")


WRITING = {
    "info": ["info", "TOY"],
    "info in JSON": ["info", "TOY", "--json"],
    "generate": ["generate", "TOY", "--prompt", "a b", "--budget", "4", "--max-new-tokens", "3"],
    "generate in JSON": ["generate", "TOY", "--prompt", "a b", "--budget", "4", "--max-new-tokens", "3", "--json"],
    "perplexity": ["perplexity", "TOY", "--text", "TEXT", "--policy", "tova", "--budget", "4", "--segment", "16"],
    "perplexity in JSON": ["perplexity", "TOY", "--text", "TEXT", "--policy", "tova", "--budget", "4", "--json"],
    "trace": ["trace", "TOY", "--prompt", "a b c", "--budget", "2"],
    "trace in JSON": ["trace", "TOY", "--prompt", "a b c", "--budget", "2", "--json"],
    "chat": ["chat", "TOY", "--budget", "8", "--max-new-tokens", "3"],
    "convert": ["convert", "--help"],
    "all": ["--help"],
    **{
        f"{command.callback.__name__} --help": [command.callback.__name__, "--help"]
        for command in app.registered_commands
    },
}


@pytest.mark.parametrize("name", tiny.few(WRITING, "info", "perplexity in JSON", "trace", "chat", "all"))
def test_a_command_ends_quietly_where_nobody_reads(name, toy, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("the quick brown fox")
    places = {"TOY": toy, "TEXT": str(tmp_path / "text.txt")}
    arguments = [places.get(argument, argument) for argument in WRITING[name]]
    ends_quietly(monkeypatch, app, arguments, "hello\n")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_ends_quietly_where_nobody_reads(name, monkeypatch):
    ends_quietly(monkeypatch, importlib.import_module(name).app, ["--help"])


@pytest.mark.parametrize("name", ["msrnn_jax.cli.app", *EXPERIMENTS])
def test_no_option_has_the_name_of_another(name):
    program = typer.main.get_command(importlib.import_module(name).app)
    for command in [program, *getattr(program, "commands", {}).values()]:
        names = [one for option in command.params for one in (*option.opts, *option.secondary_opts)]
        assert len(names) == len(set(names)), names


def test_help_tells_what_presets_have_and_fills_its_lines():
    command: Any = typer.main.get_command(importlib.import_module("experiments.needle.__main__").app)
    told = {option.name: option.help for option in command.params}
    assert told["draws"].endswith(" Default: 5; paper: 10.") and told["budget"].endswith(
        "128,256; paper: 64,128,256,512."
    )
    assert "Default" not in told["dtype"] and all("\n" not in part for part in command.help.split("\n\n"))


def test_a_mistake_is_one_whoever_reads_of_it(monkeypatch):
    with os.fdopen(closed_pipe(), "w") as nobody, os.fdopen(closed_pipe(), "w") as either:
        monkeypatch.setattr(sys, "stdout", nobody)
        monkeypatch.setattr(sys, "stderr", either)
        codes = []
        for arguments in (["info", "nowhere"], ["info", "--wrong"]):
            with pytest.raises(SystemExit) as ended:
                app(arguments)
            codes.append(ended.value.code)
        monkeypatch.undo()
    assert codes == [2, 2]


def test_what_starts_others_ends_as_they_do(capfd):
    nobody_reads = [sys.executable, "-c", f"import sys; sys.exit({CLOSED})"]
    assert launch.run(nobody_reads, [{}, {}]) == CLOSED and capfd.readouterr() == ("", "")
    with pytest.raises(BrokenPipeError):
        reproduce.execute(nobody_reads)


@pytest.mark.exhaustive
def test_a_process_ends_after_the_first_lines_that_were_read(toy, tmp_path):
    """By `| head -n 1`, in a process of its own, whose end it is."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog")
    command = [sys.executable, "-m", "msrnn_jax", "perplexity", toy, "--text", str(tmp_path / "text.txt"), "--json"]
    command += ["--policy", "random", "--policy", "window", "--budget", "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["policy"] == "random"
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", CLOSED)


@pytest.mark.parametrize("module", ["convert", tiny.more("experiments.report")])
def test_a_process_ends_quietly_where_nobody_reads(module):
    nobody = closed_pipe()
    command = [sys.executable, "-m", module, "--help"]
    ended = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(nobody)
    assert (ended.returncode, ended.stderr) == (CLOSED, "")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        # As XLA says it on a CPU, on a GPU and on a TPU.
        (
            "RESOURCE_EXHAUSTED: Out of memory allocating 17592186044416 bytes.",
            "this needs more memory than there is: R",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17592186044416 bytes.\nMore of it",
            "this needs more memory than there is: RESOURCE_EXHAUSTED: Out of memory while",
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.",
            "this needs more memory than there is: RESOURCE_EXHAUSTED: XLA:TPU",
        ),
        (
            "INTERNAL: CustomCall failed\nMore of it",
            "XLA failed: INTERNAL: CustomCall failed; if it does so again, rep",
        ),
        ("INVALID_ARGUMENT: out of memory bounds", "XLA failed: INVALID_ARGUMENT: out of memory bounds; if"),
        ("", "XLA failed: JaxRuntimeError; if"),
        (
            "INTERNAL: CpuCallback error calling callback: Traceback (most recent call last):\n"
            '  File "mine.py", line 4, in score\nValueError: no such thing\nmore',
            "a function that XLA called failed: ValueError: no such thing",
        ),
    ],
)
def test_what_xla_says_is_told_as_what_it_is(said, words):
    told = in_words(jax.errors.JaxRuntimeError(said))
    assert told is not None and told.startswith(words) and "\n" not in told


def test_a_function_that_xla_calls_may_fail():
    def fails(x):
        raise KeyError("no such thing")

    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.jit(lambda x: jax.pure_callback(fails, x, x))(jax.numpy.ones(3)).block_until_ready()
    assert in_words(caught.value) == "a function that XLA called failed: KeyError: 'no such thing'"
    assert in_words(RuntimeError("somebody else's")) is None
