"""Bytes of every device by arithmetic: by hand for a known model, and by XLA's own count for small ones."""

import json
import pathlib
import subprocess
import sys

import pytest
from devices import environment
from typer.testing import CliRunner

from experiments.device_memory import SMALL, app, part_of, tables


def test_llama_2_7b_on_one_device_and_on_eight(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out.json"
    options = ["--shape", "llama-2-7b", "--budget", "511", "--batch", "3", "--out", str(out)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert [(row["machine"], row["policy"]) for row in rows] == [
        ("one H100", "tova"), ("one H100", "full"), ("v5e-8", "tova"), ("v5e-8", "full"),
    ]  # fmt: skip
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 2 * 32000 * 4096
    norms = (2 * 32 + 1) * 4096
    assert [row["weight_bytes"] for row in rows[::2]] == [2 * (matrices + norms), 2 * (matrices // 8 + norms)]
    slots = 32 * 512  # of all layers
    beside = 4 * (2 * slots + 32 + 1)  # positions, TOVA's scores, budgets and the clock, on every device
    cache = 2 * 2 * slots * 32 * 128
    assert [row["state_bytes"] for row in rows[::2]] == [cache + beside, cache // 8 + beside]
    for row in rows:
        each = row["state_bytes"] + row["working_bytes"]
        assert row["total_bytes"] == {"3": row["weight_bytes"] + 3 * each}
        room = row["memory_bytes"] - row["weight_bytes"]
        assert row["largest_batch"] * each <= room < (row["largest_batch"] + 1) * each


@pytest.mark.exhaustive
@pytest.mark.parametrize("policy", ["tova", "h2o"])
def test_xla_counts_the_same_arguments_and_no_more_besides(tmp_path: pathlib.Path, policy: str) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "experiments.device_memory", "--check", "--policy", policy, "--out", str(out)]
    root = pathlib.Path(__file__).parents[2]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=root)
    assert ended.returncode == 0, ended.stderr
    checked = json.loads(out.read_text())["checked"]
    assert [row["mesh"] for row in checked] == ["data=1,model=1", "data=2,model=4", "data=1,model=8", "data=8,model=1"]
    for row in checked:
        assert row["arguments"] == row["expected_arguments"]
        assert 0 < row["temporary"] <= row["expected_temporary"]
    assert checked[2]["arguments"] < checked[0]["arguments"] / 7  # next to nothing is on every device


def test_the_tables_say_what_was_counted() -> None:
    row = {
        "shape": "small",
        "machine": "one",
        "policy": "tova",
        "budget": 7,
        "memory_bytes": 2048,
        "weight_bytes": 1024,
    }
    row |= {"state_bytes": 512, "total_bytes": {1: 1536, 4: 3072}, "largest_batch": 2}
    checked = {"mesh": "data=2", "policy": "h2o", "budget": 9, "arguments": 1001, "expected_arguments": 1002}
    checked |= {"temporary": 1003, "expected_temporary": 1004}
    ours, theirs = (
        {column.header: next(iter(column.cells)) for column in made.columns} for made in tables([row], [checked])
    )
    assert list(ours.values()) == ["small", "one", "tova", "7", "1 KiB", "512 B", "1.5 KiB", "3 KiB !", "2"]
    assert list(theirs) == ["mesh", "policy", "budget", "arguments", "ours of them", "temporary", "ours"]
    assert list(theirs.values()) == ["data=2", "h2o", "9", "1,001", "1,002", "1,003", "1,004"]


def test_what_one_device_works_on() -> None:
    part = part_of(SMALL, 8)
    assert (part.num_heads, part.num_kv_heads, part.mlp_dim, part.vocab_size) == (2, 1, 128, 512)
    assert part_of(SMALL, 16).num_kv_heads == 8 and part_of(SMALL, 1) == SMALL


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "llama-9"], "shape is 'llama-9'; it must be one of llama-2-7b"),
        (["--batch", "0"], "batch is 0; it must be at least 1"),
        (["--budget", "0"], "budget is 0"),
        (["--policy", "tofa"], "tofa"),
        (["--check"], "takes 8 devices; there are"),
    ],
)
def test_refuses_what_cannot_be_counted(tmp_path: pathlib.Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "out.json")])
    assert result.exit_code == 2 and message in result.output
