"""Calls timed in turns, and ratios taken within a turn."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

PAUSE = 0.02  # seconds before every call, in which the threads of the other library go to sleep

Report = Callable[[str], None]
Row = dict[str, Any]  # one series as JSON


@dataclasses.dataclass(frozen=True)
class Series:
    """A call that is timed."""

    name: str
    call: Callable[[], Any]  # returns once the work is done
    tokens: int  # that one call reads or writes, over all rows of its batch
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # what its row says besides
    prepare: Callable[[], Any] = lambda: None  # before every call, outside its time


def take_turns(series: Sequence[Series], turns: int, report: Report, *, warm: bool = True) -> list[Row]:
    """Calls every series once a turn and returns a row for each, with the seconds of every call.

    The order is turned round from turn to turn, so that none always follows the same other.

    Args:
      warm: throw a first turn away. Without, the first call pays for cold caches as well, which the median
        forgives where a call takes most of a second.
    """
    seconds: dict[str, list[float]] = {one.name: [] for one in series}
    assert len(seconds) == len(series), "two series of one name"
    for turn in range(-1 if warm else 0, turns):
        report(f"turn {turn + 1} of {turns}" if turn >= 0 else "warming up")
        for one in series if turn % 2 else reversed(series):
            one.prepare()
            time.sleep(PAUSE)
            started = time.perf_counter()
            one.call()
            if turn >= 0:
                seconds[one.name].append(time.perf_counter() - started)
    return [
        {
            "series": one.name,
            **one.facts,
            "tokens": one.tokens,
            "seconds": seconds[one.name],
            "tokens_per_second": one.tokens / statistics.median(seconds[one.name]),
        }
        for one in series
    ]


def ratio(rows: Sequence[Row], of: str, over: str, kind: str = "speed") -> Row:
    """How `of` compares with `over`: tokens per second ("speed") or seconds per token ("time").

    Every turn has its ratio, and the median of these is quoted.
    """
    assert kind in ("speed", "time")
    first, second = row_of(rows, of), row_of(rows, over)
    costs = [
        (a / first["tokens"]) / (b / second["tokens"]) for a, b in zip(first["seconds"], second["seconds"], strict=True)
    ]
    each = [1 / cost for cost in costs] if kind == "speed" else costs
    return {"of": of, "over": over, "kind": kind, "each": each, "median": statistics.median(each)}


def row_of(rows: Sequence[Row], name: str) -> Row:
    """The row of the series of that name."""
    (row,) = (row for row in rows if row["series"] == name)
    return row


def compiled(function: Callable, *arguments: Any, donate: Sequence[int] = (), **static: Any) -> tuple[Any, float]:
    """The function compiled for these arguments, or for their shapes, and the seconds that took.

    Args:
      donate: numbers of the arguments that the program may overwrite.
      static: keyword arguments, which become part of the program.
    """
    # What is not read is kept as an argument all the same, so that XLA counts the memory of a whole state.
    jitted = jax.jit(functools.partial(function, **static), donate_argnums=tuple(donate), keep_unused=True)
    started = time.perf_counter()
    program = jitted.lower(*arguments).compile()
    return program, time.perf_counter() - started


def program_bytes(program: Any) -> dict[str, int]:
    """The memory of a compiled program as XLA counts it, in bytes; what is aliased is counted as an argument."""
    analysis = program.memory_analysis()
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
    }
    return {**parts, "peak": parts["arguments"] + parts["outputs"] - parts["aliased"] + parts["temporary"]}
