"""Experiments on a mesh of devices find what they find on one, and what comes to no number does not stop them."""

import importlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest
from devices import on_devices
from test_experiments_killed import EXPERIMENTS
from typer.testing import CliRunner

import msrnn_jax as ms

MESH = "data=2,model=3"
RUN = """
import importlib
from typer.testing import CliRunner
for name, arguments in json.loads(sys.argv[1]).items():
    result = CliRunner().invoke(importlib.import_module(f"experiments.{name}.__main__").app, arguments)
    assert result.exit_code == 0, (name, result.output)
"""
BAD = {"needle": "<"}  # a letter that stands nowhere, else U


class Spoilt(NamedTuple):
    """Where the letter is put, and which results then come to no number."""

    file: str
    put: Callable[[str], str]
    document: str


SPOILT = {
    "language_modeling": Spoilt("books/1.txt", lambda text: text[:50] + "U" + text[51:], "1.txt@33"),
    "understanding": Spoilt("dev.jsonl", lambda text: text[:300] + "U" + text[301:], "1/1"),
    "generation": Spoilt("prompts.jsonl", lambda text: text.replace("once upon", "once Upon"), "prompts.jsonl:3#0"),
    "retention": Spoilt(
        "books/second.txt", lambda text: text.replace("ran on and on", "ran on and Un"), "second.txt@40"
    ),
    "extrapolation": Spoilt("books/1.txt", lambda text: text[:20] + "U" + text[21:], "1.txt@0"),
    "needle": Spoilt("book.txt", lambda text: text[:2000].replace("e", "<") + text[2000:], "96/0.5/0"),
}


@pytest.mark.exhaustive
def test_on_a_mesh_they_find_what_they_find_on_one_device_and_leave_out_what_came_to_no_number(
    tmp_path: pathlib.Path,
) -> None:
    commands = {}
    for name, module in EXPERIMENTS.items():
        folder, out = tmp_path / name, tmp_path / f"{name}.jsonl"
        folder.mkdir()
        commands[name] = [*importlib.import_module(module).small_command(folder), "--out", str(out)]
        spoil(name, folder, commands[name][0])
        app = importlib.import_module(f"experiments.{name}.__main__").app
        result = CliRunner().invoke(app, commands[name])
        assert result.exit_code == 0, result.output
        wrong = [line for line in read(out, None) if "failed" in line]
        assert {line["document"] for line in wrong} == {SPOILT[name].document} or name == "generation"  # they write it
        assert SPOILT[name].document in {line["document"] for line in wrong}
        assert f"note: {len(wrong)} of {len(read(out, None))} results came to no number, such as" in result.stderr
    on_devices(RUN, json.dumps({name: [*given, "--mesh", MESH] for name, given in commands.items()}), quick=True)
    for name in EXPERIMENTS:
        one, many = (read(tmp_path / f"{name}.jsonl", mesh) for mesh in (None, MESH))
        assert len(one) > 1
        alike(name, one, many)


def spoil(name: str, folder: pathlib.Path, checkpoint: str) -> None:
    """Makes the embedding of a letter NaN that no document has, and puts it into one."""
    letter = BAD.get(name, "U")
    data = folder / SPOILT[name].file
    for path in data.parent.iterdir():
        if path.is_file():
            path.write_text(path.read_text().replace(letter, "a"))
    data.write_text(SPOILT[name].put(data.read_text()))
    config, params = ms.load(checkpoint)
    bad = ms.load_tokenizer(checkpoint).encode(letter)[0]
    kept = [path for path in pathlib.Path(checkpoint).iterdir() if path.suffix in (".json", ".jinja")]
    files = {path.name: path.read_text() for path in kept if path.name != "config.json"}
    broken = params.replace(embedding=params.embedding.at[bad].set(jnp.nan))
    ms.save(checkpoint, config, broken, files=files, overwrite=True)


def read(out: pathlib.Path, mesh: str | None) -> list[dict[str, Any]]:
    """Results on a mesh, None for one device, as far as they are the same on any."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    mine = [line for line in lines if line["kind"].endswith(" result") and line["mesh"] == mesh]
    return [{name: line[name] for name in line.keys() - {"mesh", "seconds"}} for line in mine]


def alike(where: str, first: Any, second: Any) -> None:
    """Refuses other values, and floats that are not near."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for name in first:
            alike(f"{where}.{name}", first[name], second[name])
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for one, other in zip(first, second, strict=True):
            alike(where, one, other)
    elif isinstance(first, float):
        assert math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-4), (where, first, second)
    else:
        assert first == second, where
