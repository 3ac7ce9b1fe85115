"""What the stories say together: how long, varied and likely they are, and which ones a judge finds better."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from experiments.common.console import with_error
from experiments.common.estimates import by, columns, difference, mean, mean_of
from experiments.generation.judging import DROPPED, FULL, UNREADABLE, outcomes
from msrnn_jax.io.journal import Line

# What is averaged: over stories, or over their tokens where there is a weight.
MEASURES = {
    "tokens": ("tokens", None),
    "ended": ("ended", None),
    **{f"distinct_{size}": (f"distinct_{size}", None) for size in (1, 2, 3, 4)},
    "nll": ("nats", "tokens"),
    "agreement": ("agreement", "tokens"),
}
ALIKE = "same_until"  # compares with the full model by itself


def summarise(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row for every policy and budget, in the order of the lines.

    Returns:
      Means of `MEASURES` and of `same_until`, the tokens that are also the full model's, with `_stderr` over stories.
      But for the full model each of the first has `_above_full` with `_above_full_stderr`: how much larger it is than
      for the full model's stories of the same prompts and draws. Stories too short to have a number are left out of
      its mean.
    """
    full = [line for line in lines if line["setting"]["policy"] == FULL]
    return [_row(policy, budget, mine, full) for (policy, budget), mine in by(lines, "policy", "budget").items()]


def _row(policy: str, budget: int, lines: Sequence[Line], full: Sequence[Line]) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": policy, "budget": budget, "stories": len(lines)}
    for name, (value, weight) in MEASURES.items():
        ours, theirs = ([line for line in some if line.get(value) is not None] for some in (lines, full))
        row |= columns(name, mean_of(ours, value, weight))
        if policy != FULL:
            row |= columns(f"{name}_above_full", difference(ours, theirs, value, weight))
    return row | columns(ALIKE, mean_of(lines, ALIKE))


def summarise_judge(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row for every policy and budget, in the order of the lines.

    Returns:
      How many stories were `dropped`, and of the other `pairs` the `wins`, `ties` and `losses` against the full
      model; `unreadable` answers, of two for every pair; and `lead`, wins less losses as a share of pairs, with
      `lead_stderr` over pairs.
    """
    return [_judged(policy, budget, mine) for (policy, budget), mine in by(lines, "policy", "budget").items()]


def _judged(policy: str, budget: int, lines: Sequence[Line]) -> dict[str, Any]:
    found = list(outcomes(lines).values())
    counts = {name: found.count(one) for name, one in (("wins", "win"), ("ties", "tie"), ("losses", "loss"))}
    values = [{"win": 1.0, "tie": 0.0, "loss": -1.0}[one] for one in found if one != DROPPED]
    row: dict[str, Any] = {"policy": policy, "budget": budget, "dropped": found.count(DROPPED), "pairs": len(values)}
    row |= counts | {"unreadable": sum(line["choice"] == UNREADABLE for line in lines)}
    return row | columns("lead", mean(values))


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Means, and under them how far above the full model's they are, for reading."""
    shown = {"tokens": 0, "distinct_4": 3, "nll": 3, "agreement": 3}
    made = Table("policy", caption=f"{rows[0]['stories']} stories each")
    for title in ("budget", *shown, ALIKE):
        made.add_column(title.replace("_", "-"), justify="right", no_wrap=True)
    for row in rows:
        cells = [with_error(row, name, places) for name, places in shown.items()]
        made.add_row(row["policy"], str(row["budget"]), *cells, with_error(row, ALIKE, 0))
        if row["policy"] != FULL:
            cells = [with_error(row, f"{name}_above_full", places) for name, places in shown.items()]
            made.add_row("  above full", "", *cells)
    return made


def judge_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Wins and losses against the full model, for reading."""
    names = ("budget", "dropped", "pairs", "wins", "ties", "losses", "unreadable")
    made = Table("policy")
    for name in (*names, "lead"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(row["policy"], *(str(row[name]) for name in names), with_error(row, "lead", 3))
    return made
