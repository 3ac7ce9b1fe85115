"""Every policy on one footing: what is run, that the page says what the journals say, and what is told of it."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np
import pytest
from rich.console import Console
from test_needle import make_checkpoint, write_book
from typer.testing import CliRunner

from experiments.common.study import read_record
from experiments.comparison import __main__ as comparison
from experiments.comparison.findings import findings_of
from experiments.comparison.policies import DEFAULT, RANDOM, cut, every_of, held, kind_of
from experiments.comparison.tables import page, rows_of
from experiments.language_modeling.fields import check
from msrnn_jax.policies import parse_policy

QUIET = Console(quiet=True)
RANDOM_32 = cut(f"{RANDOM},sinks=32", 1)
SEGMENT, BUDGETS = 96, (12, 40)
BOOKS, NEEDLES = "comparison_language_modeling.jsonl", "comparison_needle.jsonl"


def settings_for(folder: pathlib.Path) -> comparison.Settings:
    return comparison.Settings(
        checkpoint=make_checkpoint(folder / "checkpoint"),
        data=(write_book(folder / "book.txt"),),
        policies=("window:sinks=4",),
        budgets=BUDGETS,
        segment=SEGMENT,
        segments=4,
        needle_budgets=(12,),
        draws=1,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Of a run on a toy."""
    made = tmp_path_factory.mktemp("comparison")
    comparison.run(settings_for(made), made, QUIET)
    return made


def read(path: pathlib.Path) -> list[dict]:
    return [line for line in map(json.loads, path.read_text().splitlines()) if "setting" in line]


def line_of(policy: str, budget: int, document: str, above: float, full: float = 3.0) -> dict:
    """A segment of 100 predictions that is so many nats per token above the full model."""
    numbers = {"tokens": 100, "nats": 100 * (full + above), "full_nats": 100 * full, "kl": 1.0, "agreement": 50.0}
    setting = {"policy": policy, "budget": budget, "segment": 101}
    return {"setting": setting, "document": document, "sha256": "0", **numbers}


def made(above: Mapping[str, float], noise: float = 0.001, budgets: tuple[int, ...] = (64,)) -> list[dict]:
    """Twelve segments on which every policy is so far above the full model, but for some noise."""
    dice = np.random.default_rng(0)
    return [
        line_of(policy, budget, f"book@{number}", value + dice.normal(0, noise), 3 + number / 10)
        for policy, value in above.items()
        for budget in budgets
        for number in range(12)
    ]


def told(above: Mapping[str, float], start: str, **changes) -> str:
    (said,) = [one for one in findings_of(made(above, **changes), []) if one.startswith(start)]
    return said


def test_tova_is_added_and_the_journals_are_those_of_the_other_experiments(folder: pathlib.Path) -> None:
    lines = read(folder / BOOKS)
    policies = {line["setting"]["policy"] for line in lines}
    assert policies == {"full", "baseline", "window:sinks=4", "tova"}
    assert read_record(folder / BOOKS, "language_modeling", check).is_complete
    assert {line["setting"]["order"] for line in read(folder / NEEDLES)} == {"after", "before"}


