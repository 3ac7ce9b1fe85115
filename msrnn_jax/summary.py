"""What rows say together: means over segments, their standard errors, and differences from the full model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msrnn_jax.evaluate import mean_over, perplexity_of

Line = Mapping[str, Any]


def summarise(lines: Sequence[Line], full: Sequence[Line] | None = None, *, fidelity: bool = False) -> dict[str, Any]:
    """The numbers of one policy at one budget.

    Args:
      lines: one for every segment: `nats`, `tokens` and `bytes`, and where they were compared with the full
        model `kl` and `agreement`, sums over tokens. None stands for what is no number; such a segment is left out,
        and counted.
      full: the full model's, of the same segments.
      fidelity: say what the comparison with the full model found.

    Returns:
      `perplexity`; `nll`, nats per token, with `stderr`; `bits_per_token`, `bits_per_byte` (None without bytes);
      `tokens`, `bytes`, `segments`; `failed_segments`, those left out, all numbers None where nothing else is there;
      with `full`, `above_full`, how many nats per token more; with `fidelity`,
      `kl`, nats per token, and `agreement`, a share. Each of these with a standard error over segments.
    """
    everything = list(lines)
    fine = [not failed(line) for line in everything]
    if any(fine):
        lines = [line for line, keep in zip(everything, fine, strict=True) if keep]
        full = None if full is None else [line for line, keep in zip(full, fine, strict=True) if keep]
    counts = _column(lines, "tokens")
    found = perplexity_of(_column(lines, "nats"), counts)
    bits, size = _column(lines, "nats").sum() / math.log(2), _column(lines, "bytes").sum()
    numbers: dict[str, Any] = {
        **found._asdict(),
        "bits_per_token": found.nll / math.log(2),
        "bits_per_byte": float(bits / size) if size else None,
        "bytes": int(size),
        "failed_segments": fine.count(False),
    }
    means = {}
    if full is not None:
        means["above_full"] = _column(lines, "nats") - _column(full, "nats")
    if fidelity:
        means |= {name: _column(lines, name) for name in ("kl", "agreement")}
    for name, sums in means.items():
        there = np.isfinite(sums)  # where the full model comes to no number nothing can be compared
        there = there if there.any() else np.ones_like(there)
        numbers[name], numbers[f"{name}_stderr"] = mean_over(sums[there], counts[there])
    return numbers


def failed(line: Line) -> bool:
    """Whether the model came to no number on a segment."""
    return line["nats"] is None


def _column(lines: Sequence[Line], name: str) -> np.ndarray:
    return np.asarray([math.nan if line[name] is None else line[name] for line in lines], np.float64)
