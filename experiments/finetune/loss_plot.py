"""A picture of the losses of a run; needs matplotlib."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msrnn_jax.record import write_bytes


def plot_losses(path: pathlib.Path, lines: Sequence[Mapping[str, Any]], title: str, window: int) -> None:
    """Draws the loss of every step, and its mean over the steps around, and writes the picture atomically.

    Args:
      lines: one a step, in order.
      window: steps of the mean, such as those of a stretch, since the beginning of one is harder than its end.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = np.asarray([line["step"] for line in lines])
    nats = np.asarray([line["nats"] for line in lines], np.float64)
    axes.plot(steps, nats, linewidth=0.6, alpha=0.4, label="every step")
    if window > 1 and len(nats) >= window:
        mean = np.convolve(nats, np.full(window, 1 / window), mode="valid")
        axes.plot(steps[window - 1 :], mean, label=f"mean of the last {window}")
    if any(line["kl"] for line in lines):
        axes.plot(steps, [line["kl"] for line in lines], linewidth=0.6, label="KL(teacher || model)")
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.set_title(title)
    axes.grid(True, alpha=0.3)
    axes.legend()
    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", dpi=120)
    write_bytes(path, drawing.getvalue())
