"""Experiments on a mesh of devices find what they find on one."""

import importlib
import json
import math
import pathlib
from typing import Any

from devices import on_devices
from test_experiments_killed import EXPERIMENTS
from typer.testing import CliRunner

HERE = pathlib.Path(__file__).parent
MESHES = {"generation": "data=5", "retention": "data=2,model=3"}

RUN = """
from typer.testing import CliRunner
import importlib
from experiments.model import Model

shared = set()
for name, arguments in json.loads(sys.argv[1]).items():
    result = CliRunner().invoke(importlib.import_module(f"experiments.{name}.__main__").app, arguments)
    assert result.exit_code == 0, (name, result.output, result.exception)
"""


def test_experiments_on_a_mesh_find_what_they_find_on_one_device(tmp_path: pathlib.Path) -> None:
    commands = {}
    for name, module in EXPERIMENTS.items():
        (tmp_path / name).mkdir()
        arguments = importlib.import_module(module).small_command(tmp_path / name)
        commands[name] = [*arguments, "--out", str(tmp_path / f"{name}.jsonl")]
        app = importlib.import_module(f"experiments.{name}.__main__").app
        result = CliRunner().invoke(app, commands[name])
        assert result.exit_code == 0, result.output
    shared = {name: [*arguments, "--mesh", "data=2,model=3"] for name, arguments in commands.items()}
    on_devices(RUN, json.dumps(shared), quick=True)
    for name in EXPERIMENTS:
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        one, many = ([line for line in lines if line.get("mesh") == mesh] for mesh in (None, "data=2,model=3"))
        assert len(one) == len(many) > 1
        for first, second in zip(one, many, strict=True):
            alike(name, first, second)


def alike(where: str, first: Any, second: Any) -> None:
    if isinstance(first, dict):
        for name in first.keys() - {"mesh", "seconds", "settings", "planned"}:
            alike(f"{where}.{name}", first[name], second[name])
    elif isinstance(first, list):
        for one, other in zip(first, second, strict=True):
            alike(where, one, other)
    elif isinstance(first, float):
        assert math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-4), (where, first, second)
    else:
        assert first == second, where
