"""Numbers found on the same documents, with errors that carry over into what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

Line = Mapping[str, Any]
L = TypeVar("L", bound=Line)


class Estimate(NamedTuple):
    """A number found on D documents, the independent draws.

    Every document pulls the number a little its way. Pulls of two numbers found on the same documents can be taken
    from one another document by document, so what makes a document hard for both cancels: the delta method, paired.
    """

    value: float
    pulls: Float[np.ndarray, " D"]  # how far each document moves the value
    documents: int  # those that have what is counted, at most D; 0 for what is no measurement

    @property
    def stderr(self) -> float:
        """Over documents; nan for a single one and for no number, 0 for what is no measurement."""
        if self.documents < 2:
            return math.nan if self.documents or math.isnan(self.value) else 0.0
        return float(np.sqrt(np.square(self.pulls).sum() * self.documents / (self.documents - 1)))


def ratio(sums: Sequence[float | None], counts: Sequence[float]) -> Estimate:
    """A sum over documents over another one, such as losses over tokens; None is no number, and makes it nan."""
    totals, weights = _floats(sums), _floats(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = totals.sum() / weights.sum()
        return Estimate(float(value), (totals - value * weights) / weights.sum(), int((weights > 0).sum()))


def mean(values: Sequence[float | None]) -> Estimate:
    """The mean over documents."""
    return ratio(values, [1.0] * len(values))


def columns(name: str, one: Estimate) -> dict[str, float]:
    """An estimate as two values of a row."""
    return {name: one.value, f"{name}_stderr": one.stderr}


def exact(value: float) -> Estimate:
    """What is computed, not measured on documents."""
    return Estimate(value, np.zeros(0), 0)


def combine(*terms: tuple[float, Estimate]) -> Estimate:
    """A sum of estimates on the same documents, each times its factor."""
    with np.errstate(invalid="ignore"):
        pulls = np.sum([factor * one.pulls for factor, one in terms], axis=0)
    return Estimate(sum(factor * one.value for factor, one in terms), pulls, min(one.documents for _, one in terms))


def minus(first: Estimate, second: Estimate) -> Estimate:
    """The paired difference."""
    return combine((1.0, first), (-1.0, second))


def times(factor: float, one: Estimate) -> Estimate:
    """The same in another unit."""
    return combine((factor, one))


def exp(one: Estimate) -> Estimate:
    """Such as a perplexity, from nats per token."""
    with np.errstate(over="ignore", invalid="ignore"):
        value = float(np.exp(one.value))
        return Estimate(value, value * one.pulls, one.documents)


def over(first: Estimate, second: Estimate) -> Estimate:
    """The paired quotient."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(np.float64(first.value) / second.value)
        pulls = (first.pulls - value * second.pulls) / second.value
        return Estimate(value, pulls, min(first.documents, second.documents))


def geometric(*estimates: Estimate) -> Estimate:
    """The geometric mean of positive numbers found on the same documents."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(np.prod([one.value for one in estimates]) ** (1 / len(estimates)))
        relative = [one.pulls / np.float64(one.value) for one in estimates]
        pulls = value * np.mean(relative, axis=0)
        return Estimate(value, pulls, min(one.documents for one in estimates))


def _floats(values: Sequence[float | None]) -> Float[np.ndarray, " D"]:
    return np.asarray([np.nan if value is None else value for value in values], np.float64)


def by(lines: Iterable[L], *names: str) -> dict[tuple[Any, ...], list[L]]:
    """Lines in groups whose settings agree in these names, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[L]] = {}
    for line in lines:
        groups.setdefault(tuple(line["setting"][name] for name in names), []).append(line)
    return groups


def mean_of(lines: Sequence[Line], value: str, weight: str | None = None) -> Estimate:
    """The mean of a number over lines, with its standard error: each line is an independent draw.

    Args:
      lines: none make the mean nan.
      value: name of a number; a line without it (or None, no number) makes the mean nan.
      weight: name of a count, for numbers that are sums over it, such as losses over tokens.
    """
    values = [line.get(value) for line in lines]
    return mean(values) if weight is None else ratio(values, [line.get(weight) or 0 for line in lines])


def difference(first: Sequence[Line], second: Sequence[Line], value: str, weight: str | None = None) -> Estimate:
    """How much larger the mean of a number is in the first lines, on the documents that both have; nan without any.

    Lines are paired by document, so that what makes a document hard for both does not count.
    """
    return minus(*(mean_of(lines, value, weight) for lines in pair(first, second)))


class Pairs(NamedTuple):
    """Lines of two settings, document by document."""

    first: list[Line]
    second: list[Line]


def pair(first: Sequence[Line], second: Sequence[Line]) -> Pairs:
    """The lines of those documents that are in both, in the order of the first."""
    theirs = {(line["document"], line["sha256"]): line for line in second}
    mine = {(line["document"], line["sha256"]): line for line in first}
    both = [place for place in mine if place in theirs]
    return Pairs([mine[place] for place in both], [theirs[place] for place in both])
