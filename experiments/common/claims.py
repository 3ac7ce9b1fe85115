"""How a claim is decided: every number against its bound, by its standard error."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from scipy.stats import norm, t

from experiments.common.estimates import Estimate

if TYPE_CHECKING:
    from experiments.common.records import Records

AGREES, DISAGREES, UNDECIDED, NOT_MEASURED = "agrees", "disagrees", "undecided", "not measured"
OUTCOMES = (AGREES, DISAGREES, UNDECIDED, NOT_MEASURED)
LEVEL = float(norm.sf(2.0))  # how often a number on its bound is told to be on one side of it: by two errors of many


class Part(NamedTuple):
    """One number that a claim was decided from."""

    what: str
    value: float
    stderr: float  # nan where a single document was read
    wanted: str  # such as "below 0.4"
    outcome: str
    documents: int
    errors: float  # standard errors that it is on the right side of its bound; below 0 on the wrong one
    paper: float | None  # the same number in the paper


class Verdict(NamedTuple):
    """What became of a claim."""

    outcome: str
    unit: str = ""  # of the parts' numbers
    parts: tuple[Part, ...] = ()
    note: str = ""  # what is missing


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence that results can bear out or not.

    Attributes:
      source: section of the paper's facts that it is from.
      text: what is claimed.
      decide: reads it off the results.
      is_papers: whether the paper says it; what it does not is a question of ours beside it.
    """

    source: str
    text: str
    decide: Callable[[Records], Verdict]
    is_papers: bool = True


def below(what: str, one: Estimate, bound: float, paper: float | None = None) -> Part:
    """Whether a number is at most `bound`."""
    return _part(what, one, bound - one.value, f"below {_bound(bound)}", paper)


def above(what: str, one: Estimate, bound: float, paper: float | None = None) -> Part:
    """Whether a number is at least `bound`."""
    return _part(what, one, one.value - bound, f"above {_bound(bound)}", paper)


def inside(what: str, one: Estimate, low: float, high: float, paper: float | None = None) -> Part:
    """Whether a number is between two bounds."""
    return _part(what, one, min(one.value - low, high - one.value), f"from {_bound(low)} to {_bound(high)}", paper)


def _bound(value: float) -> str:
    return (f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")


@functools.cache
def errors_needed(documents: int) -> float:
    """Standard errors that a number must be from its bound: Student's t, 2.0 of many documents, 14 of two.

    What is computed, from no documents, needs none.
    """
    if documents < 2:
        return math.inf if documents else 0.0
    return float(t.isf(LEVEL, documents - 1))


def _part(what: str, one: Estimate, margin: float, wanted: str, paper: float | None) -> Part:
    if math.isnan(margin) or math.isnan(one.stderr):
        errors = math.nan
    elif one.stderr:
        errors = margin / one.stderr
    elif one.documents:  # what all documents have alike counts as if one more lay on the bound
        errors = math.copysign(one.documents, margin) if margin else 0.0
    else:
        errors = math.copysign(math.inf, margin) if margin else math.inf  # on the bound is right
    if errors != errors or abs(errors) < errors_needed(one.documents):
        outcome = UNDECIDED
    else:
        outcome = AGREES if errors > 0 else DISAGREES
    return Part(what, one.value, one.stderr, wanted, outcome, one.documents, errors, paper)


def every(parts: Sequence[Part], unit: str, note: str = "", missing: Sequence[str] = ()) -> Verdict:
    """A claim that holds if all of it does: one part that disagrees refutes it.

    Args:
      missing: names of parts that were not measured, without which it cannot be borne out.
    """
    outcomes = {part.outcome for part in parts}
    if DISAGREES in outcomes:
        outcome = DISAGREES
    else:
        outcome = UNDECIDED if UNDECIDED in outcomes or missing else AGREES
    return _verdict(outcome, parts, unit, note, missing)


def some(parts: Sequence[Part], unit: str, note: str = "", missing: Sequence[str] = ()) -> Verdict:
    """A claim that holds if any of it does: all parts must disagree to refute it, those that are missing too."""
    outcomes = {part.outcome for part in parts}
    if AGREES in outcomes:
        outcome = AGREES
    else:
        outcome = UNDECIDED if UNDECIDED in outcomes or missing else DISAGREES
    return _verdict(outcome, parts, unit, note, missing)


def either(parts: Sequence[Part], unit: str, note: str = "", missing: Sequence[str] = ()) -> Verdict:
    """A claim on one of its parts, it is not known which: only what they have in common decides it."""
    outcomes = {part.outcome for part in parts}
    outcome = outcomes.pop() if len(outcomes) == 1 and not missing else UNDECIDED
    return _verdict(outcome, parts, unit, note, missing)


def not_measured(why: str) -> Verdict:
    """Nothing to decide from."""
    return Verdict(NOT_MEASURED, note=why)


def _verdict(outcome: str, parts: Sequence[Part], unit: str, note: str, missing: Sequence[str]) -> Verdict:
    absent = f"not measured: {', '.join(missing)}" if missing else ""
    note = "; ".join(filter(None, (note, absent)))
    if not parts:
        return not_measured(note or "no result to decide it from")
    return Verdict(outcome, unit, tuple(parts), note)
