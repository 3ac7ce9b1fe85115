"""The throughput experiment on a tiny model: what it writes, what it counts, what it refuses; never how fast."""

import importlib.util
import json
import os
import statistics
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from experiments.common.shapes import SHAPES
from experiments.throughput import memory as largest
from experiments.throughput import timing as bench
from experiments.throughput.__main__ import app
from experiments.throughput.memory import check, summarise
from experiments.throughput.roofline import shares, weights_per_token
from experiments.throughput.settings import DEFAULT_SECTIONS
from experiments.throughput.timing import Series, ratio, take_turns
from msrnn_jax.devices.memory import largest_batch, state_bytes, working_bytes
from msrnn_jax.io.units import GIB, tree_bytes
from msrnn_jax.params import abstract_params
from msrnn_jax.state import POSITION_MODES

PAPER_256 = {"gigabytes": 0.15, "batch": 139, "relative": 8.5}
PAPER_FULL = {"gigabytes": 2.18, "batch": 8, "relative": 1.0}
TORCH = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
SMALL = {
    "rows": [1, 4],
    "decode-budget": [8],
    "decode-budgets": [4, 8],
    "batch": [1, 3],
    "early": [200],
    "late": [400],
    "decode-prompt": [12],
    "new-tokens": [3],
    "prompt-length": [24],
    "prompt-budget": [8],
    "tokens": [48],
    "budget": [8],
    "chunk": [8],
    "chunks": [4, 12],
    "budgets": [4],
    "policies": ["window:sinks=4", "full"],
    "grid-tokens": [24],
    "stretch": [6],
    "long": [96],
    "memory-budgets": [4, 8],
    "memory-full": [16],
    "memory-gib": [0.001],
    "turns": [2],
    "slow-turns": [2],
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return make_toy(tmp_path_factory.mktemp("models") / "toy")


def run(*arguments: str, code: int = 0, **changes: Any):
    settings = {**SMALL, **{name.replace("_", "-"): values for name, values in changes.items()}}
    options = [text for name, values in settings.items() for value in values for text in (f"--{name}", str(value))]
    result = CliRunner().invoke(app, [*arguments, *options], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def measure(out, *arguments: str, **changes: Any):
    """Runs the command and returns what it printed and what it wrote."""
    printed = run(*arguments, "--out", str(out), **changes)
    return printed, json.loads(out.read_text())


def cost(row) -> list[float]:
    return [seconds / row["tokens"] for seconds in row["seconds"]]


def check_ratios(rows, ratios):
    """Every ratio can be told from the series."""
    assert ratios
    for one in ratios:
        of, over = (
            next(row for row in rows if (row["dtype"], row["series"]) == (one["dtype"], one[name]))
            for name in ("of", "over")
        )
        each = [a / b for a, b in zip(cost(of), cost(over), strict=True)]
        each = [1 / value for value in each] if one["kind"] == "speed" else each
        np.testing.assert_allclose(one["each"], each, rtol=1e-12)
        assert one["median"] == statistics.median(one["each"])


@pytest.mark.exhaustive
def test_every_section_runs(toy, tmp_path):
    printed, result = measure(tmp_path / "out" / "result.json", toy, "--largest", dtype=["float32"])
    assert set(DEFAULT_SECTIONS) | {"settings", "versions", "device", "commit", "threads", "peers", "config"} <= set(
        result
    )
    assert set(result["model_sha256"]) == {"float32"} and len(result["text_sha256"]) == 16
    assert sorted(os.listdir(tmp_path / "out")) == ["result.json", "result.png"]
    assert (tmp_path / "out" / "result.png").read_bytes()[:4] == b"\x89PNG"
    assert all(f"{section}: " in printed.stderr for section in DEFAULT_SECTIONS)
    for title in ("Products of", "Decoding, tova", "First token after 24", "Reading 48", "Reading 24", "Rows that fit"):
        assert title in printed.stdout
    assert (result["peers"]["skipped"] is None) == TORCH
    peers = ["transformers"] if TORCH else []

    rows = result["roofline"]["rows"]
    assert [row["rows"] for row in rows] == [1, 4]
    assert all(row["bytes_per_second"] > 0 and row["operations_per_second"] > 0 for row in rows)
    assert {"share", "rows", "series", "dtype"} == set(result["roofline"]["shares"][0])

    decode = result["decode"]
    names = ["step budget 8 batch 1", "step budget 8 batch 3", "step budget 4 batch 1"]
    names += ["step budget 8 batch 1 at 200", "step budget 8 batch 1 at 400", "products batch 1", "products batch 3"]
    assert [row["series"] for row in decode["rows"]] == names + [f"{peer} batch {b}" for peer in peers for b in (1, 3)]
    assert all(len(row["seconds"]) == 2 and row["tokens"] == 3 * row["batch"] for row in decode["rows"])
    assert all("compile_seconds" in row for row in decode["rows"][: len(names)])
    check_ratios(decode["rows"], decode["ratios"])
    assert len(decode["ratios"]) == 1 + 5 + 2 * len(peers)

    assert [row["series"] for row in result["prompt"]["rows"]] == ["stepwise", "oneshot", *peers]
    assert len(result["prompt"]["ratios"]) == 2 * len(peers)

    extend = result["extend"]
    grid = [(row["policy"], row["budget"], row["chunk"]) for row in extend["grid"]]
    assert grid[:5] == [("tova", 8, 8), ("tova", 8, 4), ("tova", 8, 12), ("tova", 4, 8), ("window:sinks=4", 8, 8)]
    assert grid[5:] == [("full", 48, 8), ("full", 48, 12)]
    assert [row["series"].split()[0] for row in extend["whole"]] == ["tova", "full", "scan", *peers]
    check_ratios(extend["whole"], extend["whole_ratios"])
    check_ratios(extend["grid"], extend["grid_ratios"])
    assert len(extend["whole_ratios"]) == 2 + len(peers) and len(extend["grid_ratios"]) == 6
    (memory,) = extend["memory"]
    assert memory["bytes_per_token"] == 12.0  # a token, its target and its loss
    assert [parts["temporary"] for parts in memory["bytes"]] == [memory["bytes"][0]["temporary"]] * 2
    if TORCH:
        assert extend["losses"][0]["largest_difference_of_full"] < 1e-4

    rows = result["memory"]["rows"]
    assert [(row["policy"], row["budget"]) for row in rows] == [("tova", 4), ("tova", 8), ("full", 16)]
    for row in rows:
        fits = row["weight_bytes"] + row["largest_batch"] * (row["state_bytes"] + row["working_bytes"])
        assert 0 < fits <= result["memory"]["memory_bytes"]["float32"] == int(0.001 * GIB)
        assert row["check"]["arguments"] == row["check"]["expected_arguments"]
        timed = row["timed"]
        assert 0 < timed["batch"] <= row["largest_batch"]
        assert timed["bytes"]["peak"] <= timed["room_bytes"] == int(0.001 * GIB)
    assert rows[-1]["relative"]["median"] == 1.0


@pytest.mark.exhaustive
def test_bfloat16_and_random_weights_of_a_shape(tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", tiny.CONFIG.replace(dtype="bfloat16"))
    count = largest.program_bytes

    def widened(program: Any) -> dict[str, int]:
        """As where XLA widens bfloat16, which it does on some CPUs."""
        return {name: 2 * size for name, size in count(program).items()}

    monkeypatch.setattr(largest, "program_bytes", widened)
    arguments = ["--shape", "tiny", "--random", "--no-peers", "--section", "decode", "--section", "memory"]
    arguments += ["--full-batch", "5", "--largest"]
    few = {"batch": [1], "decode_budgets": [8], "memory_budgets": [4]}
    printed, result = measure(tmp_path / "result.json", *arguments, memory_gib=[], **few)
    assert result["settings"]["shape"] == "tiny" and result["settings"]["dtypes"] == ["bfloat16"]
    assert result["random_seed"] == 0 and "model_sha256" not in result
    assert {"decode", "memory"} <= set(result) and not {"roofline", "prompt", "extend"} & set(result)
    assert "transformers was not timed: not asked for" in printed.stdout

    *ours, full = result["memory"]["rows"]
    assert full["largest_batch"] == full["timed"]["batch"] == 5  # though that takes more than a count of what it holds
    memory = full["weight_bytes"] + 5 * (full["state_bytes"] + full["working_bytes"])
    assert result["memory"]["memory_bytes"] == {"bfloat16": memory} and full["timed"]["room_bytes"] > memory
    assert all(row["timed"]["room_bytes"] == full["timed"]["room_bytes"] for row in ours)
    assert all(row["largest_batch"] >= row["timed"]["batch"] > 5 for row in ours)
    columns = summarise(result)
    assert [column["batch"] for column in columns] == [row["timed"]["batch"] for row in result["memory"]["rows"]]
    assert [column["relative"] for column in columns] == [row["relative"]["median"] for row in result["memory"]["rows"]]
    lines = printed.stdout[printed.stdout.index("The paper's Table 1") :].splitlines()
    assert ["4", "full 16"] == [cell.strip() for cell in lines[2].split("┃")[3:-1]]
    assert [f"{column['batch']}" for column in columns] == [cell.strip() for cell in lines[5].split("│")[3:-1]]
    assert [f"{column['relative']:.2f}" for column in columns] == [cell.strip() for cell in lines[6].split("│")[3:-1]]


def test_the_memory_of_a_shape_takes_no_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", tiny.CONFIG)
    monkeypatch.setattr(ms, "init_params", None)
    budgets = {"memory_budgets": [256], "memory_full": [4096]}
    printed, result = measure(tmp_path / "result.json", "--shape", "tiny", "--random", section=["memory"], **budgets)
    ours, full = result["memory"]["rows"]
    assert "timed" not in full  # on a CPU only if asked for
    found = [(column["batch"], column["relative"], column["published"]) for column in summarise(result)]
    assert found == [(ours["largest_batch"], None, PAPER_256), (full["largest_batch"], None, PAPER_FULL)]
    assert "0.15 GB" in printed.stdout and "2.18 GB" in printed.stdout and "8.5" in printed.stdout


def test_the_paper_has_numbers_for_its_own_budgets_only():
    rows = [("tova", 256), ("tova", 300), ("tova", 4096), ("full", 2048), ("full", 4096)]
    numbers = {"dtype": "float32", "state_bytes": 1, "largest_batch": 2}
    columns = summarise({"memory": {"rows": [{"policy": policy, "budget": n, **numbers} for policy, n in rows]}})
    assert [column["published"] for column in columns] == [PAPER_256, None, None, None, PAPER_FULL]


def test_the_papers_batches():
    """Table 1 has 139, 70, 35, 17 and 8 rows on a V100 of 32 GB; 30 GiB are what fits to them."""
    config, memory = SHAPES["llama-2-7b"], 30 * GIB
    weights = tree_bytes(abstract_params(config))
    found = []
    for policy, budget in [*((ms.TOVA(), budget) for budget in (256, 512, 1024, 2048)), (ms.Full(), 4096)]:
        row = state_bytes(config, policy, budget) + working_bytes(config, policy, budget)
        found.append(largest_batch(memory, weights, row))
    assert found == [138, 69, 34, 17, 8]


def test_absent_peers_are_named(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "PEERS", ("torch", "no_such_package"))
    printed, result = measure(tmp_path / "result.json", toy, section=["prompt"], dtype=["float32"])
    assert "no_such_package" in result["peers"]["skipped"] and "no_such_package" in printed.stdout
    assert [row["series"] for row in result["prompt"]["rows"]] == ["stepwise", "oneshot"]
    assert not (tmp_path / "result.png").exists() and printed.stdout.endswith("result.json\n")


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ([], {}, "the checkpoint is missing; give one, or --shape NAME --random"),
        (["nowhere"], {}, "checkpoint 'nowhere' does not exist"),
        (["--shape", "llama-2-7b"], {}, "the shape 'llama-2-7b' has no weights; add --random to draw them"),
        (["--shape", "llama-2-8b", "--random"], {}, "shape 'llama-2-8b' is unknown; it must be one of llama-2-7b"),
        (["TOY", "--random"], {}, "random is for weights of a shape"),
        (["TOY", "--shape", "smollm2-135m", "--random"], {}, "both a checkpoint and the shape 'smollm2-135m'"),
        (["TOY"], {"memory_gib": [5e-5]}, "memory_gib is 5e-05; the float32 weights alone take 6.3e-05 GiB"),
        (["TOY"], {"memory_gib": [0]}, "memory_gib is 0.0; it must be a number above 0"),
        (["TOY"], {"full_batch": [8]}, "both memory_gib 0.001 and full_batch 8 are given"),
        (["TOY"], {"memory_gib": [], "full_batch": [0]}, "full_batch is 0; it must be a whole number of at least 1"),
        (["TOY"], {"section": ["speed"]}, "section 'speed' is unknown; it must be one of roofline"),
        (["TOY"], {"dtype": ["int8"]}, "dtype is 'int8'; it must be one of"),
        (["TOY"], {"policy": ["full"]}, "policy is full; it must be one that forgets"),
        (["TOY"], {"policy": ["lru"]}, "policy 'lru' is unknown"),
        (["TOY"], {"policies": ["window:sinks=9"]}, "protects 9 sinks"),
        (["TOY"], {"turns": [0]}, "turns is 0; it must be a whole number of at least 1"),
        (["TOY"], {"batch": [0]}, "batches is 0; it must be a whole number of at least 1"),
        (["TOY"], {"early": [10]}, "early and late must be at least 16"),
        (["TOY"], {"grid_tokens": [49]}, "grid_tokens 49, tokens 48 and long 96 must ascend"),
        (["TOY"], {"chunk": [25]}, "grid_tokens is 24; it must be at least the largest chunk"),
        (["TOY"], {"text": ["no.txt"]}, "text file 'no.txt' does not exist"),
        (["TOY"], {"text": ["SHORT"]}, "the text has 5 tokens; this run reads 49"),
        (["TOY"], {"out": ["result.txt"]}, "it must end in .json"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_exit_code_2(arguments, changes, message, toy, tmp_path):
    (tmp_path / "short.txt").write_text("a b c")
    places = {"TOY": toy, "SHORT": str(tmp_path / "short.txt")}
    changes = {"out": [tmp_path / "r.json"], **changes}
    changes = {name: [places.get(value, value) for value in values] for name, values in changes.items()}
    result = run(*(places.get(argument, argument) for argument in arguments), code=2, **changes)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last and not result.stdout
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
@pytest.mark.parametrize("positions", POSITION_MODES)
@pytest.mark.parametrize("policy", [ms.TOVA(), ms.TOVA(scope="head"), ms.H2O(), ms.Window(sinks=1)], ids=str)
def test_state_bytes_are_those_of_a_state(policy, positions, dtype):
    for config in (tiny.CONFIG, tiny.CONFIG.replace(num_layers=3, num_kv_heads=6, dtype="bfloat16")):
        for budget in (4, 17):
            state = ms.init_state(config, policy, budget, positions=positions, dtype=dtype)
            real = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            assert state_bytes(config, policy, budget, positions=positions, dtype=dtype) == real


@pytest.mark.exhaustive
@pytest.mark.parametrize("policy", [ms.TOVA(), ms.H2O(), ms.Full()], ids=str)
def test_xla_counts_the_same_bytes(policy):
    """At a size where logits and attention are what a step needs, as in models that are used."""
    config = tiny.CONFIG.replace(vocab_size=5000)
    for budget in (8, 200):
        found = check(config, policy, abstract_params(config), budget, batch=3, count=4)
        states = 3 * state_bytes(config, policy, budget)
        assert found["arguments"] == tree_bytes(abstract_params(config)) + states + 3 * 4
        assert found["temporary"] <= found["expected_temporary"] == 3 * working_bytes(config, policy, budget)
        assert found["aliased"] >= states  # every byte of the states is written in place


@pytest.mark.parametrize(("memory", "fits"), [(99, 0), (100, 0), (106, 0), (107, 1), (113, 1), (114, 2), (800, 100)])
def test_the_largest_batch_is_right_at_its_edge(memory, fits):
    batch = largest_batch(memory, weights=100, row=7)
    assert batch == fits
    assert batch == 0 or 100 + 7 * batch <= memory
    assert memory < 100 + 7 * (batch + 1)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_per_token_are_all_that_is_multiplied(tied):
    config = tiny.CONFIG.replace(tied_embeddings=tied)
    params = abstract_params(config)
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    assert weights_per_token(config) == matrices - (0 if tied else params.embedding.size)


def test_series_take_turns_in_alternating_order():
    called = []
    series = [Series(name, lambda name=name: called.append(name), 1) for name in "abc"]
    rows = take_turns(series, 3, lambda message: None)
    assert "".join(called) == "abc" + "cba" + "abc" + "cba" and [len(row["seconds"]) for row in rows] == [3, 3, 3]


def test_a_ratio_is_the_median_of_those_within_turns():
    rows = [
        {"series": "a", "tokens": 10, "seconds": [1.0, 10.0, 2.0]},
        {"series": "b", "tokens": 5, "seconds": [1.0, 2.0, 4.0]},
    ]
    assert ratio(rows, "a", "b", "time")["each"] == [0.5, 2.5, 0.25]
    assert ratio(rows, "a", "b")["median"] == 2.0


def test_shares_of_the_products_count_attention_where_a_text_is_read():
    rows = [{"dtype": "float32", "rows": rows, "operations_per_second": 1000.0} for rows in (1, 4)]
    row = {"dtype": "float32", "budget": 5, "tokens_per_second": 2.0}
    result = {
        "config": {"num_layers": 2, "num_heads": 3, "head_dim": 4},
        "weights_per_token": 100,
        "roofline": {"rows": rows},
        "decode": {
            "rows": [row | {"series": "step", "policy": "tova", "batch": 1}, row | {"series": "peer", "batch": 1}]
        },
        "extend": {"whole": [row | {"series": "read", "chunk": 4}, row | {"series": "other", "chunk": 3}]},
    }
    found = {one["series"]: one["share"] for one in shares(result)}
    # A token has ten slots, of which each takes 2 * 2 * 12 products in a layer.
    assert found == {"step": pytest.approx(2 * 200 / 1000), "read": pytest.approx(2 * (200 + 10 * 2 * 48) / 1000)}
