"""The check of a device, on the CPU: what it finds, what it writes, and how it ends; never how fast anything is."""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import msrnn_jax as ms
from experiments.common.shapes import SHAPES
from experiments.device_check import __main__ as command
from experiments.device_check import exact
from experiments.device_check.device import kernels
from experiments.device_check.speed import Speed, layers_that_fit
from msrnn_jax.devices.memory import state_bytes
from msrnn_jax.io.units import tree_bytes
from msrnn_jax.params import abstract_params
from msrnn_jax.recurrence.kernel_choice import SWITCH

SMALL = "--batch 2 --tokens 24 --budget 8 --steps 2 --turns 1".split()
OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")


def run(out: pathlib.Path, *options: str, code: int = 0) -> tuple[str, dict[str, Any]]:
    """What the command printed and what it wrote."""
    done = CliRunner().invoke(command.app, [*SMALL, *options, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output, json.loads(out.read_text())


@pytest.fixture
def one_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "policies", lambda: [ms.TOVA()])


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed does not fit into the memory."""

    def fail(*_: Any) -> Any:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(Speed, "decode", fail)
    monkeypatch.setattr(Speed, "perplexity", fail)


def test_it_checks_times_and_writes(one_policy: None, tmp_path: pathlib.Path) -> None:
    printed, result = run(tmp_path / "out.json", "--bandwidth", "2", "--flops", "0.5", "--layers", "1")
    assert [row["check"] for row in result["exact"]] == list(exact.CHECKS)
    assert all(row["passed"] for row in result["exact"]) and result["exact"][2]["one_program"]
    assert result["peak"] == {"bandwidth": 2e9, "flops": 5e11} and result["device_kind"] == "cpu"
    assert [(row["part"], row["batch"], row["kernels"]) for row in result["speed"]] == [
        ("decode", 1, None), ("decode", 2, None), ("perplexity", 1, "off"), ("perplexity", 1, "on"),
    ]  # fmt: skip
    matrices = 64 * (2 * (8 + 4) * 16 + 3 * 192) + 512 * 64
    state = state_bytes(SHAPES["tiny"].replace(num_layers=1, dtype="bfloat16"), ms.TOVA(), 8)
    for row in result["speed"]:
        rate = row["tokens_per_second"]
        assert (row["layers"], row["layers_of_all"], len(row["seconds"])) == (1, 2, 1) and rate > 0
        if row["part"] == "decode":
            assert row["bytes_of_a_step"] == 2 * matrices + row["batch"] * state
            assert row["share"] == pytest.approx(row["bytes_of_a_step"] * rate / row["batch"] / 2e9)
        else:
            assert row["share"] == pytest.approx(2 * matrices * rate / 5e11)
    assert "1 of 2" in printed and "pass" in printed and "FAIL" not in printed and "unknown" not in printed


@pytest.mark.usefixtures("one_policy", "no_room")
def test_a_kernel_that_frees_another_token_is_found_and_a_lack_of_memory_told(tmp_path, monkeypatch) -> None:
    right = exact.read

    def read(config: ms.Config, policy: ms.Policy, *given: Any, stepwise: bool) -> Any:
        return right(config, ms.TOVA(sinks=3) if os.environ[SWITCH] == "on" else policy, *given, stepwise=stepwise)

    monkeypatch.setattr(exact, "read", read)
    printed, result = run(tmp_path / "out.json", code=1)
    first, *others = result["exact"]
    assert not first["passed"] and first["rows_held_differently"] > 0 and first["largest_difference"] > exact.TOLERANCE
    assert all(row["passed"] for row in others)
    assert "1 checks failed, of them kernel and scan for tova" in printed and "FAIL" in printed
    for row in result["speed"]:
        assert row["error"].startswith("JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory"), row
    assert "RESOURCE_EXHAUSTED" in printed


def test_any_wrong_result_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = exact.Outcome(np.zeros((3, 5)), [np.zeros((1, 2), int), np.zeros((4, 2), int)], ("cpu", "program"))
    others = [
        zeros._replace(logits=zeros.logits + 2 * exact.TOLERANCE),
        zeros._replace(logits=zeros.logits + float("nan")),
        zeros._replace(held=[zeros.held[0], zeros.held[1] + 1]),
    ]
    checked = object.__new__(exact.Exactness)
    for other in (zeros, *others):
        checked._outcomes = {("tova", "scan"): zeros, ("tova", "step"): other}
        row = checked.check("extend and step", ms.TOVA())
        assert row["passed"] == (other is zeros) == (not command.failures({"exact": [row]}))
        assert row["rows_held_differently"] == (4 if other is others[2] else 0)

    def fail(*_: Any) -> Any:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(exact.Exactness, "_read", fail)
    row = command.Clock(100).do(lambda: checked.check("device and CPU", ms.TOVA()))
    assert "RESOURCE_EXHAUSTED" in row["error"] and command.failures({"exact": [row]})


def test_what_there_is_no_time_for_is_skipped(tmp_path: pathlib.Path) -> None:
    printed, result = run(tmp_path / "out.json", "--minutes", "0")
    rows = result["exact"] + result["speed"]
    assert len(rows) == 3 * 13 + 4 and all("no time after" in row["skipped"] for row in rows)
    assert "skipped" in printed


def test_a_part_begins_only_if_one_like_the_longest_so_far_would_end_in_time(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])

    def work() -> dict[str, Any]:
        now[0] += 40
        return {"done": now[0]}

    clock = command.Clock(100)
    assert [clock.do(work) for _ in range(3)] == [{"done": 40}, {"done": 80}, {"skipped": "no time after 80 s"}]


def test_a_setting_holds_for_what_is_traced_within(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "auto")
    inner = jax.jit(lambda: {"on": 1, "off": 2}[os.environ[SWITCH]])
    for setting, value in (("on", 1), ("off", 2), ("on", 1)):
        with kernels(setting):
            assert int(jax.jit(lambda: inner())()) == value
    assert os.environ[SWITCH] == "auto"
    monkeypatch.delenv(SWITCH)
    with kernels("on"):
        pass
    assert SWITCH not in os.environ


def test_as_many_layers_are_taken_as_fit() -> None:
    config = SHAPES["llama-2-7b"]

    def needed(layers: int) -> int:
        part = config.replace(num_layers=layers)
        return tree_bytes(abstract_params(part)) + state_bytes(part, ms.TOVA(), 512)

    for memory, layers in ((needed(7), 7), (needed(7) - 1, 6), (2**50, 32), (0, 1)):
        assert layers_that_fit(config, ms.TOVA(), 512, memory) == layers


def test_an_unknown_shape_is_refused(tmp_path: pathlib.Path) -> None:
    done = CliRunner().invoke(command.app, ["--shape", "llama-9", "--out", str(tmp_path / "out.json")])
    assert done.exit_code == 2 and "shape is 'llama-9'; it must be one of llama-2-7b" in done.output


@pytest.mark.exhaustive
def test_all_policies_pass() -> None:
    checked = exact.Exactness(1)
    for policy in exact.policies():
        for name in exact.CHECKS:
            assert checked.check(name, policy)["passed"], (name, policy)
