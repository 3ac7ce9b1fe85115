"""The commands as a user types them, on a small model and on a real one."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from msrnn_jax.cli.app import app

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return make_toy(tmp_path_factory.mktemp("models") / "toy", tiny.SHALLOW)


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def test_generate_continues_every_prompt(toy):
    arguments = ["generate", toy, "--prompt", "hello", "--prompt", "a b", "--budget", "4", "--max-new-tokens", "6"]
    rows = [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]
    config, params = ms.load(toy)
    tokenizer = ms.load_tokenizer(toy)
    for row, prompt in zip(rows, ["hello", "a b"], strict=True):
        ids = tokenizer.encode(prompt)
        assert len(ids) == len(prompt)
        tokens, lengths, _ = ms.generate(
            config, ms.TOVA(), params, tiny.np.asarray([ids]), budget=4, max_new_tokens=6, stop=(3,)
        )
        assert row["tokens"] == tokens[0, : lengths[0]].tolist()
        assert row["finish"] == ("stop" if row["tokens"][-1] == 3 else "length")
        assert row["text"] == tokenizer.decode(row["tokens"][: -1 if row["finish"] == "stop" else None])
        assert (row["prompt"], row["policy"], row["budget"], row["mode"]) == (prompt, "tova", 4, "stepwise")
    plain = run(*arguments).stdout
    assert plain == "".join(row["prompt"] + row["text"] + "\n" for row in rows)
    drawn = [run(*arguments, "--json", "--temperature", "2", "--seed", seed).stdout for seed in "112"]
    assert drawn[0] == drawn[1] != drawn[2]


def test_one_policy_reads_the_prompt_and_another_goes_on(toy):
    arguments = ["generate", toy, "--prompt", "hello again", "--budget", "4", "--max-new-tokens", "6", "--json"]
    reading = ["--prompt-policy", "knorm:scope=layer", "--mode", "oneshot"]
    (row,) = map(json.loads, run(*arguments, *reading).stdout.splitlines())
    config, params = ms.load(toy)
    given = [ms.load_tokenizer(toy).encode("hello again")], 4, 6
    named = dict(zip(("prompts", "budget", "max_new_tokens"), given, strict=True))
    reader = ms.parse_policy("knorm:scope=layer")
    expected = ms.generate(config, ms.TOVA(), params, **named, mode="oneshot", prompt_policy=reader, stop=(3,))
    assert row["prompt_policy"] == "knorm:scope=layer" and row["tokens"] == expected[0][0, : expected[1][0]].tolist()
    other = ms.generate(config, ms.TOVA(), params, **named, mode="oneshot", stop=(3,))
    assert row["tokens"] != other[0][0, : other[1][0]].tolist()


def test_a_prompt_may_come_from_a_file_or_standard_input(toy, tmp_path):
    """Without the end of its last line, which no prompt is to be continued after."""
    (tmp_path / "prompt.txt").write_text("hello\n")
    arguments = ["generate", toy, "--budget", "4", "--max-new-tokens", "3"]
    expected = run(*arguments, "--prompt", "hello").stdout
    assert run(*arguments, "--prompt-file", str(tmp_path / "prompt.txt")).stdout == expected
    piped = CliRunner().invoke(app, [*arguments, "--prompt-file", "-"], input="hello\n", catch_exceptions=False)
    assert piped.stdout == expected


def test_perplexity_prints_one_object_for_each_pair(toy, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 3)
    arguments = ["perplexity", toy, "--text", str(text), "--policy", "tova", "--policy", "window:sinks=1"]
    arguments += ["--policy", "full", "--budget", "4,8", "--segment", "32"]
    rows = [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]
    pairs = [(row["policy"], row["budget"]) for row in rows]
    assert pairs == [("tova", 4), ("tova", 8), ("window:sinks=1", 4), ("window:sinks=1", 8), ("full", 31)]
    for row in rows:
        assert row["tokens"] == 135 - 5 and row["segments"] == 5 and row["segment"] == 32
        assert row["perplexity"] > 1 and row["stderr"] > 0
        assert {"text_sha256", "model_sha256", "dtype", "versions", "python", "device"} <= set(row)
    assert len({row["model_sha256"] for row in rows}) == 1
    twice = [*arguments[:-4], "--budget", "4", "--budget", "8", *arguments[-2:]]
    table = run(*twice).stdout
    assert all(f"{row['perplexity']:.2f}" in table for row in rows)


def test_of_many_files_that_cannot_be_read_a_few_are_named(toy, tmp_path):
    (tmp_path / "good.txt").write_text("a b c d")
    for number in range(7):
        (tmp_path / f"bad{number}.txt").write_bytes(b"\xff")
    options = ("--policy", "window", "--budget", "2", "--segment", "8")
    shown = run("perplexity", toy, "--text", str(tmp_path), *options).stderr
    assert shown.count("note: left out: ") == 5 and "note: left out, too: 2 more that cannot be read" in shown


def test_a_row_with_half_a_surrogate_pair_is_left_out(toy, tmp_path):
    """A whole pair is a character like others."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a b \\ud83d\\ude00"}\n{"text": "a \\ud800"}\n')
    shown = run("perplexity", toy, "--text", str(tmp_path / "rows.jsonl"), "--policy", "window", "--budget", "2")
    assert "line 2 holds '\\ud800', half of a surrogate pair" in shown.stderr and "documents: 1" in shown.stdout


