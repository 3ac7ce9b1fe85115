"""Perplexity against the multi-state size: Table 3, Figure 3, and how near predictions are to the full model's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments import published
from experiments.language_modeling.tables import summarise
from experiments.report.content import Column, Grid, Lines, Picture, Row, Section
from experiments.report.drawing import budget_axis, canvas, key_to_papers, label, legend, ours, papers, plain_log, png
from experiments.report.records import Records

NAME = "language_modeling"
FIGURE_3 = ("baseline", "window", "window:sinks=4", "h2o", "tova")
TOP = 6.0  # times the full model's perplexity, where the axis of a ratio ends

COLUMNS = (
    Column("policy", "policy"),
    Column("budget", "k"),
    Column("segments", "segments"),
    Column("perplexity", "perplexity", 2),
    Column("paper", "paper, LLaMA-2-7B", 2),
    Column("above_full", "nats above full", 4),
    Column("paper_above_full", "paper", 4),
    Column("kl", "KL from full, nats", 4),
    Column("agreement", "top-1 agreement, %", 1, 100.0),
)


def make(records: Records) -> Section | None:
    """The section of these results, None where there are none."""
    lines = records.lines(NAME)
    if not lines:
        return None
    rows = rows_of(lines)
    about = (
        "Books in segments of the context length, each read from an empty state. Standard errors are over segments, "
        "and of differences over the same segments. The short context is the same model on pieces of k tokens."
    )
    grid = Grid("Perplexity of PG-19 by policy and multi-state size (Table 3)", COLUMNS, rows)
    pictures = [_figure_3(rows), _table_3(rows), _fidelity(rows)]
    return Section(NAME, "Language modelling (Table 3, Figure 3)", about, [grid], pictures)


def rows_of(lines: Lines) -> list[Row]:
    """One row for every policy and budget, with the paper's numbers at the same share of the context."""
    segment = max(line["setting"]["segment"] for line in lines)
    rows = []
    for row in summarise([line for line in lines if line["setting"]["segment"] == segment]):
        size = row["budget"] * published.CONTEXT / segment
        paper = published.perplexity(row["policy"], int(size)) if size == int(size) else None
        above = None if paper is None else math.log(paper / published.FULL_PERPLEXITY)
        rows.append({**row, "label": label(row["policy"]), "paper": paper, "paper_above_full": above})
    return rows


def _of(rows: Sequence[Row], policy: str) -> list[Row]:
    return sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["budget"])


def _budgets(rows: Sequence[Row]) -> list[int]:
    return sorted({row["budget"] for row in rows if row["policy"] != "full"})


def _perplexity_error(row: Row) -> float:
    return row["perplexity"] * row["nll_stderr"]


def _figure_3(rows: Sequence[Row]) -> Picture:
    figure, (left, right) = canvas(2, width=5.2, height=4.2)
    for policy in FIGURE_3:
        mine = _of(rows, policy)
        ours(left, policy, [(row["budget"], row["perplexity"], _perplexity_error(row)) for row in mine])
        papers(left, policy, [(row["budget"], row["paper"]) for row in mine])
        above = [
            (row["budget"], math.exp(row["above_full"]), _ratio_error(row)) for row in mine if row["above_full"] < 99
        ]
        ours(right, policy, above)
        papers(right, policy, [(row["budget"], _exp(row["paper_above_full"])) for row in mine])
    for row in _of(rows, "full"):
        left.axhline(row["perplexity"], color="black", linewidth=1, label="full model")
        left.axhline(published.FULL_PERPLEXITY, color="0.55", linestyle="--", linewidth=1)
    right.axhline(1.0, color="black", linewidth=1, label="full model")
    for axes, name in ((left, "perplexity"), (right, "perplexity over the full model's")):
        plain_log(axes)
        budget_axis(axes, _budgets(rows))
        axes.set_ylabel(name)
        key_to_papers(axes)
        legend(axes)
    least = min([published.FULL_PERPLEXITY, *(row["perplexity"] for row in rows)])
    highest = max((row["perplexity"] for row in rows if math.isfinite(row["perplexity"])), default=20.0)
    left.set_ylim(0.9 * least, 1.1 * min(highest, 12 * least))
    right.set_ylim(0.97, TOP)
    return Picture(
        "figure_3",
        "Figure 3: perplexity against the multi-state size, ours solid, the paper's LLaMA-2-7B dashed and grey. On the "
        f"right both are divided by their full model's; the paper's Window is beyond the axis ({_explosion()}).",
        "Lines of perplexity falling with the multi-state size, one for each policy, towards that of the full model",
        png(figure),
    )


def _explosion() -> str:
    ratios = [value / published.FULL_PERPLEXITY for value in published.PERPLEXITY["window"][:-1]]
    return f"{min(ratios):.0f} to {max(ratios):.0f} times"


def _ratio_error(row: Row) -> float:
    return math.exp(row["above_full"]) * row["above_full_stderr"]


def _exp(value: float | None) -> float | None:
    return None if value is None else math.exp(value)


def _table_3(rows: Sequence[Row]) -> Picture:
    figure, (mine, theirs) = canvas(2, width=5.2, height=4.2)
    for policy in dict.fromkeys(row["policy"] for row in rows if row["policy"] not in ("full", "window")):
        some = [row for row in _of(rows, policy) if row["above_full"] > 0]
        ours(mine, policy, [(row["budget"], row["above_full"], row["above_full_stderr"]) for row in some])
        color = {"color": "0.2"} if policy == "tova" else {}
        points = [(row["budget"], row["paper_above_full"] or None) for row in some]
        papers(theirs, policy, points, label=label(policy), **color)
    for axes, name in ((mine, "ours"), (theirs, "paper, LLaMA-2-7B")):
        axes.set_title(name)
        plain_log(axes)
        budget_axis(axes, _budgets(rows))
        axes.set_ylabel("nats per token above the full model")
        legend(axes)
    theirs.set_ylim(mine.get_ylim())
    return Picture(
        "table_3",
        "Table 3 as a picture: nats per token above the full model, of all policies but Window, on the same scale.",
        "Two panels of lines falling with the multi-state size, ours on the left, the paper's on the right",
        png(figure),
    )


def _fidelity(rows: Sequence[Row]) -> Picture:
    figure, (left, right) = canvas(2, width=5.2, height=4.2)
    for policy in dict.fromkeys(row["policy"] for row in rows if row["policy"] != "full"):
        mine = _of(rows, policy)
        ours(left, policy, [(row["budget"], row["kl"], row["kl_stderr"]) for row in mine])
        ours(right, policy, [(row["budget"], row["agreement"], row["agreement_stderr"]) for row in mine])
    plain_log(left)
    left.set_ylabel("KL divergence from the full model, nats per token")
    right.set_ylabel("share of tokens with the same likeliest next token")
    for axes in (left, right):
        budget_axis(axes, _budgets(rows))
        legend(axes)
    return Picture(
        "fidelity",
        "How near every policy's predictions are to the full model's on the same tokens; not in the paper.",
        "KL divergence falls and agreement rises with the multi-state size, for every policy",
        png(figure),
    )
