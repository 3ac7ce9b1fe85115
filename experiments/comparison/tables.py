"""One row for every policy of a group, the best first, with its numbers at all budgets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.common.estimates import Estimate, columns
from experiments.common.figures import number
from experiments.comparison.differences import losses, reference_of
from experiments.comparison.policies import every_of, kind_of
from experiments.language_modeling.tables import summarise
from experiments.needle import tables as needle
from msrnn_jax.io.journal import Line

Row = dict[str, Any]
ORDERS = ("after", "before")  # of the question and the text


def rows_of(lines: Sequence[Line], cases: Sequence[Line]) -> list[Row]:
    """One row for every policy and budget, as `language_modeling` and `needle` summarise them.

    Returns:
      Beside their columns `every`, `label`, `family`; `apart`, nats per token above TOVA that cuts as often, on the
      same segments; `mean_apart`, the mean over all budgets; `rank` by `mean_apart` in the group, the best is 1;
      `found_after` and `found_before`, the share of needles found. Each number with its standard error (`_stderr`).
      nan is no number.
    """
    found = losses(lines)
    needles = {(row["policy"], row["budget"], row["order"]): row for row in needle.summarise(cases)}
    rows = []
    for row in summarise(lines):
        policy, budget = row["policy"], row["budget"]
        if (policy, budget) not in found.draws:
            continue
        own = {"every": every_of(policy), "label": kind_of(policy).label, "family": kind_of(policy).family}
        pairs = {size: ((policy, size), (reference_of(policy), size)) for name, size in found.draws if name == policy}
        own |= _columns("apart", found.apart(pairs[budget])) | _columns("mean_apart", found.apart(*pairs.values()))
        for order in ORDERS:
            case = needles.get((policy, budget, order), {})
            own |= {f"found_{order}{end}": case.get(f"correct{end}", math.nan) for end in ("", "_stderr")}
        rows.append(row | own)
    return _ranked(rows)


def _columns(name: str, one: Estimate | None) -> Row:
    return {name: math.nan, f"{name}_stderr": math.nan} if one is None else columns(name, one)


def _ranked(rows: list[Row]) -> list[Row]:
    for every in {row["every"] for row in rows}:
        names = {row["policy"]: _mean_apart(rows, row["policy"]) for row in rows if row["every"] == every}
        order = sorted(names, key=lambda name: (math.isnan(names[name]), names[name]))
        for row in rows:
            if row["policy"] in names:
                row["rank"] = 1 + order.index(row["policy"])
    return rows


def _mean_apart(rows: Sequence[Row], policy: str) -> float:
    """From TOVA, on the same segments, of which policies may have different ones."""
    return next(row["mean_apart"] for row in rows if row["policy"] == policy)


def page(rows: Sequence[Row], every: int) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of one group's table. Numbers at several budgets stand in one cell, ascending."""
    mine = [row for row in rows if row["every"] == every]
    budgets = sorted({row["budget"] for row in mine})
    titles = ["rank", "policy", "perplexity", *(f"k = {size}: nats above TOVA" for size in budgets), "mean"]
    titles += ["KL from full, nats", "top-1 as full, %", *(f"needle, question {order}, %" for order in ORDERS)]
    ranked = sorted(mine, key=lambda row: (row["rank"], row["budget"]))
    policies = list(dict.fromkeys(row["policy"] for row in ranked))
    return titles, [list(_cells([row for row in ranked if row["policy"] == name], budgets)) for name in policies]


def _cells(rows: Sequence[Row], budgets: Sequence[int]) -> Iterator[str]:
    """Of one policy at all its budgets."""
    at = {row["budget"]: row for row in rows}
    yield from (str(rows[0]["rank"]), rows[0]["label"])
    yield _joined(number(row["perplexity"], 2) for row in rows)
    yield from (_with_error(at[size], "apart", 3) if size in at else "" for size in budgets)
    yield _with_error(rows[0], "mean_apart", 3)
    yield _joined(number(row["kl"], 3) for row in rows)
    yield _joined(number(100 * row["agreement"], 1) for row in rows)
    for order in ORDERS:
        asked = [row for row in rows if not math.isnan(row[f"found_{order}"])]
        yield _joined(_with_error(row, f"found_{order}", 0, 100.0) for row in asked)


def _joined(cells: Iterator[str]) -> str:
    return " / ".join(cells)


def _with_error(row: Row, name: str, places: int, factor: float = 1.0) -> str:
    value, error = factor * row[name], factor * row[f"{name}_stderr"]
    if not error:  # TOVA beside itself
        return number(value, places)
    return f"{number(value, places)} ± {number(error, places)}"
