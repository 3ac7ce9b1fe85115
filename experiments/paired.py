"""Lines by their settings, means over documents with standard errors, and differences on the same documents."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from experiments.estimates import Estimate, mean, minus, ratio

Line = Mapping[str, Any]
L = TypeVar("L", bound=Line)


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
