"""The report on all experiments: verdicts against numbers that are known, and what is written of them."""

import dataclasses
import html.parser
import json
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import filelock
import made_results as made
import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.common import published
from experiments.common.claims import (
    AGREES,
    DISAGREES,
    NOT_MEASURED,
    OUTCOMES,
    UNDECIDED,
    Part,
    Verdict,
    above,
    below,
    either,
    errors_needed,
    every,
    inside,
    not_measured,
    some,
)
from experiments.common.estimates import Estimate, difference, exact, exp, geometric, mean, minus, over, ratio
from experiments.common.figures import COLORS, LABELS, MARKERS, canvas, legend_below, ours, papers
from experiments.common.records import THROUGHPUT, Records, read_records
from experiments.extrapolation.report import stream
from experiments.generation.report import verdicts_of
from experiments.language_modeling import report as language_modeling
from experiments.language_modeling.report import _figure_3
from experiments.report.__main__ import app, run
from experiments.report.findings import LEADING, findings
from experiments.report.origin import different_models, origins, shown
from experiments.report.render import markdown_of, page_of
from experiments.report.report import CHECKS, CLAIMS, Decided, Report
from experiments.retention.maps import unpack
from experiments.retention.report import _figure_8, held_map
from experiments.throughput.report import saved

VOID = ("meta", "img", "br", "hr", "link")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> pathlib.Path:
    """Results as if nearly all that the paper says held here."""
    folder = tmp_path_factory.mktemp("results")
    made.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def written(results, tmp_path_factory) -> pathlib.Path:
    """The folder of the report on them."""
    out = tmp_path_factory.mktemp("report")
    run(results, out)
    return out


def verdicts(records: Records, start: str = "") -> dict[str, Verdict]:
    """Of all claims that begin like this."""
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS), "two claims of one text"
    return {claim.text: claim.decide(records) for claim in CLAIMS if claim.text.startswith(start)}


def of(tmp_path: pathlib.Path, name: str, lines: Sequence[made.Made], start: str) -> dict[str, Verdict]:
    """Verdicts from one file of results alone."""
    made.write(tmp_path / f"{name}.jsonl", name, lines)
    return verdicts(read_records(tmp_path, CHECKS), start)


@pytest.fixture(scope="module")
def found(results) -> dict[str, Verdict]:
    """Verdicts of all claims on them."""
    return verdicts(read_records(results, CHECKS))


def outcomes(found: dict[str, Verdict], start: str) -> set[str]:
    """Of all claims that begin like this."""
    known = {verdict.outcome for text, verdict in found.items() if text.startswith(start)}
    assert known, f"no claim begins with {start!r}"
    return known


# ---------------------------------------------------------------- arithmetic


def test_a_perplexity_gap_has_the_error_of_the_paired_delta_method():
    """By hand, from the definition: with other counts in one of the two, as of the short context."""
    ours_, full = [3.0 * 100, 3.3 * 90, 2.7 * 80], [2.9 * 100, 3.2 * 100, 2.65 * 100]
    counts, others = [100, 90, 80], [100, 100, 100]
    first, second = sum(ours_) / sum(counts), sum(full) / sum(others)
    squares = 0.0
    for a, n, b, m in zip(ours_, counts, full, others, strict=True):
        pull = math.exp(first) * (a - first * n) / sum(counts) - math.exp(second) * (b - second * m) / sum(others)
        squares += pull**2
    found = minus(exp(ratio(ours_, counts)), exp(ratio(full, others)))
    assert found.value == pytest.approx(math.exp(first) - math.exp(second), rel=1e-12)
    assert found.stderr == pytest.approx(math.sqrt(squares * 3 / 2), rel=1e-12)


def test_errors_of_means_are_the_usual_ones():
    values, other = np.random.default_rng(0).normal(5, 1, (2, 40))
    usual = values.std(ddof=1) / math.sqrt(40)
    assert mean(values.tolist()).stderr == pytest.approx(usual, rel=1e-12)
    assert minus(mean(values.tolist()), mean(other.tolist())).stderr == pytest.approx(
        (values - other).std(ddof=1) / math.sqrt(40), rel=1e-12
    )
    quotient = over(mean(values.tolist()), mean(other.tolist()))
    boot = np.random.default_rng(1).integers(0, 40, (4000, 40))
    spread = (values[boot].mean(axis=1) / other[boot].mean(axis=1)).std()
    assert quotient.stderr == pytest.approx(spread, rel=0.1)


