"""The section policies of the throughput experiment on a tiny model: what it compares and counts; never how fast."""

import json
import statistics

import jax
import numpy as np
import pytest
import tiny
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from experiments.throughput import costs
from experiments.throughput.__main__ import app
from experiments.throughput.policies import count_bytes, kinds, pairs, verdict
from experiments.throughput.settings import DEFAULT_SECTIONS, Policies, Settings, every_policy, read_by_each
from msrnn_jax.io.units import tree_bytes
from msrnn_jax.policies.registry import POLICIES

OFTEN, RARE = "morphkv:recent=2", "morphkv:recent=2,every=4"
SMALL = "--decode-budget 8 --decode-budgets 8 --decode-prompt 12 --new-tokens 3 --chunk 8 --slow-turns 2 --no-peers"
CHOSEN = f"--section policies --dtype float32 --compared {OFTEN} --compared {RARE} --compared-batch 2"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return make_toy(tmp_path_factory.mktemp("models") / "toy")


def test_policies_are_compared_with_window_and_with_themselves(toy, tmp_path):
    out = tmp_path / "result.json"
    printed = CliRunner().invoke(app, [toy, *CHOSEN.split(), *SMALL.split(), "--out", str(out)], catch_exceptions=False)
    assert printed.exit_code == 0, printed.output
    result = json.loads(out.read_text())
    assert not set(DEFAULT_SECTIONS) & set(result)
    section = result["policies"]
    names, works = ["window", OFTEN, RARE], ["extend", "step batch 2"]
    assert [(row["policy"], row["work"]) for row in section["rows"]] == [
        (name, work) for work in works for name in names
    ]
    rows = {row["series"]: row for row in section["rows"]}
    assert [rows[f"{name} step batch 2"]["steps"] for name in names] == [3, 3, 4]  # whole rounds of cuts
    assert all(row["tokens"] == row["steps"] * row.get("batch", 1) for row in rows.values())
    assert all(row["steps"] == 20 for row in rows.values() if row["work"] == "extend")

    assert [(one["of"], one["over"]) for one in section["ratios"]] == [
        (f"{name} {work}", f"window {work}") for work in works for name in names[1:]
    ]
    assert [(one["of"], one["over"]) for one in section["pairs"]] == [
        (f"{RARE} {work}", f"{OFTEN} {work}") for work in works
    ]
    for one in section["ratios"] + section["pairs"]:
        costs = [np.divide(rows[one[end]]["seconds"], rows[one[end]]["tokens"]) for end in ("of", "over")]
        np.testing.assert_allclose(one["each"], costs[0] / costs[1], rtol=1e-12)
        assert one["median"] == statistics.median(one["each"])
    assert all(one["costs"] == verdict(one["each"]) for one in section["pairs"])
    assert [one["policy"] for one in section["bytes"]] == names and [one["slots"] for one in section["bytes"]] == [
        9,
        9,
        12,
    ]
    assert "Policies at budget 8, float32" in printed.stdout and "Cutting now and then" in printed.stdout


def made_result() -> dict:
    """Of two policies and one batch, in which TOVA takes twice as long, and cuts every 128 tokens at half of that."""
    policies, works = {"window": 1.0, "tova": 2.0, "tova:every=128": 1.0}, ["step batch 8", "extend"]
    rows = [
        {"dtype": "float32", "policy": name, "work": work, "seconds": [cost], "steps": 1}
        for name, cost in policies.items()
        for work in works
    ]
    ratios = [{**row, "each": row["seconds"], "median": row["seconds"][0]} for row in rows if row["policy"] != "window"]
    pairs = [{**row, "each": [0.5], "median": 0.5, "costs": "no more"} for row in ratios if ":" in row["policy"]]
    bytes_of = {"dtype": "float32", "slots": 9.0, "keys_and_values": 100, "statistics": 5, "row_statistics": 20}
    section = {"rows": rows, "ratios": ratios, "pairs": pairs}
    section["bytes"] = [{**bytes_of, "policy": name} for name in policies]
    settings = {"checkpoint": "models/toy", "shape": None, "dtypes": ["float32"], "slow_turns": 1}
    settings |= {"policies": {"batches": [8]}, "decode": {"budget": 8}, "extend": {"chunk": 4}}
    origin = dict.fromkeys(("device", "commit", "finished", "python", "hardware"), "here")
    return {"settings": settings, "policies": section, "versions": {"jax": "0.0"}, **origin}


