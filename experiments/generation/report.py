"""Claims on long stories: Figure 6; and the section of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from experiments.common import published
from experiments.common.claims import Claim, Part, Verdict, above, below, every, inside, not_measured
from experiments.common.draws import common, full, select
from experiments.common.estimates import Estimate, mean, mean_of, minus, over
from experiments.common.figures import GREY, Column, Grid, Lines, Picture, Row, Section, canvas, legend, png
from experiments.common.records import JUDGE, Records
from experiments.generation.judging import DROPPED, outcomes
from experiments.generation.tables import summarise

NAME = "generation"
Judged = dict[str, str]  # by document, a win, tie or loss of TOVA
Test = Callable[[str, Estimate, Estimate], Part]  # of TOVA's lengths and the full model's
COLUMNS = (
    Column("policy", "policy"),
    Column("budget", "k"),
    Column("stories", "stories"),
    Column("tokens", "tokens", 0),
    Column("tokens_above_full", "more than full's", 0),
    Column("paper", "paper, LLaMA-2-13B", 0),
    Column("ended", "ended by itself, %", 0, 100.0),
    Column("distinct_1", "distinct-1", 3),
    Column("distinct_2", "distinct-2", 3),
    Column("distinct_4", "distinct-4", 3),
    Column("nll", "nats per token under full", 3),
    Column("agreement", "full's choice, %", 1, 100.0),
    Column("same_until", "tokens as full's", 0),
)
JUDGED = (
    Column("budget", "k"),
    Column("pairs", "pairs"),
    Column("win", "TOVA wins, %", 0),
    Column("tie", "tie, %", 0),
    Column("loss", "full wins, %", 0),
    Column("paper", "paper: wins, tie, full wins, %"),
)


def judged(records: Records, budget: int) -> Judged:
    """What the judge said at a budget: a win or a loss only if both orders of the texts agree.

    Pairs that it has seen in one order only do not count yet.
    """
    found = outcomes(select(records.lines(JUDGE), policy="tova", budget=budget).values())
    return {document: one for document, one in found.items() if one != DROPPED}


def said(outcomes: Sequence[str], wanted: str) -> Estimate:
    """The share of pairs with an outcome."""
    return mean([float(one == wanted) for one in outcomes])


def topline_preferred(budget: int, records: Records) -> Verdict:
    """Whether the full model wins more often than TOVA does."""
    outcomes = list(judged(records, budget).values())
    if not outcomes:
        return not_measured(_why(records, budget))
    wins, _, losses, _ = published.STORIES[budget]
    more = minus(said(outcomes, "loss"), said(outcomes, "win"))
    return every([above(f"k = {budget}", more, 0.0, (losses - wins) / 100)], "share of pairs")


def mostly_ties(budget: int, records: Records) -> Verdict:
    """Whether more than half of the pairs are ties."""
    outcomes = list(judged(records, budget).values())
    if not outcomes:
        return not_measured(_why(records, budget))
    ties = published.STORIES[budget][1] / 100
    return every([above(f"k = {budget}", said(outcomes, "tie"), 0.5, ties)], "share of pairs")


def ties_grow(records: Records) -> Verdict:
    """Whether ties become more frequent with the budget."""
    parts, missing = [], []
    for small, large in ((256, 512), (512, 1024)):
        first, second = judged(records, small), judged(records, large)
        both = [document for document in first if document in second]
        if both:
            paper = (published.STORIES[large][1] - published.STORIES[small][1]) / 100
            more = minus(said([second[one] for one in both], "tie"), said([first[one] for one in both], "tie"))
            parts.append(above(f"k = {large} against {small}", more, 0.0, paper))
        else:
            missing.append(f"k = {large} against {small}")
    return every(parts, "share of pairs", missing=missing) if parts else not_measured(_why(records, 512))


def _why(records: Records, budget: int) -> str:
    return f"the judge saw no pair at k = {budget}" if records.lines(JUDGE) else records.why(JUDGE)


def lengths(budget: int, test: Test, unit: str, records: Records) -> Verdict:
    """Compares the lengths of TOVA's stories with those of the full model's."""
    lines = records.lines(NAME)
    if not lines:
        return not_measured(records.why(NAME))
    ours, theirs = common(select(lines, ("mode",), policy="tova", budget=budget), full(lines))
    if not ours:
        return not_measured(f"{NAME}.jsonl has no result of k = {budget}")
    cut = [sum(not line.get("ended") for line in lines) for lines in (ours, theirs)]
    if any(cut):
        most = max(line["setting"]["max_new_tokens"] for line in ours)
        counted = f"{cut[0]} of TOVA's and {cut[1]} of the full model's {len(ours)} stories"
        return not_measured(f"{counted} were cut at {most:,} tokens: how long they are is not known")
    return every([test(f"k = {budget}", mean_of(ours, "tokens"), mean_of(theirs, "tokens"))], unit)


def _shorter(what: str, ours: Estimate, whole: Estimate) -> Part:
    paper = published.STORIES[int(what.removeprefix("k = "))][3] - published.FULL_STORY
    return below(what, minus(ours, whole), 0.0, paper)


def _as_long(what: str, ours: Estimate, whole: Estimate) -> Part:
    return inside(what, over(ours, whole), 0.99, 1.01, 1.0)


CLAIMS = (
    Claim("3.3", "Stories: the full model wins more often than TOVA with 256 tokens", partial(topline_preferred, 256)),
    Claim("3.3", "Stories: the full model wins more often than TOVA with 512 tokens", partial(topline_preferred, 512)),
    Claim("3.3", "Stories: with 1,024 tokens most pairs are ties", partial(mostly_ties, 1024)),
    Claim("3.3", "Stories: ties become more frequent with k", ties_grow),
    Claim(
        "3.3", "Stories with 256 tokens are shorter than the full model's", partial(lengths, 256, _shorter, "tokens")
    ),
    Claim(
        "3.3", "Stories with 512 tokens are shorter than the full model's", partial(lengths, 512, _shorter, "tokens")
    ),
    Claim(
        "3.3",
        "Stories with 1,024 tokens are as long as the full model's (within 1 %)",
        partial(lengths, 1024, _as_long, "length over the full model's"),
    ),
)


def make(records: Records) -> Section | None:
    """The section of these results, None where there are none; a judge's verdicts are in it if there are any."""
    lines = records.lines(NAME)
    if not lines:
        return None
    about = (
        "Stories are drawn with the same random numbers under every state, so that texts differ only by what was "
        "forgotten. Each is then read by the full model. The paper's judge compares two stories in both orders."
    )
    rows, verdicts = rows_of(lines), verdicts_of(records)
    grids = [Grid("Stories by multi-state size (Figure 6)", COLUMNS, rows)]
    grids += [Grid("The judge's verdicts", JUDGED, verdicts)] if verdicts else []
    return Section(NAME, "Story generation (Figure 6)", about, grids, [_picture(rows, verdicts)])