def test_a_perplexity_that_is_no_number_is_said_so(toy, tmp_path):
    broken, text = tmp_path / "broken", tmp_path / "text.txt"
    config, params = ms.load(toy)
    files = {path.name: path.read_text() for path in pathlib.Path(toy).iterdir() if path.is_file()}
    del files["config.json"]
    ms.save(broken, config, params.replace(final_norm=params.final_norm * tiny.np.nan), files=files)
    text.write_text("the quick brown fox")
    arguments = ["perplexity", str(broken), "--text", str(text), "--budget", "4", "--segment", "16"]
    arguments += ["--policy", "tova", "--out", str(tmp_path / "result.jsonl"), "--plot", str(tmp_path / "plot.png")]
    printed = run(*arguments, code=2)
    assert " - " in printed.stdout and "error: every segment came to no number (nan, inf)" in printed.stderr
    assert json.loads(run(*arguments, "--json", code=2).stdout)["perplexity"] is None
    assert json.loads((tmp_path / "result.jsonl").read_text().splitlines()[1])["nats"] is None


OWN = """
from flax import struct
from msrnn_jax import Policy

limit = 3


class Mine(Policy):
    alpha: float = struct.field(pytree_node=False, default=0.5)

    def __post_init__(self):
        if self.alpha < 0:
            raise ValueError(f"Mine: alpha is {self.alpha}; it must be at least 0")

    def score(self, layer, t):
        return layer.positions


class Broken(Mine):
    def score(self, layer, t):
        return layer.positions[0]
"""