def test_costs_are_written_for_the_catalogue_and_as_a_page(tmp_path):
    numbers, page = tmp_path / "costs.json", tmp_path / "page.md"
    costs.write(made_result(), numbers, page)
    found = json.loads(numbers.read_text())
    assert found["over_window"]["window"] == {"step": 1.0, "extend": 1.0}
    assert found["over_window"]["tova"] == {"step": 2.0, "extend": 2.0}
    assert (found["batch"], found["budget"], found["dtype"]) == (8, 8, "float32")
    lines = page.read_text().splitlines()
    assert "| tova | 2000.00 | 2.00±0.00 | 2000.00 | 2.00±0.00 | 9 | 5.0% | 20.0% |" in lines
    assert "| tova:every=128 | 0.50±0.00 | 0.50±0.00 |" in lines


@pytest.mark.parametrize("text", [*(text for text in every_policy() if "full" not in text), "tova:pyramid=2.0"])
def test_bytes_are_those_of_a_state(text):
    policy, budget = ms.parse_policy(text), 160
    found = count_bytes(tiny.CONFIG, policy, budget)
    layers = ms.init_state(tiny.CONFIG, policy, budget).layers
    rest = tree_bytes([(layer.budget, layer.pinned) for layer in layers])
    parts = sum(found[name] for name in ("keys_and_values", "positions", "statistics", "row_statistics"))
    assert parts + rest == sum(leaf.nbytes for leaf in jax.tree.leaves(layers))
    assert found["slots"] == pytest.approx(160 + policy.every)
    assert found["keys_and_values"] == found["slots"] * 2 * 2 * 3 * 10 * 4  # layers, keys and values, heads, width


def test_bytes_of_statistics_by_hand():
    slot = 2 * 3 * 10 * 4
    expected = {
        "window": (0, 0),
        "tova": (4, 0),
        "h2o": (3 * 4, 0),
        "roco": (2 * 3 * 4, 0),
        "snapkvd": (0, 8 * 6 * 10 * 4),
    }
    for text, (statistics_of_a_slot, of_rows) in expected.items():
        found = count_bytes(tiny.CONFIG, ms.parse_policy(text), 64)
        assert found["keys_and_values"] == 2 * found["slots"] * slot
        assert found["statistics"] == 2 * found["slots"] * statistics_of_a_slot
        assert found["row_statistics"] == 2 * of_rows


def test_every_policy_that_forgets_is_compared_at_each_token_too():
    policies = {text: ms.parse_policy(text) for text in every_policy()}
    assert {policy.kind for policy in policies.values()} == set(POLICIES.values()) - {ms.Full}
    rare = [text for text, policy in policies.items() if policy.every > 1]
    assert [pair[0] for pair in pairs(policies)] == rare and len(rare) >= 10
    assert all(policies[one].replace(every=1) == policies[other] for one, other in pairs(policies))


def test_a_call_ends_where_every_policy_cuts():
    compared = Policies(compared=("tova:every=6", "h2o:every=4", "window"), batches=(2,))
    settings = Settings("ckpt", policies=compared)
    assert read_by_each(settings) % 12 == 0 and read_by_each(settings) >= 512
    assert kinds(settings) == ["extend", "step batch 2"]


@pytest.mark.parametrize(("each", "said"), [([0.9, 1.0], "no more"), ([0.9, 1.1], "undecided"), ([1.1, 1.01], "more")])
def test_a_verdict_needs_every_turn(each, said):
    assert verdict(each) == said


@pytest.mark.parametrize(("policy", "message"), [("full", "compared is full"), ("window:sinks=9", "protects 9 sinks")])
def test_what_cannot_be_compared_is_refused(toy, tmp_path, policy, message):
    arguments = [toy, "--section", "policies", *SMALL.split(), "--compared", policy, "--out", str(tmp_path / "r.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and message in result.stderr
