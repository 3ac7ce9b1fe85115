"""Every code block of the README runs."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import typer

import msrnn_jax as ms
from msrnn_jax.cli import app

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_every_number_is_filled_in():
    assert not re.findall(r"@\w+@", README)


def test_python_blocks_run_one_after_another(smollm2, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "smollm2-135m").symlink_to(smollm2)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    found = blocks("python")
    assert len(found) == 5
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    assert names["kept"].shape == names["tokens"].shape
    assert names["answers"].shape == (2, 16) and names["losses"].shape == (len(names["tokens"]) - 1,)
    assert names["logits"].shape == (49152,)  # of the last block's prefill
    assert names["state"].layers[0].keys.shape == (3, 9, 64)


def test_commands_run(smollm2, tmp_path):
    """Experiments are run; the arguments of commands are read, which docs/commands.md shows and test_docs.py runs."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "smollm2-135m").symlink_to(smollm2)
    msrnn = typer.main.get_command(app)
    for line in "".join(blocks("sh")).strip().splitlines():
        program, *arguments = shlex.split(line.replace("python -m convert", "msrnn convert"), comments=True)
        if program == "msrnn":
            name, *rest = arguments
            command = msrnn.commands[name]
            if hasattr(command, "commands"):  # `convert`, in which `import` may be left out
                name, *rest = rest if rest[0] in command.commands else ["import", *rest]
                command = command.commands[name]
            command.make_context(name, rest)
            continue
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{line}\n{result.stderr}"


def test_the_table_of_policies_is_complete():
    """A row for every policy there is, each saying the text that makes it."""
    rows = re.findall(r"^\| `(\w+\(.*?\))` \| `(.*?)` \|", README, re.M)
    for code, text in rows:
        assert ms.parse_policy(text) == eval(code.replace("=i", "=4"), {**vars(ms)})
    assert {text.split(":")[0] for _, text in rows} == set(ms.policies.POLICIES)
