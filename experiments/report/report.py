"""A whole report as values: verdicts, sections and origins, before it is written in any form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from experiments.common.claims import AGREES, DISAGREES, OUTCOMES, Claim, Part, Verdict
from experiments.common.figures import Section, number
from experiments.common.records import Records
from experiments.common.schema import Check
from experiments.extrapolation import fields as extrapolation_fields
from experiments.extrapolation import report as extrapolation
from experiments.generation import fields as generation_fields
from experiments.generation import report as generation
from experiments.language_modeling import fields as language_modeling_fields
from experiments.language_modeling import report as language_modeling
from experiments.needle import fields as needle_fields
from experiments.needle import report as needle
from experiments.report.origin import Origin, different_models, missing, model_name, origins
from experiments.retention import fields as retention_fields
from experiments.retention import report as retention
from experiments.throughput import report as throughput
from experiments.understanding import fields as understanding_fields
from experiments.understanding import report as understanding

PAPER = "Oren et al., Transformers are Multi-State RNNs (arXiv 2401.06104v2)"
HOW = (
    "A claim is decided from numbers with standard errors over documents, of paired differences wherever two settings "
    "read the same documents: a number agrees or disagrees if it is at least two standard errors on that side of its "
    "bound (of few documents more, by Student's t: 2.4 of eight, 14 of two), and is undecided otherwise. What all "
    "documents have alike counts as if one more lay on the bound. A claim about several sizes agrees if all of them "
    "do, none missing, and disagrees if any does; no correction is made for how many there are. Perplexities are "
    "compared as they are in the paper, their errors carried over from those of the loss. Segments, questions, "
    "stories and draws count as independent, also where they are of one book or paper. Computed sizes have no error."
)


# In the order of the paper.
EXPERIMENTS = (language_modeling, understanding, generation, throughput, extrapolation, retention, needle)
CHECKS: dict[str, Check] = {
    "language_modeling": language_modeling_fields.check,
    "understanding": understanding_fields.check,
    "generation": generation_fields.check,
    "generation_judge": generation_fields.check_judgement,
    "retention": retention_fields.check,
    "needle": needle_fields.check,
    "extrapolation": extrapolation_fields.check,
}
CLAIMS = tuple(claim for experiment in EXPERIMENTS for claim in experiment.CLAIMS)


class Decided(NamedTuple):
    """A claim with what became of it."""

    claim: Claim
    verdict: Verdict


class Report(NamedTuple):
    """All that a report says."""

    model: str
    decided: Sequence[Decided]
    sections: Sequence[Section]
    origins: Sequence[Origin]
    missing: Sequence[str]  # in words
    warnings: Sequence[str]

    def counts(self, is_papers: bool = True) -> dict[str, int]:
        """How many claims had each outcome."""
        found = Counter(one.verdict.outcome for one in self.decided if one.claim.is_papers == is_papers)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def summary(self) -> str:
        """The counts in a sentence."""
        counts = self.counts()
        told = ", ".join(f"{count} {_verb(outcome, count)}" for outcome, count in counts.items())
        return f"Of {sum(counts.values())} claims of the paper: {told}."


def _verb(outcome: str, count: int) -> str:
    if outcome in (AGREES, DISAGREES):
        return outcome if count == 1 else outcome.removesuffix("s")
    return f"{'is' if count == 1 else 'are'} {outcome}"


def make_report(records: Records, model: str | None = None) -> Report:
    """Decides all claims and draws all figures.

    Args:
      model: what it is called; None: as its checkpoint.
    """
    found = origins(records)
    decided = [Decided(claim, claim.decide(records)) for claim in CLAIMS]
    warnings = ["The results are of different weights."] if different_models(found) else []
    return Report(model or model_name(found), decided, make_sections(records), found, missing(records), warnings)


def spell_number(part: Part) -> str:
    """A part's number with its standard error, to as many digits as that allows."""
    places = places_of(part)
    if part.stderr == 0:
        return number(part.value, places)
    error = "no error: one document" if part.stderr != part.stderr else number(part.stderr, places)
    return f"{number(part.value, places)} ± {error}"


def spell_paper(part: Part) -> str:
    """The paper's number, to as many digits as ours."""
    return "" if part.paper is None else number(part.paper, min(places_of(part), 4))


def places_of(part: Part) -> int:
    """Decimals worth showing."""
    scale = part.stderr if part.stderr and part.stderr == part.stderr else abs(part.value) / 100
    return next((places for places in range(5) if scale >= 2 * 10.0**-places), 5) if scale > 0 else 2


def tightest(verdict: Verdict) -> Part | None:
    """The part that a verdict hangs on: of those with its outcome the one that agrees least."""
    found = [part for part in verdict.parts if part.outcome == verdict.outcome]
    return min(found, key=lambda part: part.errors if part.errors == part.errors else 0.0, default=None)


def in_brief(verdict: Verdict) -> str:
    """What a verdict was decided from, in a line."""
    if not verdict.parts:
        return verdict.note
    agreeing = sum(part.outcome == "agrees" for part in verdict.parts)
    part = tightest(verdict) or verdict.parts[0]
    paper = f", paper {spell_paper(part)}" if part.paper is not None else ""
    counted = f"; {agreeing} of {len(verdict.parts)} agree" if len(verdict.parts) > 1 else ""
    note = f" ({verdict.note})" if verdict.note else ""
    return f"{part.what}: {spell_number(part)} ({verdict.unit}), wanted {part.wanted}{paper}{counted}{note}"


def make_sections(records: Records) -> list[Section]:
    """The sections of what is there."""
    made = [experiment.make(records) for experiment in EXPERIMENTS]
    return [section for section in made if section is not None]
