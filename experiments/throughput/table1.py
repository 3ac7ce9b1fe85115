"""The paper's Table 1: what a multi-state size costs, how many rows fit into one memory, how fast they are together."""

from collections.abc import Mapping
from typing import Any

from experiments import published
from experiments.throughput.timing import Row


def summarise(result: dict[str, Any]) -> list[Row]:
    """One column of Table 1 for every dtype and budget of a result's memory section, full attention's the last.

    Returns:
      `state_bytes` of one row; `batch`, the largest that fits, by XLA's count where it was run, else by ours;
      `relative`, tokens per second at that batch over full attention's at its own, the median over turns and None
      where it was not run; `relative_each`, that of every turn; `published`, what the paper has for this budget.
    """
    return [_column(row) for row in result["memory"]["rows"]]


def _column(row: Row) -> Row:
    relative, budget = row.get("relative"), row["budget"]
    is_full = row["policy"] == "full"
    return {
        "dtype": row["dtype"],
        "policy": row["policy"],
        "budget": budget,
        "state_bytes": row["state_bytes"],
        "batch": batch_of(row),
        "relative": relative["median"] if relative else None,
        "relative_each": relative["each"] if relative else [],
        "published": _published(budget) if is_full == (budget == published.CONTEXT) else None,
    }


def batch_of(row: Mapping[str, Any]) -> int:
    """The largest that fits: by XLA's count where that was asked for, 0 if it says that no row does, else by ours."""
    if "timed" not in row:
        return row["largest_batch"]
    return row["timed"]["batch"] if row["timed"] else 0


def _published(budget: int) -> dict[str, float] | None:
    """What the paper has of LLaMA-2-7B on one V100, batches of sequences of 4,096 tokens."""
    if budget not in published.MEMORY:
        return None
    return {
        "gigabytes": published.MEMORY[budget],
        "batch": published.BATCH[budget],
        "relative": published.THROUGHPUT[budget],
    }
