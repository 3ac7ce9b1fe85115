"""Bytes of every device by arithmetic: by hand for a known model; and what becomes of the compilers' count."""

import dataclasses
import json
import pathlib
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console
from typer.testing import CliRunner

from experiments import device_memory
from experiments.common.shapes import SHAPES
from experiments.compiled.programs import Case
from experiments.device_memory import app, check, part_of, tables


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
    again, sums = 4 * 2 * slots, 4 * 2 * 32 * 4096
    working = [again + 4 * (32000 + 4096 + 8 * 11008), again + 4 * (4000 + 4096 + 11008) + sums]
    assert [row["working_bytes"] for row in rows[::2]] == working
    assert [row["beside_bytes"] for row in rows[::2]] == [32 * 2**21] * 2
    for row in rows:
        each, fixed = row["state_bytes"] + row["working_bytes"], row["weight_bytes"] + row["beside_bytes"]
        assert row["total_bytes"] == {"3": fixed + 3 * each}
        room = row["memory_bytes"] - fixed
        assert row["largest_batch"] * each <= room < (row["largest_batch"] + 1) * each


CASE = Case("v5e", "step", batch=8, layers=2)


def counted(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    """Whatever is compiled takes so many bytes, or is refused."""

    def compiled(case: Case) -> SimpleNamespace:
        if count is None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM")
        return SimpleNamespace(total=count)

    monkeypatch.setattr(device_memory, "target_devices", lambda _: jax.devices())
    monkeypatch.setattr(device_memory, "compile_case", compiled)
    monkeypatch.setattr(device_memory, "CASES", (CASE,))


def test_ours_must_be_at_least_the_compilers_count_and_at_most_a_tenth_more(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, 1)
    (row,) = check([CASE], Console(quiet=True))
    ours = row["ours"]
    assert not row["holds"]
    for count, holds in ((ours, True), (ours + 1, False), (int(ours / 1.09), True), (int(ours / 1.11), False)):
        counted(monkeypatch, count)
        (row,) = check([CASE], Console(quiet=True))
        assert (row["ours"], row["compiled"], row["holds"]) == (ours, count, holds)


def test_what_a_compiler_refuses_must_be_too_large_on_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, None)
    found = check([CASE, dataclasses.replace(CASE, batch=1024)], Console(quiet=True))
    assert [row["compiled"] for row in found] == [None, None]
    assert [row["holds"] for row in found] == [row["ours"] > 15.75 * 2**30 for row in found] == [False, True]


def test_the_command_ends_with_1_where_a_count_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out.json"
    counted(monkeypatch, 10**9)
    result = CliRunner().invoke(app, ["--check", "--out", str(out)])
    (row,) = json.loads(out.read_text())["checked"]
    assert result.exit_code == 1 and not row["holds"]
    said = "1 counts are wrong, of them that of llama-2-7b for v5e, data=1,model=1, batch 8: the compiler counts"
    assert f"{said} 1000000000 bytes, we {row['ours']}" in result.output
    counted(monkeypatch, row["ours"])
    result = CliRunner().invoke(app, ["--check", "--out", str(out)])
    assert result.exit_code == 0 and "wrong" not in result.output


def test_without_the_compilers_it_names_what_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    def missing(**_: object) -> None:
        raise NotImplementedError("no such platform")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    result = CliRunner().invoke(app, ["--check", "--out", str(tmp_path / "out.json")])
    assert result.exit_code == 2 and "has no compiler here (no such platform); `make compiled`" in result.output


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
    checked = {"shape": "small", "target": "v5e", "mesh": "data=2", "policy": "h2o", "budget": 9, "batch": 8}
    checked |= {"compiled": 1024, "ours": 1536, "holds": False}
    refused = checked | {"compiled": None, "holds": True}
    ours, theirs = tables([row], [checked, refused])
    assert [next(iter(column.cells)) for column in ours.columns] == [
        "small", "one", "tova", "7", "1 KiB", "512 B", "1.5 KiB", "3 KiB !", "2",
    ]  # fmt: skip
    names = ["model", "target", "mesh", "policy", "budget", "batch", "compiler's", "ours", "more"]
    assert [column.header for column in theirs.columns] == names
    first, second = zip(*(column.cells for column in theirs.columns), strict=True)
    same = ("small", "v5e", "data=2", "h2o", "9", "8")
    assert first == (*same, "1 KiB", "1.5 KiB", "50.00 % !") and second == (*same, "does not fit", "1.5 KiB", "")


def test_what_one_device_works_on() -> None:
    config = SHAPES["llama-3-8b"]
    part = part_of(config, 8)
    assert (part.num_heads, part.num_kv_heads, part.mlp_dim, part.vocab_size) == (4, 1, 1792, 16032)
    assert part_of(config, 16).num_kv_heads == 8 and part_of(config, 1) == config


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "llama-9"], "shape is 'llama-9'; it must be one of llama-2-7b"),
        (["--batch", "0"], "batch is 0; it must be at least 1"),
        (["--budget", "0"], "budget is 0"),
        (["--policy", "tofa"], "tofa"),
    ],
)
def test_refuses_what_cannot_be_counted(tmp_path: pathlib.Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "out.json")])
    assert result.exit_code == 2 and message in result.output
