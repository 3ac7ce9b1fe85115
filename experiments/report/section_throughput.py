"""Memory, largest batch and speed against the multi-state size: Table 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments import published
from experiments.estimates import columns
from experiments.report.claims_throughput import speed
from experiments.report.content import Column, Grid, Picture, Row, Section
from experiments.report.drawing import budget_axis, canvas, key_to_papers, legend, ours, papers, png
from experiments.report.records import Records
from experiments.throughput.table1 import batch_of

NAME = "throughput"

COLUMNS = (
    Column("dtype", "dtype"),
    Column("policy", "policy"),
    Column("budget", "k"),
    Column("state_gb", "memory of a row, GB", 4),
    Column("memory", "over full's", 3),
    Column("paper_memory", "paper", 3),
    Column("batch", "largest batch"),
    Column("batches", "over full's", 2),
    Column("paper_batches", "paper", 2),
    Column("relative", "relative throughput", 2),
    Column("paper_relative", "paper", 1),
)


def make(records: Records) -> Section | None:
    """The section of a result, None where there is none or it has no memory section."""
    rows = rows_of(records.throughput or {})
    if not rows:
        return None
    about = (
        "Rows that fit into the same memory, and how fast they are decoded together. Standard errors of the relative "
        "throughput are over turns; sizes are arithmetic. The paper's are of LLaMA-2-7B on one V100."
    )
    grid = Grid("Memory, largest batch and relative throughput (Table 1)", COLUMNS, rows)
    return Section(NAME, "Memory and throughput (Table 1)", about, [grid], [_picture(rows)])


def rows_of(result: Mapping[str, Any]) -> list[Row]:
    """One row for every dtype and budget, with the paper's numbers at the same share of the context."""
    found = result.get("memory", {}).get("rows", [])
    return [_row(row, full) for row in found if (full := _full(found, row["dtype"])) is not None]


def _full(rows: list[Row], dtype: str) -> Row | None:
    return next((row for row in rows if row["policy"] == "full" and row["dtype"] == dtype), None)


def _row(row: Row, full: Row) -> Row:
    size, whole = row["budget"] * published.CONTEXT // full["budget"], published.CONTEXT
    known = size in published.MEMORY
    return {
        **{name: row[name] for name in ("dtype", "policy", "budget", "state_bytes")},
        "state_gb": row["state_bytes"] / 1e9,
        "memory": row["state_bytes"] / full["state_bytes"],
        "paper_memory": published.MEMORY[size] / published.MEMORY[whole] if known else None,
        "batch": batch_of(row),
        "batches": batch_of(row) / batch_of(full) if batch_of(full) else None,
        "paper_batches": published.BATCH[size] / published.BATCH[whole] if known else None,
        **(columns("relative", speed(row)) if row.get("relative") else {"relative": None}),
        "paper_relative": published.THROUGHPUT[size] if known else None,
    }


def _picture(rows: list[Row]) -> Picture:
    figure, panels = canvas(3, width=3.9, height=3.6)
    names = {"memory": "memory of a row", "batches": "largest batch", "relative": "throughput at the largest batch"}
    budgets = sorted({row["budget"] for row in rows})
    for axes, (name, title) in zip(panels, names.items(), strict=True):
        for number, dtype in enumerate(dict.fromkeys(row["dtype"] for row in rows)):
            mine = sorted((row for row in rows if row["dtype"] == dtype), key=lambda row: row["budget"])
            points = [(row["budget"], row[name], row.get(f"{name}_stderr")) for row in mine]
            ours(axes, "tova", points, color=f"C{number}", label=f"ours, {dtype}")
        papers(
            axes, "tova", [(row["budget"], row[f"paper_{name}"]) for row in sorted(rows, key=lambda row: row["budget"])]
        )
        axes.set_title(title)
        axes.set_ylabel("over full attention's")
        axes.set_yscale("log", base=2)
        budget_axis(axes, budgets)
        key_to_papers(axes)
        legend(axes)
    return Picture(
        "table_1",
        "Table 1 as a picture: memory, largest batch and throughput over full attention's, by multi-state size.",
        "Memory grows with the multi-state size, largest batch and throughput fall",
        png(figure),
    )