@pytest.mark.exhaustive
def test_the_installed_script_finds_modules_of_the_current_folder(toy, tmp_path):
    """Python puts the folder of a script on its path, not the one it is started in."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "msrnn").write_text("from msrnn_jax.__main__ import main\n\nmain()\n")
    (tmp_path / "policies_of_mine.py").write_text(OWN)
    command = [sys.executable, "bin/msrnn", "generate", toy, "--prompt", "a b c", "--budget", "3", "--json"]
    command += ["--max-new-tokens", "3", "--policy", "policies_of_mine:Mine:alpha=0.25"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    assert row["policy"] == "policies_of_mine:Mine:alpha=0.25"
    window = run(
        "generate", toy, "--prompt", "a b c", "--budget", "3", "--json", "--max-new-tokens", "3", "--policy", "window"
    )
    assert row["tokens"] == json.loads(window.stdout)["tokens"]  # which scores alike


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "nowhere", "--prompt", "a"], "checkpoint 'nowhere' does not exist"),
        (["generate", "TOY"], "--prompt is missing; give at least one, or --prompt-file"),
        (["generate", "TOY", "--prompt", ""], "prompt '' is empty; it must have at least one token"),
        (["generate", "TOY", "--prompt", "a", "--budget", "0"], "budget is 0; it must be a whole number"),
        (["generate", "TOY", "--prompt", "a", "--policy", "lru"], "policy 'lru' is unknown; it must be one of full"),
        (["generate", "TOY", "--prompt", "a", "--policy", "full", "--budget", "4"], "full forgets nothing and must"),
        (["generate", "TOY", "--prompt", "a", "--temperature", "-1"], "temperature is -1.0; it must be at least 0"),
        (
            ["generate", "TOY", "--prompt", "a", "--temperature", "1e-39"],
            "temperature is 1e-39; it must be a number",
        ),
        (
            ["generate", "TOY", "--prompt", "a", "--seed", "4294967296"],
            "--seed is '4294967296': input should be less",
        ),
        (["generate", "TOY", "--prompt", "\udcff"], "which is no character"),
        (["generate", "TOY", "--prompt", "a", "--budget", "2147483646"], "error: this needs more memory than there is"),
        (
            ["generate", "TOY", "--prompt", "a", "--max-new-tokens", "4000000000"],
            "max_new_tokens is 4000000000; it must",
        ),
        (["generate", "TOY", "--prompt", "a", "--policy", "msrnn_jax:Policy"], "it does not define score(layer, t)"),
        (["generate", "TOY", "--prompt", "a", "--policy", "FOLDER/none.py:Mine"], "none.py' does not exist"),
        (
            ["generate", "TOY", "--prompt", "a", "--policy", "FOLDER/raises.py:Mine"],
            "raises.py' does not run: RuntimeError: first line",
        ),
        (["generate", "TOY", "--prompt", "a", "--policy", "FOLDER/own.py"], "own.py' names no class; it must be "),
        (["generate", "TOY", "--prompt", "a", "--policy", "FOLDER/own.py:Yours"], "'Yours' is not a Policy in "),
        (["generate", "TOY", "--prompt", "a", "--policy", "FOLDER/own.py:limit"], "'limit' is not a Policy in "),
        (
            ["generate", "TOY", "--prompt", "a", "--policy", "FOLDER/own.py:Mine:beta=1"],
            "option 'beta=1' is unknown; it must be one of scope=, sinks=, recent=, every=, prompt=, adaptive=, "
            "pyramid=, alpha=",
        ),
        (
            ["generate", "TOY", "--prompt", "a", "--policy", "FOLDER/own.py:Mine:alpha=much"],
            "alpha is 'much'; it must be a number",
        ),
        (
            ["generate", "TOY", "--prompt", "a", "--policy", "FOLDER/own.py:Mine:alpha=1,alpha=2"],
            "option 'alpha' is given twice",
        ),
        (
            ["generate", "TOY", "--prompt", "a", "--policy", "FOLDER/own.py:Mine:alpha=-1"],
            "Mine: alpha is -1.0; it must be at least 0",
        ),
        (
            ["generate", "TOY", "--prompt", "a", "--policy", "FOLDER/own.py:Broken"],
            "own.py:Broken: score has shape (8,); it must be (1, 8), [#K, S]",
        ),
        (["convert", "TOY", "EMPTY/x"], "cannot be made: "),
        (["generate", "TOY", "--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens is 0; it must be"),
        (["generate", "TOY", "--prompt", "a", "--mode", "both"], "mode is 'both'; it must be one of"),
        (["generate", "TOY", "--prompt", "a", "--dtype", "int8"], "dtype is 'int8'; it must be one of"),
        (["generate", "TOY", "--chat", "--prompt", "x"], "chat template: no x"),
        (["perplexity", "TOY", "--text", "no.txt"], "text file 'no.txt' does not exist"),
        (["perplexity", "TOY", "--text", "DEVICE"], "is not a file"),
        (["perplexity", "TOY", "--text", "NOTHING"], "has no .txt or .jsonl file in it"),
        (["perplexity", "TOY", "--text", "ROWS"], "rows.jsonl', line 1 has no field 'text'; its fields are 'body'"),
        (["perplexity", "TOY", "--text", "ROWS", "--field", "body"], "every document has fewer than 2 tokens"),
        (["perplexity", "TOY", "--text", "TEXT", "--batch", "many"], "batch is many; it must be a whole number of"),
        (["perplexity", "TOY", "--text", "TEXT", "--out", "out.json"], "out is 'out.json'; it must end in .jsonl"),
        (["perplexity", "TOY", "--text", "TEXT", "--out", "EMPTY/x.jsonl"], "which cannot be written: Not a dir"),
        (["perplexity", "TOY", "--text", "TEXT", "--plot", "EMPTY/x.png"], "which cannot be written: Not a dir"),
        (["perplexity", "TOY", "--text", "TEXT", "--plot", "x.pdf"], "plot is 'x.pdf'; it must end in .png"),
        (["perplexity", "TOY", "--text", "TEXT", "--out", "ROWS"], "whose line 1 is no "),
        (["perplexity", "TOY", "--text", "TEXT", "--policy", "window", "--policy", "lru"], "policy 'lru' is unknown"),
        (["perplexity", "TOY", "--text", "EMPTY"], "empty.txt' is empty"),
        (["perplexity", "TOY", "--text", "BINARY"], "is not UTF-8: invalid start byte at byte 0"),
        (["perplexity", "TOY", "--segment", "1"], "segment size is 1; it must be at least 2"),
        (["perplexity", "TOY", "--segments", "-1"], "segments is -1; it must be a whole number of at least 0"),
        (
            ["perplexity", "TOY", "--text", "TEXT", "--batch", "0"],
            "batch is 0; it must be a whole number of at least 1",
        ),
        (["perplexity", "TOY", "--text", "TEXT", "--budget", "-5"], "budget is -5; it must be a whole number"),
        (["perplexity", "TOY", "--budget", "4,x"], "--budget is '4,x': it must be a whole number, or several with"),
        (["perplexity", "TOY", "--text", "TEXT", "--bos-every-segment"], "but the tokenizer has no BOS token"),
        (["info", "TOY", "--budget", "4,"], "--budget is '4,': it must be a whole number, or several with commas"),
        (["perplexity", "TOY", "--text", "TEXT", "--policy", "tova:sinks=9", "--budget", "4"], "protects 9 sinks"),
        (
            ["perplexity", "TOY", "--text", "LONG", "--policy", "tova", "--policy", "window:sinks=9", "--budget", "4"],
            "budget is 4, but window:sinks=9 protects 9 sinks",  # before tova is measured
        ),
        (["convert", "nowhere", "out"], "nowhere does not exist; the source must be"),
        (["trace", "nowhere", "--prompt", "a"], "checkpoint 'nowhere' does not exist"),
        (["trace", "TOY"], "give either --prompt or --text"),
        (["trace", "TOY", "--prompt", "a", "--text", "TEXT"], "give either --prompt or --text, not both"),
        (["trace", "TOY", "--prompt", ""], "prompt '' is empty; it must have at least one token"),
        (["trace", "TOY", "--text", "EMPTY"], "empty.txt' is empty"),
        (["trace", "TOY", "--prompt", "a", "--policy", "lru"], "policy 'lru' is unknown; it must be one of full"),
        (["trace", "TOY", "--prompt", "a", "--budget", "0"], "budget is 0; it must be a whole number"),
        (["trace", "TOY", "--prompt", "a b c", "--policy", "full", "--budget", "4"], "full forgets nothing and must"),
        (["trace", "TOY", "--prompt", "a", "--layer", "2"], "--layer is 2; it must be from 0 to 0"),
        (["trace", "TOY", "--prompt", "a", "--layer", "-1"], "--layer is -1; it must be from 0 to 0"),
        (["trace", "TOY", "--prompt", "a", "--max-tokens", "0"], "max_tokens is 0; it must be a whole number of at"),
        (["trace", "TOY", "--prompt", "a", "--max-new-tokens", "-1"], "max_new_tokens is -1; it must be a whole"),
        (["trace", "TOY", "--prompt", "a", "--mode", "both"], "mode is 'both'; it must be one of stepwise, oneshot"),
        (["trace", "TOY", "--prompt", "a", "--positions", "here"], "positions is 'here'; it must be one of absolute"),
        (["trace", "TOY", "--prompt", "a", "--dtype", "int8"], "dtype is 'int8'; it must be one of"),
        (["trace", "TOY", "--prompt", "a", "--html", "EMPTY/x"], "/x', which cannot be written: Not a directory"),
        (["trace", "TOY", "--prompt", "a", "--html", "FOLDER"], "which cannot be written: Is a directory"),
        (["trace", "TOY", "--chat", "--prompt", "x"], "chat template: no x"),
        (["info", "nowhere"], "checkpoint 'nowhere' does not exist"),
        (["info", "TOY", "--memory", "much"], "--memory is 'much'; it must be a number of bytes, or one with a unit"),
        (["info", "TOY", "--memory", "0GiB"], "--memory is '0GiB'; it must be at least one byte"),
        (["info", "TOY", "--budget", "0"], "budget is 0; it must be a whole number of at least 1"),
        (["info", "TOY", "--policy", "tova:sinks=9", "--budget", "4"], "protects 9 sinks"),
        (["info", "TOY", "--policy", "lru"], "policy 'lru' is unknown; it must be one of full"),
        (["info", "TOY", "--dtype", "int8"], "dtype is 'int8'; it must be one of"),
        (["generat", "TOY"], "no such command 'generat'"),
        (["generate"], "missing argument 'CKPT'"),
        (["generate", "TOY", "--budgt", "3"], "no such option: --budgt"),
        (["generate", "TOY", "--prompt"], "option '--prompt' requires an argument"),
        (["generate", "TOY", "TOY", "--prompt", "a"], "unexpected extra argument"),
        (
            ["generate", "TOY", "--prompt", "a", "--budget", "many"],
            "--budget is 'many': input should be a valid integer",
        ),
        (["generate", "TOY", "--prompt", "a", "--top-k", "5"], "top_k is 5, but temperature 0 draws nothing"),
        (
            ["generate", "TOY", "--prompt", "a", "--temperature", "1", "--top-k", "0"],
            "top_k: k is 0; it must be a whole",
        ),
        (
            ["generate", "TOY", "--prompt", "a", "--temperature", "1", "--top-p", "2"],
            "top_p: p is 2.0; it must be a num",
        ),
        (
            ["generate", "TOY", "--prompt", "a", "--temperature", "1", "--min-p", "nan"],
            "min_p: p is nan; it must be a nu",
        ),
        (["generate", "TOY", "--prompt", "a", "--temperature", "nan"], "temperature is nan; it must be at least 0"),
        (["generate", "TOY", "--prompt", "a", "--stop", ""], "it must be a sequence of strings that are not empty"),
        (["generate", "TOY", "--prompt-file", "no.txt"], "text file 'no.txt' does not exist"),
        (["generate", "TOY", "--prompt", "a", "--prompt-file", "EMPTY"], "empty.txt' is empty"),
        (["chat", "nowhere"], "checkpoint 'nowhere' does not exist"),
        (["chat", "TOY", "--max-new-tokens", "0"], "max_new_tokens is 0; it must be a whole number"),
        (["chat", "TOY", "--policy", "lru"], "policy 'lru' is unknown; it must be one of full"),
        (["chat", "TOY", "--budget", "0"], "budget is 0; it must be a whole number"),
        (["chat", "TOY", "--positions", "here"], "positions is 'here'; it must be one of absolute"),
        (["convert", "TOY", "out", "--dtype", "int4"], "--dtype is 'int4': value error, 'int4' is not one of"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, message, toy, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "text.txt").write_text("a b c")
    (tmp_path / "raises.py").write_text("raise RuntimeError('first line\\nsecond line')")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "long.txt").write_text("a b c d e f " * 20)
    places = {
        "TOY": toy,
        "ROWS": str(tmp_path / "rows.jsonl"),
        "DEVICE": os.devnull,
        "LONG": str(tmp_path / "long.txt"),
        "TEXT": str(tmp_path / "text.txt"),
    }
    places |= {
        "EMPTY": str(tmp_path / "empty.txt"),
        "EMPTY/x": str(tmp_path / "empty.txt" / "x"),
        "NOTHING": str(tmp_path / "nothing"),
        "FOLDER": str(tmp_path),
        "EMPTY/x.jsonl": str(tmp_path / "empty.txt" / "x.jsonl"),
        "EMPTY/x.png": str(tmp_path / "empty.txt" / "x.png"),
        "BINARY": str(tmp_path / "binary.txt"),
    }
    arguments = [argument.replace("FOLDER/", f"{tmp_path}/") for argument in arguments]
    result = run(*(places.get(argument, argument) for argument in arguments), code=2)
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: ") and not result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, tiny.more(signal.SIGTERM)], ids=["ctrl-C", "terminate"])
def test_an_interrupt_ends_a_command_at_once(number, toy, tmp_path):
    """After the first of many results: those printed stay, and no traceback follows."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    command = [sys.executable, "-m", "msrnn_jax", "perplexity", toy, "--text", str(text), "--budget", "8", "--json"]
    for seed in range(200):
        command += ["--policy", f"random:seed={seed}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(number)
    rest, error = process.communicate(timeout=240)
    assert process.returncode == 128 + number
    assert error.strip() == "interrupted"
    assert first["policy"] == "random" and len(rest.splitlines()) < 199


@pytest.mark.exhaustive
def test_an_interrupt_reaches_a_running_program(toy, tmp_path):
    """While XLA generates millions of tokens in one call, which no Python code can stop."""
    endless = tmp_path / "endless"
    shutil.copytree(toy, endless)
    (endless / "tokenizer_config.json").write_text('{"bos_token_id": null, "eos_token_ids": []}')
    command = [sys.executable, "-m", "msrnn_jax", "generate", str(endless), "--prompt", "b", "--budget", "8"]
    command += ["--max-new-tokens", "20000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    time.sleep(12)  # past imports and compilation on most machines; before that, too, it must end the same
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")
    assert output.startswith("b") or not output  # the prompt and what was written by then