def test_a_geometric_mean_has_the_error_of_the_delta_method():
    values = np.random.default_rng(3).uniform(5, 30, (3, 60))
    found = geometric(*(mean(row.tolist()) for row in values))
    boot = np.random.default_rng(1).integers(0, 60, (4000, 60))
    drawn = np.prod([row[boot].mean(axis=1) for row in values], axis=0) ** (1 / 3)
    assert found.value == pytest.approx(float(np.prod(values.mean(axis=1)) ** (1 / 3)), rel=1e-12)
    assert found.stderr == pytest.approx(float(drawn.std()), rel=0.1)


def test_two_standard_errors_decide():
    def one(value: float, stderr: float) -> Estimate:
        pulls = np.tile([1.0, -1.0], 200)  # n / (n - 1) is 400 / 399
        return Estimate(value, pulls * stderr / math.sqrt(400 * 400 / 399), 400)

    assert one(3.0, 0.25).stderr == pytest.approx(0.25)
    assert below("", one(0.9, 0.04), 1.0).outcome == AGREES
    assert below("", one(0.9, 0.06), 1.0).outcome == UNDECIDED
    assert below("", one(1.1, 0.04), 1.0).outcome == DISAGREES
    assert above("", one(1.1, 0.04), 1.0).outcome == AGREES
    assert above("", one(0.9, 0.04), 1.0).outcome == DISAGREES
    assert above("", one(0.9, 0.04), 1.0).errors == pytest.approx(-2.5)
    assert inside("", one(0.5, 0.04), 0.4, 0.6).outcome == AGREES
    assert inside("", one(0.5, 0.06), 0.4, 0.6).outcome == UNDECIDED
    assert inside("", one(0.7, 0.04), 0.4, 0.6).outcome == DISAGREES
    few = Estimate(0.9, np.asarray([0.02, -0.02]), 2)
    assert few.stderr == pytest.approx(0.04)
    assert below("", few, 1.0).outcome == UNDECIDED, "two documents need 14 errors"
    assert below("", Estimate(0.0, np.zeros(1), 1), 1.0).outcome == UNDECIDED, "one document has no error"
    assert below("", Estimate(math.nan, np.full(3, math.nan), 3), 1.0).outcome == UNDECIDED
    assert above("", mean([1.0, 1.0]), 1.0).outcome == UNDECIDED, "nothing is between all documents and the bound"
    assert above("", mean([1.1] * 4), 1.0).outcome == AGREES
    assert above("", mean([1.1] * 3), 1.0).outcome == UNDECIDED, "that three are alike says little of others"
    assert below("", exact(1.0), 1.0).outcome == AGREES
    assert below("", exact(1.01), 1.0).outcome == DISAGREES


def test_errors_needed_are_those_of_a_table():
    """Of Student's t at two standard errors (95.45 %), by degrees of freedom: JCGM 100:2008, table G.2."""
    table = {1: 13.97, 2: 4.53, 3: 3.31, 4: 2.87, 5: 2.65, 7: 2.43, 10: 2.28, 20: 2.13, 50: 2.05}
    assert [errors_needed(degrees + 1) for degrees in table] == pytest.approx(list(table.values()), abs=0.005)
    assert errors_needed(10**9) == pytest.approx(2.0)


def test_pairs_are_made_by_document_in_whatever_order_lines_stand():
    def lines(add: float, order: list[int]) -> list[dict[str, Any]]:
        return [{"document": f"{one}", "sha256": f"{one}", "nats": 10.0 * one + add * one**2} for one in order]

    first, second = lines(1.0, [1, 2, 3, 4, 9]), lines(0.0, [1, 2, 3, 4, 7])
    wanted = difference(first, second, "nats")
    assert wanted.value == 7.5 and wanted.documents == 4  # (1 + 4 + 9 + 16) / 4
    assert wanted.stderr == pytest.approx(math.sqrt(43) / 2)  # squares of what 1, 4, 9, 16 are from it: 129, a third
    for order in ([7, 4, 2, 1, 3], [3, 1, 7, 4, 2]):
        found = difference(first, lines(0.0, order), "nats")
        assert (found.value, found.stderr) == (wanted.value, pytest.approx(wanted.stderr))
    same = {**second[0], "sha256": "another text of the same name"}
    assert difference(first, [same, *second[1:]], "nats").documents == 3


