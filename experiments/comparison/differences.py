"""How far two policies are apart, on the documents that both have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments.common.claims import Part, below
from experiments.common.draws import Draws, common
from experiments.common.estimates import Estimate, by, combine, mean_of, minus, times
from experiments.comparison.policies import EVERY_TOKEN, cut, every_of
from experiments.language_modeling.report import above_full
from msrnn_jax.io.journal import Line

Of = tuple[str, int]  # a policy and its budget


class Found(NamedTuple):
    """One number of every policy at every budget.

    Attributes:
      draws: lines by policy and budget, then by document.
      number: of some lines; the lower the better.
    """

    draws: Mapping[Of, Draws]
    number: Callable[[Sequence[Line]], Estimate]

    def above(self, one: Of, other: Of) -> float:
        """How much higher the first is than the second, on the documents that both have; inf where there are none."""
        apart = self.apart((one, other))
        return math.inf if apart is None else apart.value

    def apart(self, *pairs: tuple[Of, Of]) -> Estimate | None:
        """How much higher the first of a pair is than the second, mean over pairs, on the documents that all have.

        None where there is no such document.
        """
        groups = common(*(self.draws.get(one, {}) for pair in pairs for one in pair))
        if not groups[0]:
            return None
        numbers = [self.number(lines) for lines in groups]
        return combine(*((1 / len(pairs), minus(*two)) for two in zip(numbers[::2], numbers[1::2], strict=True)))

    def better(self, first: Of, second: Of) -> Part | None:
        """Whether the first is better; see `claims.below` for what is undecided."""
        apart = self.apart((first, second))
        return None if apart is None else below(f"{first} against {second}", apart, 0.0)

    def policies(self, budget: int, every: int) -> list[str]:
        """Those of one group that have a number at this budget."""
        return [policy for policy, size in self.draws if size == budget and every_of(policy) == every]


def losses(lines: Sequence[Line]) -> Found:
    """Nats per token above the full model's on the same tokens."""
    return Found(_index(lines), above_full)


def misses(cases: Sequence[Line], order: str) -> Found:
    """Minus the share of needles that are found, where the question stands `before` or `after` the text."""
    mine = [line for line in cases if line["setting"]["order"] == order]
    return Found(_index(mine), lambda lines: times(-1.0, mean_of(lines, "correct")))


def _index(lines: Sequence[Line]) -> dict[Of, Draws]:
    groups = by([line for line in lines if line["setting"]["policy"] not in ("full", "baseline")], "policy", "budget")
    return {(policy, budget): {line["document"]: line for line in mine} for (policy, budget), mine in groups.items()}


def reference_of(policy: str) -> str:
    """TOVA that cuts as often."""
    return cut("tova", every_of(policy))


def alone(policy: str) -> str:
    """The same policy where it cuts at every token."""
    return cut(policy, EVERY_TOKEN)
