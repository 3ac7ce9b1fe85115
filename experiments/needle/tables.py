"""What the cases say together: how many answers are right, and how much of the needle was still held."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.common.console import with_error
from experiments.common.estimates import by, columns, difference, mean_of
from msrnn_jax.io.journal import Line
from msrnn_jax.text.display import decimals

MEANS = {  # of a row, and of a line
    "correct": "correct",
    "choice": "choice",
    "nats": "answer_nats",
    "held_any": "held_any",
    "held_all": "held_all",
    "held_question": "held_question",
}
COMPARED = ("correct", "choice", "nats")
GROUP = ("policy", "budget", "order", "length")


def summarise(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row for every policy, budget, order and length, in the order of the lines.

    Returns:
      Means over all depths and draws, each with its standard error over cases (`_stderr`): `correct` and `choice`,
      shares of the cases; `nats` of the right value; `held_any`, `held_all` and `held_question`, shares. Of the first
      three also `_above_full`, how much more than the full model's on the same cases, and under the order "before"
      `_above_after`, how much more than the same policy's on the same cases in the other order. nan is no number.
    """
    groups = by(lines, *GROUP)
    rows = []
    for (policy, budget, order, length), found in groups.items():
        row = _row(dict(zip(GROUP, (policy, budget, order, length), strict=True)), found)
        full = groups.get(("full", length, order, length), [])
        after = groups.get((policy, budget, "after", length), []) if order == "before" else []
        rows.append({**row, **_above("full", found, full), **_above("after", found, after)})
    return rows


def summarise_depths(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row for every policy, budget, order and depth: means over all lengths and draws, named as in `summarise`.

    The full model, whose budget is the length, has one row for all lengths, and None as its budget.
    """
    names = ("policy", "budget", "order", "depth")
    pooled = [
        {**line, "setting": {**line["setting"], "budget": None}} if line["setting"]["policy"] == "full" else line
        for line in lines
    ]
    return [_row(dict(zip(names, key, strict=True)), found) for key, found in by(pooled, *names).items()]


def _row(setting: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, Any]:
    row: dict[str, Any] = {**setting, "cases": len(lines)}
    for name, number in MEANS.items():
        row |= columns(name, mean_of(lines, number))
    return row


def _above(other: str, first: Sequence[Line], second: Sequence[Line]) -> dict[str, float]:
    row = {}
    for name in COMPARED:
        row |= columns(f"{name}_above_{other}", difference(first, second, MEANS[name]))
    return row


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """What `summarise` says, for reading."""
    shown = {
        "right": ("correct", 2),
        "right of 10": ("choice", 2),
        "nats": ("nats", 1),
        "held": ("held_any", 2),
        "held whole": ("held_all", 2),
        "above after": ("correct_above_after", 2),
    }
    made = Table("policy", "budget", "question", "length", "cases")
    for title in shown:
        made.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        cells = [_mean(row, name, places) for name, places in shown.values()]
        made.add_row(row["policy"], *(str(row[name]) for name in ("budget", "order", "length", "cases")), *cells)
    return made


def depth_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Shares of right answers by depth, from what `summarise_depths` says."""
    depths = sorted({row["depth"] for row in rows})
    made = Table("policy", "budget", "question", title="Right answers by depth, over all lengths")
    for depth in depths:
        made.add_column(f"{depth:.2f}", justify="right")
    settings = {(row["policy"], row["budget"], row["order"]): {} for row in rows}
    for row in rows:
        settings[row["policy"], row["budget"], row["order"]][row["depth"]] = decimals(row["correct"], 2)
    for (policy, budget, order), cells in settings.items():
        shown = "-" if budget is None else str(budget)
        made.add_row(policy, shown, order, *(cells.get(depth, "-") for depth in depths))
    return made


def _mean(row: Mapping[str, Any], name: str, places: int) -> str:
    if math.isnan(row[name]):
        return "-"
    return with_error(row, name, places)
