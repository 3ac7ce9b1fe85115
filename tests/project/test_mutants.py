"""The command that seeds faults, on a package of a few lines."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("cosmic_ray", reason="needs cosmic-ray: pip install 'msrnn_jax[mutants]'")
pytest.importorskip("coverage", reason="needs coverage: pip install 'msrnn_jax[mutants]'")

import mutant_runs  # noqa: E402
import mutants  # noqa: E402
from mutant_sites import Mutant, draw, statement  # noqa: E402

PACKAGE = '''"""A toy."""


def near(a: int | None) -> int | None:
    if a is True:
        raise ValueError(f"a is {a + 1}")
    return a - 1


def far(a):
    return a * 2


def untested(a):
    return a + 1


def loose(a):
    return a - 1
'''
TESTS = """import subprocess, sys
import pytest
import toy

def test_near():
    with pytest.raises(ValueError):
        toy.near(True)
    assert toy.near(3) == 2

def test_loose():
    toy.loose(3)

def test_fails_without_a_fault():
    assert toy.loose(3) == 4

def test_far():
    code = "import toy; print(toy.far(3))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "6\\n"
"""
TOY = "toy/__init__.py"


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "root"
    files = {TOY: PACKAGE, "tests/test_toy.py": TESTS, "pyproject.toml": "", ".gitignore": "results/\n"}
    files["pyproject.toml"] = '[tool.pytest.ini_options]\npythonpath = ["."]\n'
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root


def measured(root: pathlib.Path) -> tuple[dict[int, str], str]:
    """What the command finds, by line, and what it prints."""
    options = "--package toy --count 50 --workers 1 --results results".split()
    command = [sys.executable, mutants.__file__, *options]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "XDG_CACHE_HOME": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, (root / "results" / "mutants.jsonl").read_text().splitlines())
    return {row["line"]: row["verdict"] for row in rows}, done.stdout


@pytest.mark.exhaustive
def test_a_fault_is_killed_where_a_test_asserts(root: pathlib.Path) -> None:
    verdicts, printed = measured(root)
    assert verdicts == {5: "killed", 7: "killed", 11: "killed", 15: "not covered", 19: "survived"}
    assert "60.0 %" in printed
    assert "not run, since they fail without a fault: tests/test_toy.py::test_fails_without_a_fault" in printed

    # One that is known to be equivalent does not count. A new test runs alone, and for what survived.
    runs = (root / "results" / "runs.jsonl").read_text()
    fault = next(mutant for mutant in draw(root, ["toy"], count=50, seed=0) if mutant.site.line == 15)
    entry = {"file": TOY, "line": "return a + 1", "becomes": fault.becomes, "reason": "so it is meant"}
    (root / "tests" / "equivalent_mutants.json").write_text(json.dumps([entry]))
    (root / "tests" / "test_more.py").write_text("import toy\n\ndef test_more():\n    assert toy.loose(3) == 2\n")
    verdicts, printed = measured(root)
    assert verdicts == {5: "killed", 7: "killed", 11: "killed", 15: "equivalent", 19: "killed"}
    assert "100.0 %" in printed and "so it is meant" in printed
    later = (root / "results" / "runs.jsonl").read_text()
    (new,) = map(json.loads, later.removeprefix(runs).splitlines())
    assert later.startswith(runs) and new["test"] == "tests/test_more.py"


@pytest.mark.exhaustive
@pytest.mark.parametrize("body", ["while True: pass", "import time; time.sleep(60)"])
def test_a_fault_that_never_ends_is_told_apart(
    body: str, root: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "tests" / "test_toy.py").write_text(f"def test_endless():\n    {body}\n")
    monkeypatch.setattr(mutant_runs, "IDLE", 4)
    copy = mutant_runs.Copy(root, tmp_path / "copy", ["tests/test_toy.py", "pyproject.toml"], tmp_path / "results")
    assert copy.test("tests/test_toy.py", most=2).status is None


def test_the_sample_is_drawn_by_seed(root: pathlib.Path) -> None:
    def drawn(seed: int, count: int = 3) -> list[Mutant]:
        return draw(root, ["toy"], count=count, seed=seed)

    assert drawn(0) == drawn(0) and len({tuple(drawn(seed)) for seed in range(5)}) > 1
    assert set(drawn(0)) < set(drawn(0, 50))
    names = {mutant.name for mutant in drawn(0)}
    (root / TOY).write_text(PACKAGE.replace('"""A toy."""', '"""A toy."""\n\nMORE = [name for name in "abc"]'))
    assert names == {mutant.name for mutant in drawn(0)}
    core = draw(root, ["toy"], count=3, seed=0, core=["toy/__init*"], share=1.0)
    assert len(core) == 3 and core == draw(root, ["toy"], count=3, seed=0)


def test_a_line_belongs_to_a_statement() -> None:
    source = "@one\n@two(\n    3\n)\ndef f(\n    a=4,\n):\n    return (\n        a\n        + 5\n    )\n"
    spans = [statement(source, line) for line in (3, 6, 10)]
    assert spans == [range(1, 8), range(1, 8), range(8, 12)]
