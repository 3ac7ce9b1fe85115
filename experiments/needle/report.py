"""Claims on a fact far back, which follow-up work found lost (the paper has none); and the section of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from experiments.common.claims import Claim, Verdict, above, every, not_measured
from experiments.common.draws import Draws, common, full, select, sizes, values_of
from experiments.common.estimates import by, mean_of, minus
from experiments.common.figures import Column, Grid, Lines, Picture, Row, Section, canvas, legend_below, png
from experiments.common.records import Records
from experiments.needle.tables import summarise, summarise_depths
from msrnn_jax.io.journal import Line

NAME = "needle"
COLUMNS = (
    Column("policy", "policy"),
    Column("mode", "prompt"),
    Column("order", "question"),
    Column("length", "text, tokens"),
    Column("budget", "k"),
    Column("cases", "cases"),
    Column("correct", "found, %", 0, 100.0),
    Column("choice", "likelier than nine others, %", 0, 100.0),
    Column("nats", "nats of the answer", 2),
    Column("held_all", "held whole, % of layers", 0, 100.0),
)


def longer_than(lines: list[Line], budget: int) -> list[Line]:
    """Texts that do not fit into a budget."""
    return [line for line in lines if line["setting"]["length"] > budget]


def loses(records: Records) -> Verdict:
    """Whether TOVA finds the fact less often than the full model, when the question comes after the text."""
    return _at_all(
        records, "after", "share found, full less TOVA", lambda far, ours, order: (full(far, order=order), ours)
    )


def asked_before(records: Records) -> Verdict:
    """Whether TOVA finds the fact more often when the question comes before the text."""

    def pair(far: list[Line], ours: Draws, order: str) -> tuple[Draws, Draws]:
        del order
        setting = next(iter(ours.values()))["setting"]
        wanted = {"policy": "tova", "budget": setting["budget"], "order": "before"}
        return select(far, ("mode",), **wanted), ours

    return _at_all(records, "after", "share found, before less after", pair)


def _at_all(
    records: Records, order: str, unit: str, pair: Callable[[list[Line], Draws, str], tuple[Draws, Draws]]
) -> Verdict:
    """Decides at every budget of TOVA whether the first of a pair finds more, on texts that do not fit into it."""
    lines, parts = records.lines(NAME), []
    for mode in values_of(lines, "mode"):
        for budget in sizes(lines, "tova", mode=mode, order=order):
            one_mode = [
                line for line in lines if line["setting"]["mode"] == mode or line["setting"]["policy"] == "full"
            ]
            far = longer_than(one_mode, budget)
            ours = select(far, ("mode",), policy="tova", budget=budget, order=order)
            first, second = common(*pair(far, ours, order)) if ours else ([], [])
            if first:
                what = f"k = {budget}, {mode}" if mode else f"k = {budget}"
                parts.append(above(what, minus(mean_of(first, "correct"), mean_of(second, "correct")), 0.0))
    return every(parts, unit) if parts else not_measured(records.why(NAME))


CLAIMS = (
    Claim(
        "5.1",
        "Needle: with the question after the text, TOVA finds the fact less often than the full model",
        loses,
        False,
    ),
    Claim(
        "5.1",
        "Needle: with the question before the text, TOVA finds it more often than with it after",
        asked_before,
        False,
    ),
)


def make(records: Records) -> Section | None:
    """The section of these results, None where there are none."""
    lines = records.lines(NAME)
    if not lines:
        return None
    about = (
        "A fact is put at some depth of a text and asked for before or after it. What a bounded state has let go "
        "before the question comes is lost. The paper has no such test; later work found that eviction fails it."
    )
    rows = rows_of(lines)
    grid = Grid("How often the fact is found", COLUMNS, rows)
    modes = list(dict.fromkeys(line["setting"]["mode"] for line in lines if line["setting"]["policy"] != "full")) or [
        None
    ]
    return Section(NAME, "Needle: a fact far back", about, [grid], [_picture(lines, mode) for mode in modes])


def rows_of(lines: Lines) -> list[Row]:
    """One row for every setting, over all depths."""
    return [{**row, "mode": mode or ""} for (mode,), some in by(lines, "mode").items() for row in summarise(some)]


def _picture(lines: Lines, mode: str | None) -> Picture:
    shown = [line for line in lines if line["setting"]["policy"] == "full" or line["setting"]["mode"] == mode]
    shown = [line for line in shown if line["setting"]["policy"] in ("full", "tova")]
    lengths = sorted({line["setting"]["length"] for line in shown})
    orders = [order for order in ("after", "before") if any(line["setting"]["order"] == order for line in shown)]
    figure, panels = canvas(len(lengths), len(orders), width=4.0, height=3.0)
    for number, axes in enumerate(panels):
        order, length = orders[number // len(lengths)], lengths[number % len(lengths)]
        _panel(
            axes, [line for line in shown if (line["setting"]["order"], line["setting"]["length"]) == (order, length)]
        )
        axes.set_title(
            f"question {order} {length:,} tokens",
        )
        axes.set_ylim(-0.05, 1.05)
        axes.set_xlabel("depth")
    panels[0].set_ylabel("share found")
    legend_below(figure, 2 * len(lengths))
    return Picture(
        f"needle_{mode}" if mode else "needle",
        f"Needle under TOVA: how often a fact is found, by its depth in the text{f', {mode} prompts' if mode else ''}.",
        "Share found by depth, a line for each multi-state size, a panel for each length and place of the question",
        png(figure),
    )


def _panel(axes, lines: Lines) -> None:
    groups = {}
    for row in summarise_depths(lines):
        groups.setdefault((row["policy"], row["budget"]), []).append((row["depth"], row["correct"]))
    order: Sequence = sorted(groups, key=lambda key: (key[0] != "full", key[1] or 0))
    for number, (policy, budget) in enumerate(order):
        points = sorted(groups[policy, budget])
        look: dict[str, Any] = (
            {"color": "black"} if policy == "full" else {"color": f"C{number}", "marker": "o", "markersize": 3}
        )
        axes.plot(*zip(*points, strict=True), label="full model" if policy == "full" else f"k = {budget}", **look)
