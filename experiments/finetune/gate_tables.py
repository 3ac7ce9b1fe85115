"""What segments say together of gates: losses, how much of what forgetting costs comes back, and soft beside hard."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.common.estimates import Estimate, by, columns, exp, mean_of, minus, over
from experiments.common.figures import Column, Grid
from experiments.common.markdown import table as markdown
from experiments.common.policies import FULL
from experiments.language_modeling.report import above_full
from msrnn_jax.io.journal import Line
from msrnn_jax.policies import Learned, parse_policy

BASE, ADAPTED = "model", "adapted"
TOVA, H2O = "tova", "h2o"
LOSSES = (
    Column("model", "model"),
    Column("name", "policy"),
    Column("budget", "budget"),
    Column("perplexity", "perplexity", 2),
    Column("above_full", "nats above full", 4),
    Column("against_tova", "against TOVA", 4),
    Column("against_h2o", "against H2O", 4),
    Column("closed", "won back, %", 1, 100),
    Column("kl", "KL from full", 4),
    Column("agreement", "top-1, %", 1, 100),
)
SOFT = (
    Column("name", "gate"),
    Column("against", "against"),
    Column("apart", "nats", 4),
    Column("kl", "KL", 4),
    Column("agreement", "top-1, %", 1, 100),
)


def name_of(policy: str) -> str:
    """A gate by the folder of its file, any other policy by its text."""
    made = parse_policy(policy)
    return pathlib.Path(made.gate).parent.name or policy if isinstance(made, Learned) and made.gate else policy


def summarise(
    lines: Mapping[str, Sequence[Line]], policies: Sequence[str], budgets: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for every model, policy and budget.

    Returns:
      `perplexity`; `above_full`, nats per token above the same model with full attention; `above_tova`, above TOVA in
      the untrained model; `against_tova` and `against_h2o`, above these in the same model; `closed`, the share of what
      TOVA costs the untrained model that has come back; `kl` and `agreement` with the same model's full attention. Each
      with a standard error over segments.
    """
    found = {model: by(own, "policy", "budget") for model, own in lines.items()}
    full = _nats(by(lines[BASE], "policy")[FULL,])
    rows = []
    for budget in budgets:
        before = _nats(found[BASE][TOVA, budget])
        for model, own in found.items():
            for policy in policies:
                nats = _nats(own[policy, budget])
                row: dict[str, Any] = {"model": model, "policy": policy, "name": name_of(policy), "budget": budget}
                row |= columns("perplexity", exp(nats)) | columns("above_tova", minus(nats, before))
                for rival in (TOVA, H2O):
                    if rival in policies and rival != policy:
                        row |= columns(f"against_{rival}", minus(nats, _nats(own[rival, budget])))
                if (model, policy) != (BASE, TOVA):
                    row |= columns("closed", over(minus(before, nats), minus(before, full)))
                rows.append(row | _nearness(own[policy, budget], "above_full"))
    return rows


def summarise_soft(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """A row for every gate and what it is held against while its tokens only fade.

    Returns:
      Against "full", how far fading is from full attention; against "hard at B", how far hard choices at the budget B
      are from fading: `apart` in nats per token, KL divergence and agreement, with standard errors over segments.
    """
    return [
        {"policy": policy, "name": name_of(policy), "against": against, **_nearness(mine, "apart")}
        for (policy, against), mine in by(lines, "policy", "against").items()
    ]


def _nats(lines: Sequence[Line]) -> Estimate:
    return mean_of(lines, "nats", "tokens")


def _nearness(lines: Sequence[Line], name: str) -> dict[str, Any]:
    """How near a reading is to what it is held against: nats above it by that name, KL divergence, agreement."""
    near = {name: above_full(lines), **{one: mean_of(lines, one, "tokens") for one in ("kl", "agreement")}}
    row: dict[str, Any] = {"segments": len(lines)}
    for one, estimate in near.items():
        row |= columns(one, estimate)
    return row


def grids(rows: Sequence[Mapping[str, Any]], soft: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """Both tables."""
    made = [("Losses on texts that no gate was trained on", LOSSES, rows), ("Fading beside hard choices", SOFT, soft)]
    return [Grid(title, wanted, lines) for title, wanted, lines in made if lines]


def table(rows: Sequence[Mapping[str, Any]], soft: Sequence[Mapping[str, Any]]) -> list[Table]:
    """For reading in a terminal."""
    made = []
    for grid in grids(rows, soft):
        one = Table(*(column.title for column in grid.columns), title=grid.title)
        for cells in grid.cells():
            one.add_row(*cells)
        made.append(one)
    return made


def as_markdown(rows: Sequence[Mapping[str, Any]], soft: Sequence[Mapping[str, Any]]) -> str:
    """As a page."""
    lines: list[str] = []
    for grid in grids(rows, soft):
        lines += [f"## {grid.title}", "", *markdown([column.title for column in grid.columns], grid.cells()), ""]
    return "\n".join(lines)