def test_a_run_that_was_cut_off_ends_in_the_same_numbers(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    whole = (folder / BOOKS).read_text().splitlines(keepends=True)
    (tmp_path / BOOKS).write_text("".join(whole[:-3]) + whole[-3][:40])
    (tmp_path / NEEDLES).write_bytes((folder / NEEDLES).read_bytes())
    text = comparison.run(settings_for(tmp_path), tmp_path, QUIET)
    numbers = [
        [{name: value for name, value in line.items() if name != "seconds"} for line in read(place / BOOKS)]
        for place in (folder, tmp_path)
    ]
    assert numbers[0] == numbers[1]
    assert read(tmp_path / NEEDLES) == read(folder / NEEDLES)  # not one was asked again
    assert text == (folder / "comparison.md").read_text()
    assert (tmp_path / "comparison.png").read_bytes() == (folder / "comparison.png").read_bytes()


def test_rows_are_what_the_lines_say(folder: pathlib.Path) -> None:
    lines, cases = read(folder / BOOKS), read(folder / NEEDLES)
    rows = {(row["policy"], row["budget"]): row for row in rows_of(lines, cases)}
    assert len(rows) == 2 * len(BUDGETS)
    nats = {(line["setting"]["policy"], line["setting"]["budget"], line["document"]): line["nats"] for line in lines}
    documents = sorted({line["document"] for line in lines})
    differences = {
        (policy, size): [(nats[policy, size, name] - nats["tova", size, name]) / (SEGMENT - 1) for name in documents]
        for policy, size in rows
    }
    for (policy, size), row in rows.items():
        mine = differences[policy, size]
        total = sum(nats[policy, size, name] for name in documents)
        assert row["perplexity"] == pytest.approx(math.exp(total / len(documents) / (SEGMENT - 1)))
        assert row["apart"] == pytest.approx(np.mean(mine), abs=1e-12)
        assert row["apart_stderr"] == pytest.approx(np.std(mine, ddof=1) / 2, abs=1e-12)  # of four segments
        both = np.mean([differences[policy, size] for size in BUDGETS], axis=0)
        assert row["mean_apart"] == pytest.approx(both.mean(), abs=1e-12)
        assert row["mean_apart_stderr"] == pytest.approx(both.std(ddof=1) / 2, abs=1e-12)
    found = [
        line["correct"]
        for line in cases
        if (line["setting"]["policy"], line["setting"]["order"]) == ("window:sinks=4", "after")
    ]
    row = rows["window:sinks=4", 12]
    assert row["found_after"] == np.mean(found) and len(found) == len(comparison.DEPTHS)
    assert math.isnan(rows["window:sinks=4", 40]["found_after"])  # not asked


def test_the_page_has_the_figure_and_a_table_for_each_group(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert "## Cut at every token" in (folder / "comparison.md").read_text()
    above = {"full": 0.0, "tova": 0.2, "window": 0.5, "tova:every=128": 0.1, "snapkvd": 0.3}
    text = comparison.write(made(above, budgets=(64, 128)), [], tmp_path)
    assert text == (tmp_path / "comparison.md").read_text()
    groups = [line for line in text.splitlines() if line.startswith("## ")]
    assert groups == ["## Cut at every token", "## Cut every 128 tokens"]
    assert "127.5 / 191.5 tokens are held" in text
    for place in (folder, tmp_path):
        assert (place / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_ranks_are_by_mean_loss_within_the_group() -> None:
    above = {"tova": 0.2, "h2o": 0.1, "window": 0.5, "tova:every=128": 0.1, "snapkvd": 0.3}
    rows = rows_of(made(above, budgets=(64, 128)), [])
    assert {row["policy"]: row["rank"] for row in rows} == {
        "h2o": 1,
        "tova": 2,
        "window": 3,
        "tova:every=128": 1,
        "snapkvd": 2,
    }
    titles, cells = page(rows, 1)
    assert [row[:2] for row in cells] == [["1", "H2O"], ["2", "TOVA"], ["3", "Window"]]
    assert len(titles) == len(cells[0]) and cells[0][3].startswith("−0.100 ± 0.000")
    assert cells[1][3] == "0.000"  # beside itself


def test_random_is_told_to_be_worse_or_as_good() -> None:
    start = "Random with the first 32"
    scored = {"tova": 0.1, "h2o": 0.1, "knorm": 0.4}
    worse = told({**scored, RANDOM_32: 0.3}, start)
    assert "is not as good as scored policies" in worse
    assert "at k = 64, 2 of 3 are better, 1 worse, 0 not told apart" in worse
    best = told({**scored, RANDOM_32: 0.05, "window": 0.01}, start)  # Window has no score
    assert "is as good as scored policies" in best and "0 of 3 are better, 3 worse" in best
    some = told({**scored, "cur": 0.4, "roco": 0.4, RANDOM_32: 0.3}, start)
    assert "is not as good as some scored policies" in some


def test_nothing_is_told_within_two_standard_errors() -> None:
    above = {"tova": 0.1, "h2o": 0.101, RANDOM_32: 0.1005}
    said = told(above, "Random", noise=0.1)
    assert "is not told from most scored policies at some size" in said
    assert "0 of 2 are better, 0 worse, 2 not told apart" in said
    assert "and all others are worse" not in told(above, "The lowest loss", noise=0.1)
    assert "TOVA, and all others are worse" in told({"tova": 0.1, "h2o": 0.2}, "The lowest loss")
    assert "k = 64 H2O, not told from RoCo" in told(
        {"tova": 0.2, "h2o": 0.1, "roco": 0.1001}, "The lowest loss", noise=0.01
    )


@pytest.mark.parametrize(("seldom", "count"), [(0.3, "2 lose, 0 gain"), (0.1, "0 lose, 2 gain")])
def test_cutting_seldom_is_told_to_cost_or_to_gain(seldom: float, count: str) -> None:
    above = {"tova": 0.2, "h2o": 0.2, "tova:every=128": seldom, "h2o:every=128": seldom, "snapkvd": 0.2}
    said = [one for one in findings_of(made(above, budgets=(64, 128)), []) if one.startswith("Cutting")]
    assert len(said) == 3  # each at its own budget, and 127.5 held against 128
    assert all(f"of 2 policies {count}" in one for one in said)
    assert "k = 64 (mean 127.5 held), against every token at k = 128" in said[1]


def test_the_policies_are_in_one_spelling_with_a_label_each() -> None:
    assert len(DEFAULT) == 43 and list(DEFAULT) == [str(parse_policy(text)) for text in DEFAULT]
    for every in (1, 128):
        labels = [kind_of(policy).label for policy in DEFAULT if every_of(policy) == every]
        assert len(set(labels)) == len(labels)
    assert kind_of("tova:sinks=9").label == "tova:sinks=9"
    held_after = [0]
    for _ in range(4096):  # by hand, far beyond the first cut
        count = held_after[-1] + 1
        held_after.append(64 if count == 64 + 128 else count)
    assert held(64, 128) == np.mean(held_after[192 : 192 + 128 * 30])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--policy", "triattention"], "which keeps the prompt"),
        (["--policy", "nothing"], "policy 'nothing' is unknown"),
        (["--draws", "-1"], "draws is -1"),
    ],
)
def test_refusals_before_any_work(tmp_path: pathlib.Path, changes: list[str], message: str) -> None:
    result = CliRunner().invoke(comparison.app, ["no checkpoint", *changes, "--out", str(tmp_path)])
    assert result.exit_code and message in result.output
    assert not list(tmp_path.iterdir())


def test_the_slowest_are_measured_on_fewer_segments_and_asked_for_no_needles(folder, tmp_path):
    for name in (BOOKS, NEEDLES):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    before = settings_for(tmp_path)
    settings = dataclasses.replace(before, policies=("window:sinks=4", "rkv:every=1"), slow_segments=2)
    page = comparison.run(settings, tmp_path, QUIET)
    slow = [line for line in read(tmp_path / BOOKS) if line["setting"]["policy"] == "rkv:every=1"]
    assert len(slow) == 2 * len(BUDGETS) and {line["setting"]["budget"] for line in slow} == set(BUDGETS)
    assert "Of fewer segments, at every token: R-KV (2)." in page
    assert read(tmp_path / NEEDLES) == read(folder / NEEDLES)
