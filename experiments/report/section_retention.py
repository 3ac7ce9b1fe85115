"""Which tokens survive: Figures 8 and 9, Table 5."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments import published
from experiments.estimates import columns, mean
from experiments.paired import by, mean_of
from experiments.report.content import Column, Grid, Lines, Picture, Row, Section
from experiments.report.drawing import GREY, canvas, key_to_papers, legend, png
from experiments.report.records import Records
from experiments.retention.maps import unpack
from experiments.retention.tables import summarise

NAME = "retention"
FIRST = 25  # tokens of a text that Figure 9 follows
PIXELS = 220  # of a map, a side

COLUMNS = (
    Column("policy", "policy"),
    Column("budget", "k"),
    Column("books", "texts"),
    Column("recent", "recent, %", 1, 100.0),
    Column("paper_recent", "paper, %"),
    Column("first_held", "first token held at the end, % of layers", 1, 100.0),
    Column("first", "steps of the first token", 0),
    Column("others_life", "of tokens 1 to 24", 0),
    Column("life", "of all tokens", 0),
    Column("paper_life", "paper", 0),
    Column("lost", "attention on what was just freed, %", 4, 100.0),
)


def make(records: Records) -> Section | None:
    """The section of these results, and of the records that were written whole; None where there are none."""
    lines = records.lines(NAME)
    if not lines:
        return None
    rows = rows_of(lines)
    lives = lives_of(rows)
    shown = [Column("tag", "tag"), Column("count", "tokens")]
    for budget in sorted({row["budget"] for row in lives}):
        shown += [Column(f"life_{budget}", f"k = {budget}", 0), Column(f"paper_{budget}", "paper", 0)]
    grids = [
        Grid("What is kept (Figure 9)", COLUMNS, rows),
        Grid("Mean steps that tokens are kept under TOVA, by part of speech (Table 5)", shown, _by_tag(lives)),
    ]
    pictures = [_figure_9(lines), _table_5(lives)]
    mapped = _figure_8(records.maps())
    about = (
        "One segment of each text is read from an empty state. Recent are tokens among the last k; a token's steps are "
        "those from its own to when it is freed or the text ends, a mean over layers."
    )
    return Section(NAME, "Which tokens survive (Figures 8 and 9, Table 5)", about, grids, [*mapped, *pictures])


def rows_of(lines: Lines) -> list[Row]:
    """One row for every policy and budget."""
    low, high = published.RECENT
    groups, rows = by(lines, "policy", "budget"), []
    for row in summarise(lines):
        some, is_tova = groups[row["policy"], row["budget"]], row["policy"] == "tova"
        size = row["budget"] * published.CONTEXT // some[0]["setting"]["segment"]
        rows.append(
            {
                **row,
                **columns("others_life", mean([_mean(line["first"][1:FIRST]) for line in some])),
                "size": size,  # of the paper's context
                "paper_recent": f"{100 * low:.0f} to {100 * high:.0f}" if is_tova else None,
                "paper_life": published.life(None, size) if is_tova else None,
            }
        )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def lives_of(rows: Sequence[Row]) -> list[Row]:
    """One row for every tag and budget under TOVA."""
    return [
        {
            **{"tag": tag, "budget": row["budget"], "count": found["tokens"]},
            **{"life": found["life"], "life_stderr": found["life_stderr"]},
            "paper": published.life(tag, row["size"]),
        }
        for row in rows
        if row["policy"] == "tova"
        for tag, found in row["tags"].items()
    ]


def _by_tag(lives: Sequence[Row]) -> list[Row]:
    rows: dict[str, dict] = {}
    for row in lives:
        one = rows.setdefault(row["tag"], {"tag": row["tag"], "count": row["count"]})
        budget = row["budget"]
        one |= {
            f"life_{budget}": row["life"],
            f"life_{budget}_stderr": row["life_stderr"],
            f"paper_{budget}": row["paper"],
        }
    most = max((row["budget"] for row in lives), default=0)
    return sorted(rows.values(), key=lambda row: -(row.get(f"life_{most}") or 0.0))


def _figure_8(maps: Lines) -> list[Picture]:
    """The first map of TOVA, of four layers."""
    mapped = [line for line in maps if line["setting"]["policy"] == "tova"]
    if not mapped:
        return []
    line = mapped[0]
    freed = unpack(line)[:, 0]  # [L, T]
    layers = sorted({0, len(freed) // 3, 2 * len(freed) // 3, len(freed) - 1})
    figure, panels = canvas(len(layers), width=3.2, height=3.4)
    steps = np.unique(np.linspace(0, freed.shape[1] - 1, PIXELS).astype(int))
    for axes, layer in zip(panels, layers, strict=True):
        born, end = steps[:, None], freed[layer][steps][:, None]
        held = (born <= steps[None]) & (steps[None] < end)  # [token, step]
        edge = int(steps[-1])
        axes.imshow(
            held, cmap="Blues", origin="lower", aspect="auto", extent=(0, edge, 0, edge), interpolation="nearest"
        )
        axes.grid(False)
        axes.set_title(f"layer {layer}")
        axes.set_xlabel("step")
    panels[0].set_ylabel("token")
    return [
        Picture(
            "figure_8",
            f"Figure 8: which tokens are held at every step, k = {line['setting']['budget']}, one text, four layers.",
            "Dots below the diagonal, one for every token that a step can still see: recent ones and old",
            png(figure),
        )
    ]


def _figure_9(lines: Lines) -> Picture:
    groups = [(budget, some) for (policy, budget), some in by(lines, "policy", "budget").items() if policy == "tova"]
    figure, (left, right) = canvas(2, width=5.2, height=3.8)
    for number, (budget, some) in enumerate(sorted(groups, key=lambda pair: pair[0])):
        count = min(FIRST, *(len(line["first"]) for line in some), FIRST)
        steps = [mean([line["first"][place] for line in some]) for place in range(count)]
        values, errors = (
            [one.value for one in steps],
            [one.stderr if one.stderr == one.stderr else 0.0 for one in steps],
        )
        left.errorbar(
            range(count),
            values,
            yerr=errors,
            marker="o",
            markersize=3,
            capsize=2,
            color=f"C{number}",
            label=f"k = {budget}",
        )
        recent = mean_of(some, "recent")
        right.bar(
            number,
            100 * recent.value,
            yerr=100 * recent.stderr if recent.documents > 1 else 0.0,
            capsize=2,
            color=f"C{number}",
        )
    left.set_xlabel("token")
    left.set_ylabel("steps kept, mean over layers")
    legend(left)
    low, high = (100 * one for one in published.RECENT)
    for bound in (low, high):
        right.axhline(bound, color=GREY, linestyle="--", linewidth=1)
    right.plot([], [], color=GREY, linestyle="--", linewidth=1, label=f"paper: {low:.0f} to {high:.0f} %")
    right.set_xticks(range(len(groups)), [f"k = {budget}" for budget in sorted(budget for budget, _ in groups)])
    right.set_ylabel("recent tokens, % of those kept")
    legend(right)
    return Picture(
        "figure_9",
        "Figure 9: how long the first 25 tokens are kept under TOVA; on the right, how much of what is kept is recent.",
        "Steps kept by place in the text, a line for each multi-state size, and bars of the share of recent tokens",
        png(figure),
    )


def _table_5(lives: Sequence[Row]) -> Picture:
    budgets = sorted({row["budget"] for row in lives}) or [0]
    figure, panels = canvas(1, len(budgets), width=10.0, height=2.5)
    known = [row for row in lives if row["paper"] is not None]
    tags = [row["tag"] for row in sorted(known, key=lambda row: -row["paper"]) if row["budget"] == budgets[0]]
    for axes, budget in zip(panels, budgets, strict=True):
        mine = {row["tag"]: row for row in known if row["budget"] == budget}
        shown = [tag for tag in tags if tag in mine]
        errors = [
            mine[tag]["life_stderr"] if mine[tag]["life_stderr"] == mine[tag]["life_stderr"] else 0.0 for tag in shown
        ]
        axes.errorbar(shown, [mine[tag]["life"] for tag in shown], yerr=errors, fmt="o", capsize=2, label="ours")
        axes.plot(shown, [mine[tag]["paper"] for tag in shown], "o", color=GREY, markerfacecolor="none", zorder=1)
        key_to_papers(axes)
        axes.set_ylabel("steps kept")
        axes.set_title(f"k = {budget}", fontsize="small")
    legend(panels[0])
    return Picture(
        "table_5",
        "Table 5 as a picture: mean steps that tokens of a part of speech are kept under TOVA, the paper's hollow.",
        "Points of steps kept by part of speech, a panel for each multi-state size",
        png(figure),
    )
