"""The catalogue says what the classes say, and the page is what the command prints."""

import pathlib

import pytest
from typer.testing import CliRunner

import msrnn_jax as ms
from msrnn_jax.cli.app import app
from msrnn_jax.cli.options import OURS
from msrnn_jax.policies.catalogue import as_markdown, catalogue, common_options, describe
from msrnn_jax.policies.registry import POLICIES

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "policies.md"


def test_the_page_is_what_the_command_prints():
    assert PAGE.read_text() == as_markdown()


def test_every_policy_has_a_paper_a_sentence_and_options_that_text_can_set():
    for entry in catalogue():
        assert entry.summary.endswith(".") and (entry.paper or entry.name == "full")
        options = ",".join(f"{name}={value}" for name, value in (entry.defaults | entry.options).items() if value)
        assert ms.parse_policy(f"{entry.name}:{options}") == POLICIES[entry.name]()
    assert set(common_options()) == {"scope", "sinks", "recent", "every", "prompt", "adaptive", "pyramid"}
    assert {text.split(":")[0] for text in OURS} == set(POLICIES)


def test_numbers_kept_are_counted_by_slot_and_row():
    assert (describe("roco").per_slot, describe("roco").per_row) == (2, 0)
    assert (describe("gkv").per_slot, describe("gkv").per_row) == (1, 8 * 4 * 128)


def test_summaries_are_words():
    assert not [entry.name for entry in catalogue() if "$" in entry.summary]


def test_the_command_lists_and_explains():
    run = CliRunner().invoke
    listed = run(app, ["policies"]).stdout
    assert all(f"{name} " in listed for name in POLICIES)
    explained = run(app, ["policies", "rkv"]).stdout
    assert "mix=0.07" in explained and "Here 128." in explained and "R-KV" in explained
    assert run(app, ["policies", "rkv", "--json"]).stdout.startswith('{"name": "rkv"')
    assert run(app, ["policies", "--markdown"]).stdout == as_markdown()
    wrong = run(app, ["policies", "lru"])
    option = CliRunner().invoke(app, ["policies", "pyramidkv"])
    assert (
        option.exit_code == 2 and "an option of every policy; it must be written as in tova:pyramid=20" in option.stderr
    )
    assert wrong.exit_code == 2 and "policy 'lru' is unknown; it must be one of full, window" in wrong.stderr


def test_a_field_with_the_name_of_a_function_is_refused():
    with pytest.raises(
        TypeError, match="Shifted: a field is called 'bias', as a function of Policy is; name it otherwise"
    ):

        class Shifted(ms.Policy):
            bias: float = 0.5


def test_every_policy_that_forgets_has_a_cost_that_was_measured():
    for entry in catalogue():
        assert bool(entry.cost) == POLICIES[entry.name].forgets, entry.name
        assert bool(entry.cost_at_each) == (POLICIES[entry.name]().every > 1), entry.name
    assert describe("window").cost == {"step": 1.0, "extend": 1.0} and describe("rkv").cost_at_each["extend"] > 10
