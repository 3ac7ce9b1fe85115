"""What rows say together: means over segments, their standard errors, and differences from the full model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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


class Mean(NamedTuple):
    """A token-weighted mean over segments."""

    value: float
    stderr: float  # over segments; nan for a single one


def mean_over(sums: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray) -> Mean:
    """The mean per token of what is known of every segment as a sum over its tokens.

    The standard error is that of a ratio of sums: segments are the independent draws, weighted by tokens.

    Args:
      sums: one for every segment.
      counts: tokens of every segment.
    """
    sums, weights = np.asarray(sums, np.float64), np.asarray(counts, np.float64)  # [B]
    total = weights.sum()
    with np.errstate(invalid="ignore"):  # inf - inf, where a model yields no numbers
        mean = float(sums.sum() / total)
        spread = float(np.sqrt(((sums - mean * weights) ** 2).sum())) / float(total)
    number = len(sums)
    return Mean(mean, spread * math.sqrt(number / (number - 1)) if number > 1 else math.nan)


class Perplexity(NamedTuple):
    """Token-weighted mean loss over segments."""

    perplexity: float  # exp(nll)
    nll: float  # nats per predicted token
    stderr: float  # of nll, over segments; nan for a single one
    tokens: int  # predicted tokens
    segments: int


def perplexity_of(sums: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray) -> Perplexity:
    """Perplexity from the sums of losses, in nats, and the predicted tokens of every segment."""
    mean = mean_over(sums, counts)
    return Perplexity(perplexity_from(mean.value), *mean, int(np.sum(counts)), len(counts))


def perplexity_from(nll: float) -> float:
    """exp of nats per token, inf where that is no number of this size."""
    with np.errstate(over="ignore"):
        return float(np.exp(nll))
