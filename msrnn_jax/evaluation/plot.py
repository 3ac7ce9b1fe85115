"""A picture of perplexity against multi-state size; needs matplotlib, which nothing else here does."""

import importlib.util
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from msrnn_jax.io.atomic import check_writable, write_bytes


def check_plot(path: str | os.PathLike[str]) -> None:
    """Refuses, before any work, a picture that could not be drawn after it.

    Raises:
      ValueError: where matplotlib is missing, or the path is no .png that can be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plot needs matplotlib, which is not installed: pip install 'msrnn_jax[plot]'")
    path = pathlib.Path(path)
    if path.suffix != ".png":
        raise ValueError(f"plot is {str(path)!r}; it must end in .png")
    check_writable("plot", path)


def plot_perplexity(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws a line for every policy, with a standard error where there is one, and writes it atomically.

    Args:
      rows: as `measure` yields them. Full attention, which has no budget of its own, is a dashed line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    markers = iter("os^Dv<>ph*" * len(rows))
    drawn = [row for row in rows if row["perplexity"] is not None]
    for policy in dict.fromkeys(row["policy"] for row in drawn):
        mine = sorted((row for row in drawn if row["policy"] == policy), key=lambda row: row["budget"])
        if policy.split(":")[0] == "full":
            label = policy.replace("full", "full attention", 1)
            axes.axhline(mine[0]["perplexity"], color="black", linestyle="--", linewidth=1, label=label)
            continue
        budgets, values = [row["budget"] for row in mine], [row["perplexity"] for row in mine]
        axes.errorbar(budgets, values, yerr=_errors(mine), marker=next(markers), capsize=3, label=policy)
    axes.set_xscale("log", base=2)
    if drawn:  # a model that yields no number has no scale
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # 20, not 2 x 10^1
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.legend()
    ticks = sorted({row["budget"] for row in rows if row["policy"].split(":")[0] != "full"})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("multi-state size (tokens kept per layer)")
    axes.set_ylabel("perplexity")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.3)
    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", dpi=150)
    write_bytes(path, drawing.getvalue())


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
