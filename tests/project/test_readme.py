"""Every code block of the README runs."""

import pathlib
import re
import runpy
import shlex
import sys

import pytest
import typer

import msrnn_jax as ms
from msrnn_jax.cli.app import app

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

# What a command is given besides, so that it does less of the same: of an option that is given twice the last counts.
SHORTER = {
    "experiments.throughput": "--turns 1 --new-tokens 2 --decode-budget 64 --decode-budgets 64 --decode-prompt 72",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_every_number_is_filled_in():
    assert not re.findall(r"@\w+@", README)


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
def test_commands_run(smollm2, tmp_path, monkeypatch):
    """Experiments are run; the arguments of commands are read, which docs/commands.md shows and test_docs.py runs."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "smollm2-135m").symlink_to(smollm2)
    monkeypatch.chdir(tmp_path)
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
        assert (program, arguments[0]) == ("python", "-m"), line
        _, module, *rest = arguments
        monkeypatch.setattr(sys, "argv", [module, *rest, *SHORTER[module].split()])
        monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)  # as a new process finds it
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert ended.value.code == 0, line


def test_the_table_has_the_policies_of_the_paper():
    """A row for every policy of the paper, each saying the text that makes it; `msrnn policies` lists all."""
    rows = re.findall(r"^\| `(\w+\(.*?\))` \| `(.*?)` \|", README, re.M)
    for code, text in rows:
        assert ms.parse_policy(text) == eval(code.replace("=i", "=4"), {**vars(ms)})
    assert {text.split(":")[0] for _, text in rows} == {"full", "window", "random", "h2o", "tova"}