@pytest.mark.parametrize(
    ("parts", "all_of_them", "any_of_them"),
    [
        ((AGREES, AGREES), AGREES, AGREES),
        ((AGREES, UNDECIDED), UNDECIDED, AGREES),
        ((UNDECIDED, DISAGREES), DISAGREES, UNDECIDED),
        ((AGREES, DISAGREES), DISAGREES, AGREES),
        ((DISAGREES, DISAGREES), DISAGREES, DISAGREES),
        ((), NOT_MEASURED, NOT_MEASURED),
    ],
)
def test_a_claim_of_several_parts(parts, all_of_them, any_of_them):
    found = [Part("", 0.0, 1.0, "", outcome, 2, 0.0, None) for outcome in parts]
    assert every(found, "").outcome == all_of_them
    assert some(found, "").outcome == any_of_them
    alike = set(parts) if len(set(parts)) == 1 else {UNDECIDED}
    assert not parts or {either(found, "").outcome} == alike
    if parts:  # what is missing may be anything
        rest = every(found, "", missing=["k = 64"])
        assert rest.outcome == (DISAGREES if DISAGREES in parts else UNDECIDED) and "k = 64" in rest.note
        assert some(found, "", missing=["k = 64"]).outcome == (AGREES if AGREES in parts else UNDECIDED)


# ---------------------------------------------------------------- verdicts


NOT_FROM_ITSELF = {  # what the paper's own numbers do not bear out, or leave at the very bound
    "Window+4 needs at least 1/2 of the context": {DISAGREES},  # its Table 3 has 0.30 at 1/4
    "H2O needs at least 1/2 of the context": {DISAGREES},  # 0.33
    "TOVA is at most": {UNDECIDED},
    "The same holds for LLaMA-2, Mistral and Yi": {NOT_MEASURED},
    "Gaps compressed to ln(ln(g))": {NOT_MEASURED},
}


def test_the_papers_own_numbers_bear_it_out(found):
    for start, expected in NOT_FROM_ITSELF.items():
        assert outcomes(found, start) == expected, start
    rest = {text: one.outcome for text, one in found.items() if not text.startswith(tuple(NOT_FROM_ITSELF))}
    others = {text: outcome for text, outcome in rest.items() if outcome != AGREES}
    made_up = ("SQuALITY: TOVA is within", "QASPER: in some cases", "QASPER: with less", "Stories: the full model wins")
    assert not [text for text in others if not text.startswith(made_up)], others


def test_every_number_of_a_verdict_is_the_papers_where_the_results_are(found):
    """Ours and the paper's stand side by side in the same unit."""
    for text, verdict in found.items():
        if any(word in text for word in ("perplexity", "Window+1", "per head", "per layer", "kept", "batch", "wins")):
            close = 2e-3 if verdict.unit == "difference in nats per token" else 0.02
            for part in verdict.parts:
                if part.paper is not None:
                    assert part.value == pytest.approx(part.paper, rel=0.03, abs=close), (text, part)


def test_worse_than_h2o_everywhere_disagrees_and_noise_leaves_it_open(tmp_path):
    def swapped(policy: str, budget: int) -> float:
        return made.papers({"tova": "h2o", "h2o": "tova"}.get(policy, policy), budget)

    def verdict_of(place: str, lines: list[made.Made]) -> Verdict:
        return of(tmp_path / place, "language_modeling", lines, text)[text]

    text = "TOVA has a lower perplexity than H2O at every k below the context"
    assert verdict_of("a", made.language_modeling(swapped)).outcome == DISAGREES
    assert verdict_of("b", made.language_modeling(noise=0.5)).outcome == UNDECIDED

    def once(policy: str, budget: int) -> float:
        return swapped(policy, budget) if budget == 1024 else made.papers(policy, budget)

    verdict = verdict_of("c", made.language_modeling(once))
    assert verdict.outcome == DISAGREES, "one size of six"
    assert [part.what for part in verdict.parts if part.outcome == DISAGREES] == ["k = 1024"]


def test_pairs_are_of_common_documents(tmp_path):
    """Policies that read fewer segments are compared on these, whatever the others were like."""
    lines = made.language_modeling(others=3)
    for setting, document, numbers in lines:
        rare = setting["policy"] == "tova:scope=head"
        if not rare and document not in made.books(3):
            numbers["nats"] += 1000.0  # type: ignore[index]
    text = "TOVA per head is worse than per layer"
    verdict = of(tmp_path, "language_modeling", lines, text)[text]
    assert {part.documents for part in verdict.parts} == {3}
    assert all(abs(part.value - (part.paper or 0)) < 0.01 for part in verdict.parts)


