"""What the segments say together: perplexities, and how far every policy is from the full model."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from experiments.common.console import with_error
from experiments.common.estimates import by, columns, mean_of, ratio
from msrnn_jax.evaluation.summary import perplexity_from
from msrnn_jax.io.journal import Line
from msrnn_jax.text.display import decimals


def summarise(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row for every policy and budget, in the order of the lines.

    Returns:
      `perplexity`, token-weighted; `nll` in nats per token; `above_full`, how many more than the full model's on the
      same tokens; `kl` from the full model, nats per token; `agreement` of the likeliest tokens, a share. Each of the
      last four with a standard error over segments.
    """
    return [_row(policy, budget, mine) for (policy, budget), mine in by(lines, "policy", "budget").items()]


def _row(policy: str, budget: int, lines: Sequence[Line]) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": policy, "budget": budget, "segments": len(lines)}
    row["tokens"] = sum(line["tokens"] for line in lines)
    found = {
        "nll": mean_of(lines, "nats", "tokens"),
        "above_full": ratio([_above(line) for line in lines], [line["tokens"] for line in lines]),
        "kl": mean_of(lines, "kl", "tokens"),
        "agreement": mean_of(lines, "agreement", "tokens"),
    }
    row["perplexity"] = perplexity_from(found["nll"].value)
    for name, mean in found.items():
        row |= columns(name, mean)
    return row


def _above(line: Line) -> float | None:
    return None if None in (line["nats"], line["full_nats"]) else line["nats"] - line["full_nats"]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Perplexities and nearness to the full model, for reading."""
    shown = {"nats above full": ("above_full", 4), "KL from full": ("kl", 4), "top-1 agreement": ("agreement", 4)}
    made = Table("policy")
    for title in ("budget", "segments", "perplexity", *shown):
        made.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        cells = [str(row["budget"]), str(row["segments"]), decimals(row["perplexity"], 2)]
        for name, places in shown.values():
            cells.append(with_error(row, name, places))
        made.add_row(row["policy"], *cells)
    return made
