"""What segments say together of gates: losses, how much of what forgetting costs comes back, and soft beside hard."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.common.draws import select
from experiments.common.estimates import Estimate, columns, exp, mean_of, minus, over
from experiments.common.figures import Column, Grid
from experiments.common.markdown import table as markdown
from experiments.common.policies import FULL
from experiments.language_modeling.report import above_full
from msrnn_jax.io.journal import Line
from msrnn_jax.policies import Learned, parse_policy

BASE, ADAPTED = "model", "adapted"
TOVA, H2O = "tova", "h2o"
LOSSES = (
    ("model", "model", 0, 1.0),
    ("name", "policy", 0, 1.0),
    ("budget", "budget", 0, 1.0),
    ("perplexity", "perplexity", 2, 1.0),
    ("above_full", "nats above full", 4, 1.0),
    ("against_tova", "against TOVA", 4, 1.0),
    ("against_h2o", "against H2O", 4, 1.0),
    ("closed", "won back, %", 1, 100.0),
    ("kl", "KL from full", 4, 1.0),
    ("agreement", "top-1, %", 1, 100.0),
)
SOFT = (
    ("name", "gate", 0, 1.0),
    ("against", "against", 0, 1.0),
    ("apart", "nats", 4, 1.0),
    ("kl", "KL", 4, 1.0),
    ("agreement", "top-1, %", 1, 100.0),
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
    rows = []
    for budget in budgets:
        before, full = _nats(lines[BASE], TOVA, budget), _nats(lines[BASE], FULL, None)
        for model, own in lines.items():
            rivals = {name: _nats(own, name, budget) for name in (TOVA, H2O) if name in policies}
            for policy in policies:
                mine = list(_draws(own, policy, budget).values())
                nats = _nats(own, policy, budget)
                row: dict[str, Any] = {"model": model, "policy": policy, "name": name_of(policy), "budget": budget}
                row |= {"segments": len(mine), **columns("perplexity", exp(nats))}
                row |= columns("above_full", above_full(mine)) | columns("above_tova", minus(nats, before))
                for rival, theirs in rivals.items():
                    if rival != policy:
                        row |= columns(f"against_{rival}", minus(nats, theirs))
                if (model, policy) != (BASE, TOVA):
                    row |= columns("closed", over(minus(before, nats), minus(before, full)))
                row |= columns("kl", mean_of(mine, "kl", "tokens"))
                rows.append(row | columns("agreement", mean_of(mine, "agreement", "tokens")))
    return rows


def summarise_soft(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """A row for every gate and what it is held against while its tokens only fade.

    Returns:
      Against "full", how far fading is from full attention; against "hard at B", how far hard choices at the budget B
      are from fading: `apart` in nats per token, KL divergence and agreement, with standard errors over segments.
    """
    rows = []
    for policy in dict.fromkeys(line["setting"]["policy"] for line in lines):
        own = [line for line in lines if line["setting"]["policy"] == policy]
        for against in dict.fromkeys(line["setting"]["against"] for line in own):
            mine = [line for line in own if line["setting"]["against"] == against]
            row: dict[str, Any] = {"policy": policy, "name": name_of(policy), "against": against}
            row |= {"segments": len(mine), **columns("apart", above_full(mine))}
            row |= columns("kl", mean_of(mine, "kl", "tokens"))
            rows.append(row | columns("agreement", mean_of(mine, "agreement", "tokens")))
    return rows


def _draws(lines: Sequence[Line], policy: str, budget: int | None) -> dict[str, Line]:
    wanted = {"policy": policy} if budget is None else {"policy": policy, "budget": budget}
    return {line["document"]: line for line in select(lines, **wanted).values()}


def _nats(lines: Sequence[Line], policy: str, budget: int | None) -> Estimate:
    """Nats per token, by segments in the order of their names."""
    found = _draws(lines, policy, budget)
    return mean_of([found[name] for name in sorted(found)], "nats", "tokens")


def grids(rows: Sequence[Mapping[str, Any]], soft: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """Both tables."""
    made = [("Losses on texts that no gate was trained on", LOSSES, rows), ("Fading beside hard choices", SOFT, soft)]
    return [Grid(title, [Column(*column) for column in wanted], lines) for title, wanted, lines in made if lines]


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