def test_sizes_are_shares_of_the_segment(tmp_path):
    """With segments of 2,048 tokens, 256 of them are what 512 are to the paper."""
    lines = [
        ({**setting, "segment": 2048, "budget": setting["budget"] // 2}, document, numbers)
        for setting, document, numbers in made.language_modeling()
    ]
    text = "TOVA is within 0.4 perplexity of the topline at 1/8 of the context"
    (part,) = of(tmp_path, "language_modeling", lines, text)[text].parts
    assert part.what == "k = 256" and part.value == pytest.approx(0.25, abs=0.01)


OTHER_TAGS = {"NN": (300, 600, 999, 1700)}
SQUALITY, QASPER = ("squality",), ("qasper",)
SHORT_LIVED = {"POS": (1, 1, 1, 1), **OTHER_TAGS}


@pytest.mark.parametrize(
    ("name", "lines", "start", "expected"),
    [
        ("understanding", lambda: made.understanding(-3.0, tasks=SQUALITY), "SQuALITY: TOVA beats", DISAGREES),
        (
            "understanding",
            lambda: made.understanding(-0.5, noise=0.1, tasks=SQUALITY),
            "SQuALITY: TOVA beats",
            DISAGREES,
        ),
        ("understanding", lambda: made.understanding(0.5, noise=5.0, tasks=QASPER), "QASPER: TOVA beats", UNDECIDED),
        ("understanding", lambda: made.understanding(8.0, tasks=QASPER), "QASPER: in some cases", AGREES),
        ("understanding", lambda: made.understanding(-3.0, tasks=SQUALITY), "SQuALITY: TOVA finds", DISAGREES),
        ("understanding", lambda: made.understanding(tasks=QASPER), "SQuALITY: TOVA beats", NOT_MEASURED),
        ("generation", lambda: made.generation(-100.0), "Stories with 256", DISAGREES),
        ("generation", lambda: made.generation(0.0), "Stories with 512", UNDECIDED),
        ("generation_judge", lambda: made.judgements({256: (50, 0, 0)}), "Stories: the full model wins", DISAGREES),
        ("generation_judge", lambda: made.judgements({1024: (20, 10, 20)}), "Stories: with 1,024", DISAGREES),
        ("retention", lambda: made.retention(0.95), "Recent tokens", DISAGREES),
        ("retention", lambda: made.retention(tags=SHORT_LIVED), "Possessive endings (POS)", DISAGREES),
        ("retention", lambda: made.retention(tags=OTHER_TAGS), "Possessive endings (POS)", NOT_MEASURED),
        ("needle", lambda: made.needle(0.0), "Needle: with the question after", UNDECIDED),
        ("needle", lambda: made.needle(0.3), "Needle: with the question before", AGREES),
        ("extrapolation", lambda: made.extrapolation(0.5), "TOVA with 512 tokens and compressed", DISAGREES),
        ("extrapolation", lambda: made.extrapolation(lead=-0.05), "There it predicts better", DISAGREES),
        ("extrapolation", lambda: made.extrapolation(lead=0.0), "The same with cache positions: TOVA pre", UNDECIDED),
    ],
)
def test_verdicts_of_the_others(tmp_path, name, lines, start, expected):
    assert outcomes(of(tmp_path, name, lines(), start), start) - {NOT_MEASURED} == {expected} - {NOT_MEASURED}


def test_a_running_average_is_over_the_blocks_that_end_in_time():
    one = stream([{"nats": [1000.0, 3000.0, 9000.0], "tokens": [1000, 1000, 1000]}])
    found = {tokens: one.until(tokens).value for tokens in (10, 1999, 2000, 2999, 3000, 9000)}
    assert found == {10: 1, 1999: 1, 2000: 2, 2999: 2, 3000: pytest.approx(13 / 3), 9000: pytest.approx(13 / 3)}


def test_speed_is_decided_from_turns(tmp_path):
    def write(result: dict[str, Any]) -> dict[str, Verdict]:
        (tmp_path / "throughput.json").write_text(json.dumps(result))
        return verdicts(read_records(tmp_path, CHECKS), "At ")

    slow = write(made.throughput({256: 2.0, 512: 1.5, 1024: 1.2, 2048: 0.9, 4096: 1.0}))
    assert slow["At 1/8 of the context throughput is at least 4.8 times the full model's"].outcome == DISAGREES
    verdict = slow["At equal memory a smaller state decodes faster"]
    assert [part.outcome for part in verdict.parts] == [AGREES] * 3 + [DISAGREES]
    assert verdict.outcome == DISAGREES
    result = made.throughput()
    for row in result["memory"]["rows"]:
        row["relative"] = row["timed"] = None
    verdict = write(result)["At equal memory a smaller state decodes faster"]
    assert verdict.outcome == NOT_MEASURED and "--largest" in verdict.note


def test_a_judge_that_prefers_the_first_text_says_nothing(tmp_path):
    text = "Stories: the full model wins more often than TOVA with 256 tokens"
    (part,) = of(tmp_path, "generation_judge", made.judgements({256: (0, 50, 0)}), text)[text].parts
    assert (part.value, part.documents, part.outcome) == (0.0, 50, UNDECIDED)


def test_verdicts_are_shares_of_the_pairs(tmp_path):
    made.write(tmp_path / "generation_judge.jsonl", "generation_judge", made.judgements({300: (10, 25, 15)}))
    (row,) = verdicts_of(read_records(tmp_path, CHECKS))
    assert row == {"budget": 300, "pairs": 50, "win": 20.0, "tie": 50.0, "loss": 30.0, "paper": None}


# ---------------------------------------------------------------- what is missing


def test_missing_and_incomplete_results_are_named(tmp_path):
    lines = made.language_modeling(count=3, others=3)
    made.write(tmp_path / "language_modeling.jsonl", "language_modeling", lines, lack=60)
    result = CliRunner().invoke(app, [str(tmp_path), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "language_modeling: 123 of 183 planned results are there" in result.output
    for name in ("report.html", "report.md", "report.json"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "language_modeling: 123 of 183 planned results are there" in text
        for other in {*CHECKS, THROUGHPUT} - {"language_modeling"}:
            assert f"{other}: " in text, (name, other)
    found = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    reasons = {one["text"]: one["note"] for one in found["claims"] if one["verdict"] == NOT_MEASURED}
    assert reasons["Recent tokens are 73 to 76 % of what TOVA keeps"] == "there is no retention.jsonl"
    assert "judge" in reasons["Stories: with 1,024 tokens most pairs are ties"]
    partly = next(one for one in found["claims"] if one["text"].startswith("Window is worse than reading"))
    assert partly["verdict"] == AGREES, "what is there is decided"


def test_results_of_other_weights_do_not_count_and_are_told_apart(tmp_path):
    path = tmp_path / "language_modeling.jsonl"
    made.write(
        path,
        "language_modeling",
        made.language_modeling(count=3, others=3),
        model={**made.MODEL, "model_sha256": "f" * 16},
    )
    made.write(path, "language_modeling", made.language_modeling(count=4, others=4))
    made.write(
        tmp_path / "retention.jsonl",
        "retention",
        made.retention(),
        model={**made.MODEL, "model_sha256": "e" * 16},
    )
    records = read_records(tmp_path, CHECKS)
    assert len(records.lines("language_modeling")) == 61 * 4
    assert different_models(origins(records))
    made.write(tmp_path / "retention.jsonl", "retention", made.retention())
    assert not different_models(origins(read_records(tmp_path, CHECKS)))
    other = {**made.MODEL, "model_sha256": "d" * 16, "dtype": "bfloat16"}
    made.write(tmp_path / "needle.jsonl", "needle", made.needle(), model=other)
    assert not different_models(origins(read_records(tmp_path, CHECKS))), "weights of another dtype have another hash"


def test_reading_changes_nothing_and_waits_for_nobody(tmp_path):
    """A run may be under way: its lock is held, and its last line has no end yet."""
    path = tmp_path / "needle.jsonl"
    made.write(path, "needle", made.needle())
    with path.open("ab") as file:
        file.write(b'{"kind": "needle result", "exp')
    before = path.read_bytes()
    with filelock.FileLock(tmp_path / ".needle.jsonl.lock"):
        records = read_records(tmp_path, CHECKS)
    assert len(records.lines("needle")) == len(made.needle())
    assert path.read_bytes() == before


# ---------------------------------------------------------------- what is written


@pytest.mark.exhaustive
def test_equal_results_make_equal_bytes(results, written, tmp_path):
    run(results, tmp_path)
    names = sorted(path.name for path in written.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes(), name


@pytest.mark.exhaustive
def test_there_is_a_picture_for_every_figure(written):
    pictures = {path.stem for path in written.glob("*.png")}
    assert pictures >= {*(f"figure_{number}" for number in range(3, 10)), "table_1", "table_3", "table_5"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written.glob("*.png"))
    assert all(path.stat().st_size < 2**20 for path in written.iterdir()), "each is committed"


@pytest.mark.exhaustive
def test_no_text_of_the_data_and_no_place_of_a_machine_is_written(results, written):
    assert made.SECRET in (results / "needle.jsonl").read_text(), "else this says nothing"
    for path in written.iterdir():
        content = path.read_bytes()
        for hidden in (made.SECRET, "/home/", "someone", "C:\\\\", "judge.example", str(results)):
            assert hidden.encode() not in content, (path.name, hidden)
    text = (written / "report.html").read_text(encoding="utf-8")
    assert "pg19_test" in text and "squality" in text, "the last part of a path stays"


class Page(html.parser.HTMLParser):
    """What a browser would have to do with a page."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.exhaustive
def test_the_page_is_whole_and_loads_nothing(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and not page.open
    assert page.all("html") == [{"lang": "en"}] and len(page.all("title")) == len(page.all("h1")) == 1
    for attributes in (attributes for _, attributes in page.tags):
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), value
    assert not page.all("script") and not page.all("link") and "url(" not in text and "@import" not in text
    pictures = page.all("img")
    assert len(pictures) == len(list(written.glob("*.png")))
    assert all(picture["alt"] for picture in pictures)
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {link["href"] for link in page.all("a")} <= {f"#{one}" for one in ids}
    assert all(table for table in page.all("th") if table.get("scope"))
    assert "small <b>&" in page.words and not page.all("b"), "names are shown as they are, not as markup"


@pytest.mark.exhaustive
def test_the_page_names_every_claim_with_its_verdict(written):
    words = Page((written / "report.html").read_text(encoding="utf-8")).words
    found = json.loads((written / "report.json").read_text(encoding="utf-8"))
    assert [one["text"] for one in found["claims"]] == [claim.text for claim in CLAIMS]
    assert {one["verdict"] for one in found["claims"]} <= set(OUTCOMES)
    assert sum(found["counts"].values()) == sum(claim.is_papers for claim in CLAIMS)
    short = (written / "report.md").read_text(encoding="utf-8")
    for one in found["claims"]:
        assert one["text"] in words
        assert f"| {one['text']} | **{one['verdict']}** |" in short
    sections = {one["section"] for one in found["claims"]}
    assert sections >= {"3.1", "3.2", "3.3", "3.4", "3.5", "3.6"}


@pytest.mark.exhaustive
def test_tables_for_programs_have_every_setting(written):
    found = json.loads((written / "report.json").read_text(encoding="utf-8"))
    (table,) = found["tables"]["language_modeling"]
    rows = {(row["policy"], row["budget"]): row for row in table["rows"]}
    assert len(rows) == 61
    for policy in published.PERPLEXITY:
        row = rows[policy, 512]
        assert row["perplexity"] == pytest.approx(row["paper"], rel=1e-6)
        assert row["paper_above_full"] == pytest.approx(row["above_full"], abs=1e-6)
    origin = {one["name"]: one for one in found["origins"]}
    assert set(origin) == {*CHECKS, THROUGHPUT}
    assert origin["needle"]["seconds"] == pytest.approx(1.5 * 180)
    assert origin["needle"]["facts"]["model"] == made.MODEL["model_sha256"]
    assert origin["needle"]["documents"]["512/0.5/3"] == f"{made.hash_of('512/0.5/3'):016x}"


@pytest.mark.exhaustive
def test_markdown_stays_a_table(written):
    lines = (written / "report.md").read_text(encoding="utf-8").splitlines()
    for above_, line in zip(lines, lines[1:], strict=False):
        if above_.startswith("|") and line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", above_)), line


def test_settings_lose_their_places():
    settings = {"checkpoint": "a/b/ckpt/", "data": ["x/pg19_test", "C:\\data\\qasper"], "policy": "~/mine.py:Mine:a=1"}
    expected = {"checkpoint": "ckpt", "data": ["pg19_test", "qasper"], "policy": "mine.py:Mine:a=1"}
    assert shown({**settings, "url": "http://host:1/v1", "name": "512/0.5/3", "n": 3}) == {
        **expected, "url": "v1", "name": "512/0.5/3", "n": 3
    }  # fmt: skip


def test_ours_are_solid_and_filled_and_the_papers_dashed_hollow_and_grey():
    axes = canvas()[1][0]
    ours(axes, "tova", [(64, 2.0, 0.1), (128, 1.0, None), (256, None, None)])
    papers(axes, "tova", [(64, 2.0), (128, 1.5), (256, None)])
    mine, theirs = axes.lines[0], axes.lines[-1]
    assert mine.get_linestyle() == "-" and mine.get_markerfacecolor() == mine.get_color() != theirs.get_color()
    assert theirs.get_linestyle() == "--" and theirs.get_markerfacecolor() == "none" and theirs.get_color() == "0.55"
    assert [len(line.get_xdata()) for line in (mine, theirs)] == [2, 2]


def test_a_legend_below_names_what_is_in_any_panel_once():
    figure, (left, right) = canvas(2)
    for axes, policies in ((left, ("tova", "h2o")), (right, ("h2o", "window"))):
        for policy in policies:
            ours(axes, policy, [(64, 2.0, 0.1)])
    legend_below(figure, 3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["TOVA", "H2O", "Window"]
    assert legend.get_texts()[0].get_fontsize() >= left.xaxis.get_ticklabels()[0].get_fontsize()


def test_every_policy_of_the_paper_has_a_look_of_its_own():
    assert set(COLORS) == set(LABELS) == set(MARKERS)
    assert len(set(COLORS.values())) == len(set(MARKERS.values())) == len(LABELS)


def test_figure_3_tells_apart_what_is_near_the_full_model(monkeypatch):
    """Perplexities of 21.98 and 21.91 beside a full model's 21.79: a twentieth of the panel's height or more."""
    shown = []
    monkeypatch.setattr(language_modeling, "png", lambda figure: shown.append(figure) or b"")
    apart = {"full": [0.0, 0.0], "tova": [0.31, 0.0088], "h2o": [0.42, 0.0055], "window": [1.8, math.inf]}
    numbers = [(policy, 64 * 32**at, nats) for policy, both in apart.items() for at, nats in enumerate(both)]
    rows = [
        {"policy": policy, "budget": budget, "perplexity": 21.79 * math.exp(nats), "nll_stderr": 0.04, "paper": None}
        | {"above_full": nats, "above_full_stderr": 0.001, "paper_above_full": None}
        for policy, budget, nats in numbers
    ]
    _figure_3(rows)
    right = shown[0].axes[1]
    places = [
        right.transAxes.inverted().transform(right.transData.transform((2048, nats)))[1] for nats in (0.0088, 0.0055)
    ]
    assert places[0] - places[1] > 0.05
    assert right.get_ylim()[0] < 0.0055 and right.get_ylim()[1] > 1.8


def test_a_report_begins_with_its_findings():
    """Each outcome with its numbers, before the method and the table; what is not leading is counted in Markdown."""
    leads, other = next(claim for claim in CLAIMS if claim.text in LEADING), CLAIMS[1]
    assert other.text not in LEADING and set(LEADING) <= {claim.text for claim in CLAIMS}

    def part(what: str, value: float, outcome: str, errors: float) -> Part:
        return Part(what, value, 0.1, "above 3.5", outcome, 9, errors, 4.94)

    wrong = Verdict(DISAGREES, "nats", (part("k = 8", 1.3, DISAGREES, -22.0), part("k = 4", 9.0, AGREES, 55.0)))
    right = Verdict(AGREES, "nats", (part("k = 8", 4.25, AGREES, 7.5),))
    ours_ = next(claim for claim in CLAIMS if not claim.is_papers)
    lacking = not_measured("not measured: k = 2")
    decided = [Decided(leads, wrong), Decided(other, wrong), Decided(CLAIMS[2], right), Decided(ours_, right)]
    report = Report("toy", [*decided, Decided(CLAIMS[3], lacking)], [], [], [], [])
    assert [(one.title, len(one.leading), len(one.others)) for one in findings(report)] == [
        ("What agrees: 1 claim", 1, 0), ("What disagrees: 2 claims", 1, 1), ("What the paper does not ask", 1, 0),
        ("What is not measured", 1, 0),
    ]  # fmt: skip
    said = (
        f"{leads.text}. Measured at k = 8: 1.30 ± 0.10 (nats); the claim needs a number above 3.5, the paper has 4.94. "
        "It holds in 1 of 2 comparisons."
    )
    markdown, words = markdown_of(report), Page(page_of(report)).words
    for text, table in ((markdown, "| section |"), (words, "Claims of the paper\n")):
        assert 0 < text.index("4.25 ± 0.10") < text.index(said) < text.index("A claim is decided") < text.index(table)
    assert "* 1 more is in the table of claims." in markdown and words.count(f"{other.text}. Measured at") == 1
    assert f"{CLAIMS[3].text}. Why: there is no result at k = 2." in words


def test_memory_saved_is_the_rest_of_what_the_full_model_takes():
    full = {"policy": "full", "budget": 4096, "state_bytes": 800}
    parts = [saved({"policy": "tova", "budget": 512, "state_bytes": size}, full, 512) for size in (100, 120)]
    assert [(part.value, part.outcome) for part in parts] == [(0.875, AGREES), (0.85, DISAGREES)]


def test_a_map_shows_a_token_from_its_own_step_to_the_one_before_it_goes():
    held = held_map(np.array([2, 2, 4]), np.arange(3))
    assert held.tolist() == [[True, True, False], [False, True, False], [False, False, True]]
    setting, _, numbers = made.retention()[-1]
    maps = [[{"setting": {**setting, "policy": policy}, **numbers}] for policy in ("tova", "window")]
    assert [len(_figure_8(lines)) for lines in maps] == [1, 0]


def test_a_map_is_read_as_it_was_written(tmp_path):
    freed = np.minimum(np.arange(made.CONTEXT) + 512, made.CONTEXT)
    made.write(tmp_path / "retention.jsonl", "retention", made.retention())
    records = read_records(tmp_path, CHECKS)
    (line,) = records.maps()
    assert unpack(line).shape == (3, 1, made.CONTEXT) and (unpack(line) == freed).all()
    assert line not in records.lines("retention"), "it has none of the numbers"


# ---------------------------------------------------------------- wrong files


def spoil(change: Callable[[dict], None]) -> Callable[[pathlib.Path], None]:
    """A change of the third line of a file of results."""

    def write(path: pathlib.Path) -> None:
        lines = path.read_text().splitlines()
        value = json.loads(lines[2])
        change(value)
        lines[2] = json.dumps(value)
        path.write_text("\n".join(lines) + "\n")

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (spoil(lambda line: line.pop("correct")), "line 3: 'correct' is missing; it must be true, false, a number"),
        (spoil(lambda line: line.update(correct="yes")), "line 3: 'correct' is \"yes\"; it must be true, false"),
        (spoil(lambda line: line.update(correct=math.inf)), "line 3: 'correct' is inf; it must be true, false"),
        (spoil(lambda line: line.update(seconds=None)), "line 3: 'seconds' is null; it must be a number"),
        (spoil(lambda line: line.pop("sha256")), "line 3: 'sha256' is missing; it must be a text"),
        (spoil(lambda line: line["setting"].update(budget=0)), "'setting.budget' is 0; it must be a whole number from"),
        (
            spoil(lambda line: line["setting"].update(order="aside")),
            "'setting.order' is \"aside\"; it must be after or",
        ),
        (spoil(lambda line: line.update(setting=3)), "line 3: 'setting' is 3; it must be an object"),
        (spoil(lambda line: line.update(kind="other")), "line 3 is no needle run or needle result"),
        (lambda path: path.write_text("{}\n"), "line 1 is no needle run"),
        (lambda path: path.write_text(""), "hold no run"),
    ],
)
def test_wrong_results_are_named_with_their_line(tmp_path, write, message):
    path = tmp_path / "needle.jsonl"
    made.write(path, "needle", made.needle())
    write(path)
    result = CliRunner().invoke(app, [str(tmp_path), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "needle.jsonl" in result.stderr and message in result.stderr
    assert not (tmp_path / "out").exists()


def timed(**memory) -> str:
    return json.dumps({"experiment": "throughput", "settings": {}, "versions": {}, "model_sha256": {}, **memory})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("throughput.json", "{", "no result of python -m experiments.throughput"),
        ("throughput.json", timed(memory={"rows": [{}]}), "row 1 of memory: 'dtype' is missing; it must be a text"),
        ("throughput.json", timed(memory=None), "'memory' is null; it must be an object"),
        ("throughput.json", timed(memory={"rows": [1]}), "'rows' is [1]; it must be a list of objects"),
        ("other.txt", "", "holds none of language_modeling"),
    ],
)
def test_wrong_folders_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    result = CliRunner().invoke(app, [str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 2 and message in result.stderr
    result = CliRunner().invoke(app, [str(tmp_path / "absent")], catch_exceptions=False)
    assert result.exit_code == 2 and "which is no folder" in result.stderr


def test_claims_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CLAIMS[0].text = "other"  # type: ignore[misc]
