"""Claims on memory and speed: Table 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from experiments import published
from experiments.estimates import Estimate, exact, mean
from experiments.report.records import THROUGHPUT, Records
from experiments.report.verdicts import Claim, Part, Verdict, above, every, inside, not_measured
from experiments.throughput.table1 import batch_of

GB = 1e9
Row = Mapping[str, Any]
LIMIT = 0.12  # as a share; the paper's numbers are 1.5 to 11 % above the bytes of keys and values alone


def memory_rows(records: Records) -> dict[int, Row]:
    """The rows of the first dtype, by budget; full attention's is the one at the whole length."""
    rows = (records.throughput or {}).get("memory", {}).get("rows", [])
    return {row["budget"]: row for row in rows if row["dtype"] == rows[0]["dtype"]}


def full_row(rows: Mapping[int, Row]) -> Row | None:
    """Full attention's."""
    return next((row for row in rows.values() if row["policy"] == "full"), None)


Compare = Callable[[Row, Row, int], Part | None]  # a row, full attention's, the paper's budget


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
    from experiments.shapes import SHAPES
    from msrnn_jax.sizes import state_bytes

    parts = []
    for size, paper in published.MEMORY.items():
        policy = ms.Full() if size == published.CONTEXT else ms.TOVA()
        gigabytes = exact(state_bytes(SHAPES["llama-2-7b"], policy, size) / GB)
        parts.append(inside(f"k = {size}", gigabytes, (1 - LIMIT) * paper, (1 + LIMIT) * paper, paper))
    return every(parts, "GB, from the shape of LLaMA-2-7B in bfloat16")


ALL = (256, 512, 1024, 2048)
_NOT_RUN = f"{THROUGHPUT}.json has no run at the largest batch: --largest asks for it"
_RELATIVE = "throughput over full attention's, each at its largest batch"


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
