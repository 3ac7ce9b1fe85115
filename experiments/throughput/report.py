"""Claims on memory and speed: Table 1; and the section of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from experiments.common import published
from experiments.common.claims import Claim, Part, Verdict, above, every, inside, not_measured
from experiments.common.estimates import Estimate, columns, exact, mean
from experiments.common.figures import (
    Column,
    Grid,
    Picture,
    Row,
    Section,
    budget_axis,
    canvas,
    key_to_papers,
    legend,
    ours,
    papers,
    png,
)
from experiments.common.records import THROUGHPUT, Records
from experiments.throughput.memory import batch_of

GB = 1e9
LIMIT = 0.12  # as a share; the paper's numbers are 1.5 to 11 % above the bytes of keys and values alone
Compare = Callable[[Row, Row, int], Part | None]  # a row, full attention's, the paper's budget
ALL = (256, 512, 1024, 2048)
_NOT_RUN = f"{THROUGHPUT}.json has no run at the largest batch: --largest asks for it"
_RELATIVE = "throughput over full attention's, each at its largest batch"
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


def memory_rows(records: Records) -> dict[int, Row]:
    """The rows of the first dtype, by budget; full attention's is the one at the whole length."""
    rows = (records.throughput or {}).get("memory", {}).get("rows", [])
    return {row["budget"]: row for row in rows if row["dtype"] == rows[0]["dtype"]}


def full_row(rows: Mapping[int, Row]) -> Row | None:
    """Full attention's."""
    return next((row for row in rows.values() if row["policy"] == "full"), None)


def at(sizes: tuple[int, ...], compare: Compare, unit: str, records: Records, note: str = "") -> Verdict:
    """Decides a claim at some of the paper's budgets, as shares of what full attention holds."""
    rows = memory_rows(records)
    full = full_row(rows)
    if full is None:
        why = f"{THROUGHPUT}.json has no memory section" if records.throughput else records.why(THROUGHPUT)
        return not_measured(why)
    parts, missing = [], []
    for size in sizes:
        budget = size * full["budget"] // published.CONTEXT
        part = compare(rows[budget], full, size) if budget in rows else None
        if part is None:
            missing.append(f"k = {budget}")
        else:
            parts.append(part)
    if not parts:
        return not_measured(note or f"not measured: {', '.join(missing)}")
    return every(parts, unit, missing=missing)


def saved(row: Row, full: Row, size: int) -> Part:
    """Whether 7/8 of the memory of keys and values is saved."""
    share = 1 - row["state_bytes"] / full["state_bytes"]
    paper = 1 - published.MEMORY[size] / published.MEMORY[4096]
    return above(_name(row), exact(share), 0.87, paper)


def batches(row: Row, full: Row, size: int) -> Part | None:
    """Whether so many times as many rows fit as in the paper, but for 10 %."""
    if not batch_of(full):
        return None
    paper = published.BATCH[size] / published.BATCH[4096]
    return inside(_name(row), exact(batch_of(row) / batch_of(full)), 0.9 * paper, 1.1 * paper, paper)


def faster(least: bool, row: Row, full: Row, size: int) -> Part | None:
    """Whether decoding at the largest batch is faster than full attention's, as much as in the paper if `least`."""
    del full
    if not row.get("relative"):
        return None
    paper = published.THROUGHPUT[size]
    return above(_name(row), speed(row), paper if least else 1.0, paper)


def speed(row: Row) -> Estimate:
    """Over that of full attention, a mean over turns."""
    return mean(row["relative"]["each"])


def _name(row: Row) -> str:
    return f"k = {row['budget']}"


def paper_memory(records: Records) -> Verdict:
    """Whether the bytes of a state of LLaMA-2-7B are those of Table 1; arithmetic on its shape, without a run."""
    del records
    import msrnn_jax as ms
    from experiments.common.shapes import SHAPES
    from msrnn_jax.devices.memory import state_bytes

    parts = []
    for size, paper in published.MEMORY.items():
        policy = ms.Full() if size == published.CONTEXT else ms.TOVA()
        gigabytes = exact(state_bytes(SHAPES["llama-2-7b"], policy, size) / GB)
        parts.append(inside(f"k = {size}", gigabytes, (1 - LIMIT) * paper, (1 + LIMIT) * paper, paper))
    return every(parts, "GB, from the shape of LLaMA-2-7B in bfloat16")


def _claims() -> Iterator[Claim]:
    text = "Keys and values of LLaMA-2-7B take the memory of Table 1 (within 12 %; arithmetic, no run)"
    yield Claim("3.4", text, paper_memory)
    yield Claim(
        "3.4", "At 1/8 of the context 88 % of the cache is saved (7/8)", partial(at, (512,), saved, "share saved")
    )
    yield Claim(
        "3.4",
        "The largest batch grows as in Table 1, almost ninefold at 1/8 (within 10 %)",
        partial(at, ALL, batches, "largest batch over full attention's"),
    )
    yield Claim(
        "3.4",
        "At equal memory a smaller state decodes faster",
        partial(at, ALL, partial(faster, False), _RELATIVE, note=_NOT_RUN),
    )
    for size, share in zip(ALL, ("1/16", "1/8", "1/4", "1/2"), strict=True):
        text = f"At {share} of the context throughput is at least {published.THROUGHPUT[size]} times the full model's"
        yield Claim("3.4", text, partial(at, (size,), partial(faster, True), _RELATIVE, note=_NOT_RUN))


CLAIMS = tuple(_claims())


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
    return Section(THROUGHPUT, "Memory and throughput (Table 1)", about, [grid], [_picture(rows)])


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
    figure, panels = canvas(3, width=4.0, height=3.6)
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
        axes.yaxis.set_major_formatter("{x:g}")
        budget_axis(axes, budgets)
        key_to_papers(axes)
        legend(axes)
    return Picture(
        "table_1",
        "Table 1 as a picture: memory, largest batch and throughput over full attention's, by multi-state size.",
        "Memory grows with the multi-state size, largest batch and throughput fall",
        png(figure),
    )
