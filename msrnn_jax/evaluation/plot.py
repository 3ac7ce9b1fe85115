"""A picture of perplexity against multi-state size; needs matplotlib, which nothing else here does."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import pathlib
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msrnn_jax.io.atomic import check_writable, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAR = 2.5  # times the median of all points, above which one would press the others together


def check_plot(path: str | os.PathLike[str]) -> None:
    """Refuses, before any work, a picture that could not be drawn after it.

    Raises:
      ValueError: where matplotlib is missing, or the path is no .png that can be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plot needs matplotlib, which is not installed: pip install matplotlib")
    path = pathlib.Path(path)
    if path.suffix != ".png":
        raise ValueError(f"plot is {str(path)!r}; it must end in .png")
    check_writable("plot", path)


def plot_perplexity(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws a line for every policy, with a standard error where there is one, and writes it atomically.

    Args:
      rows: as `measure` yields them. Full attention, which has no budget of its own, is a dashed line.
    """
    figure = draw_perplexity(rows, title)
    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", dpi=150)
    write_bytes(path, drawing.getvalue())


def draw_perplexity(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """The figure. Points far above most others lie outside, and are named below the axis, so that lines stay apart."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes = figure.subplots()
    markers = iter("os^Dv<>ph*" * len(rows))
    drawn = [row for row in rows if row["perplexity"] is not None]
    top, outside = _top(drawn), []
    for policy in dict.fromkeys(row["policy"] for row in drawn):
        mine = sorted((row for row in drawn if row["policy"] == policy), key=lambda row: row["budget"])
        budgets, values = [row["budget"] for row in mine], [row["perplexity"] for row in mine]
        beyond = [f"{value:,.0f} at {size}" for size, value in zip(budgets, values, strict=True) if value > top]
        outside += [f"{policy} {', '.join(beyond)}"] if beyond else []
        if _is_full(policy):
            label = policy.replace("full", "full attention", 1)
            axes.axhline(values[0], color="black", linestyle="--", linewidth=1, label=label)
        else:
            axes.errorbar(budgets, values, yerr=_errors(mine), marker=next(markers), capsize=3, label=policy)
    axes.set_xscale("log", base=2)
    if drawn:  # a model that yields no number has no scale
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # 20, not 2 x 10^1
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.legend()
    if outside:
        lowest = min(row["perplexity"] - below for row, below in zip(drawn, _errors(drawn)[0], strict=True))
        axes.set_ylim(0.97 * lowest, top)
    ticks = sorted({row["budget"] for row in rows if not _is_full(row["policy"])})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    below = ["multi-state size (tokens kept per layer)"]
    if outside:
        below += textwrap.wrap(f"above the axis: {'; '.join(outside)}", 90)
    axes.set_xlabel("\n".join(below))
    axes.set_ylabel("perplexity")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.3)
    return figure


def _top(drawn: Sequence[Mapping[str, Any]]) -> float:
    """Where the axis ends: inf unless several policies have points in what is left, else there is nothing to press."""
    top = FAR * statistics.median(row["perplexity"] for row in drawn) if drawn else math.inf
    inside = {row["policy"] for row in drawn if row["perplexity"] <= top and not _is_full(row["policy"])}
    return top if len(inside) > 1 else math.inf


def _is_full(policy: str) -> bool:
    return policy.split(":")[0] == "full"


def _errors(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """How far a standard error of the loss reaches below and above each perplexity, its exponential."""
    below, above = [], []
    for row in rows:
        error = row["stderr"] or 0.0  # of one segment there is none
        below.append(row["perplexity"] - _exp_of(row, -error))
        above.append(_exp_of(row, error) - row["perplexity"])
    return [below, above]


def _exp_of(row: Mapping[str, Any], change: float) -> float:
    import numpy as np

    return float(row["perplexity"] * np.exp(change))