def rows_of(lines: Lines) -> list[Row]:
    """One row for every policy and budget, with the paper's lengths."""
    rows = []
    for row in summarise(lines):
        theirs = published.STORIES.get(row["budget"]) if row["policy"] == "tova" else None
        paper = published.FULL_STORY if row["policy"] == "full" else theirs and theirs[3]
        rows.append({**row, "paper": paper})
    return rows


def verdicts_of(records: Records) -> list[Row]:
    """One row for every budget that a judge has seen."""
    budgets = sorted({line["setting"]["budget"] for line in records.lines("generation_judge")})
    rows = []
    for budget in budgets:
        found = list(judged(records, budget).values())
        if found:
            shares = {name: 100 * found.count(name) / len(found) for name in ("win", "tie", "loss")}
            paper = published.STORIES.get(budget)
            rows.append({"budget": budget, "pairs": len(found), **shares, "paper": _spell(paper) if paper else None})
    return rows


def _spell(paper: Sequence[int]) -> str:
    return ", ".join(map(str, paper[:3]))


def _picture(rows: Sequence[Row], verdicts: Sequence[Row]) -> Picture:
    figure, (left, middle, right) = canvas(3, width=4.0, height=4.2)
    _lengths(left, rows)
    _verdicts(middle, verdicts)
    places = range(len(rows))
    names = [_name(row) for row in rows]
    for number, value in enumerate(("distinct_4", "agreement")):
        heights = [row[value] or 0.0 for row in rows]
        errors = [_finite(row[f"{value}_stderr"]) for row in rows]
        label = {"distinct_4": "distinct-4", "agreement": "the full model's choice"}[value]
        right.bar([place + 0.4 * number - 0.2 for place in places], heights, 0.4, yerr=errors, capsize=2, label=label)
    right.set_xticks(places, names)
    right.set_ylabel("share")
    right.set_title("variety and agreement")
    right.set_ylim(0, 1.4)  # room for the legend
    legend(right, loc="upper left")
    return Picture(
        "figure_6",
        "Figure 6: length of stories and a judge's verdicts, ours filled, the paper's hollow and dashed; on the right "
        "what the paper has not.",
        "Bars of story lengths, of a judge's verdicts, and of variety and agreement, by multi-state size",
        png(figure),
    )


def _finite(value: float | None) -> float:
    return value if value is not None and value == value else 0.0


def _name(row: Row) -> str:
    return "full" if row["policy"] == "full" else f"k = {row['budget']}"


def _lengths(axes, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    errors = [_finite(row["tokens_stderr"]) for row in rows]
    axes.bar(
        [place - 0.2 for place in places], [row["tokens"] for row in rows], 0.4, yerr=errors, capsize=2, label="ours"
    )
    hollow: dict[str, Any] = {"color": "none", "edgecolor": GREY, "linestyle": "--", "label": "paper, LLaMA-2-13B"}
    axes.bar([place + 0.2 for place in places], [row["paper"] or 0 for row in rows], 0.4, **hollow)
    axes.set_xticks(places, [_name(row) for row in rows])
    axes.set_ylabel("tokens of a story")
    axes.set_title("length")
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    legend(axes, loc="upper left")


def _verdicts(axes, verdicts: Sequence[Row]) -> None:
    mine = {row["budget"]: [row["win"], row["tie"], row["loss"]] for row in verdicts}
    budgets = sorted({*published.STORIES, *mine})
    colors = ("C2", "0.8", "C3")
    for place, budget in enumerate(budgets):
        for source, shift in ((mine.get(budget), -0.2), (published.STORIES.get(budget), 0.2)):
            low = 0.0
            for height, color in zip(source or (), colors, strict=False):
                look: dict[str, Any] = (
                    {"color": color}
                    if source is mine.get(budget)
                    else {"color": "none", "edgecolor": color, "linestyle": "--"}
                )
                axes.bar(place + shift, height, 0.38, bottom=low, **look)
                low += height
    for name, color in zip(("TOVA wins", "tie", "full model wins"), colors, strict=True):
        axes.bar(0, 0, color=color, label=name)
    axes.bar(0, 0, color="none", edgecolor=GREY, linestyle="--", label="paper, GPT-4")
    axes.set_xticks(range(len(budgets)), [f"k = {budget}" for budget in budgets])
    axes.set_ylabel("% of pairs")
    axes.set_ylim(0, 140)  # room for the legend
    axes.set_title("judge" if mine else "judge: not asked here")
    legend(axes)
