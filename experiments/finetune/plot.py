"""Pictures of the losses of one run and of several; need matplotlib."""

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from msrnn_jax.io.atomic import write_bytes

Lines = Sequence[Mapping[str, Any]]  # one a step, in order


def plot_losses(path: pathlib.Path, lines: Lines, title: str, window: int) -> None:
    """Draws the loss of every step, and its mean over the steps around, and writes the picture atomically.

    Args:
      window: steps of the mean, such as those of a stretch, since the beginning of one is harder than its end.
    """

    def draw(axes: Any) -> None:
        reads = any(line["nats"] for line in lines)  # else it is a gate by itself that predicts attention
        steps, nats = _column(lines, "step"), _column(lines, "nats" if reads else "loss")
        axes.plot(steps, nats, linewidth=0.6, alpha=0.4, label="every step")
        if window > 1 and len(nats) >= window:
            axes.plot(steps[window - 1 :], _mean(nats, window), label=f"mean of the last {window}")
        if any(line["kl"] for line in lines):
            axes.plot(steps, _column(lines, "kl"), linewidth=0.6, label="KL(teacher || model)")

    _write(path, title, draw)


def plot_runs(path: pathlib.Path, runs: Mapping[str, Lines], window: int) -> None:
    """Draws the losses of several runs by name, means of the last `window` steps, and writes the picture atomically."""

    def draw(axes: Any) -> None:
        for name, lines in runs.items():
            width = min(window, len(lines))
            axes.plot(_column(lines, "step")[width - 1 :], _mean(_column(lines, "nats"), width), label=name)

    _write(path, f"loss of the next token while training, mean of the last {window} steps", draw)


def _column(lines: Lines, name: str) -> np.ndarray:
    return np.asarray([line[name] for line in lines], np.float64)


def _mean(values: np.ndarray, window: int) -> np.ndarray:
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def _write(path: pathlib.Path, title: str, draw: Callable[[Any], None]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.set_title(title)
    axes.grid(True, alpha=0.3)
    axes.legend()
    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", dpi=120)
    write_bytes(path, drawing.getvalue())
