"""What a report begins with: what agrees with the paper, what does not, and what is open, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.common.claims import AGREES, DISAGREES, NOT_MEASURED, UNDECIDED
from experiments.report.report import Decided, Report, spell_number, spell_paper, tightest

TITLES = {AGREES: "What agrees", DISAGREES: "What disagrees", UNDECIDED: "What is undecided"}
ABOUT = {
    AGREES: "The paper claims this, and it holds here. If a claim has several numbers, the one nearest to its bound is "
    "shown.",
    DISAGREES: "The paper claims this, and it does not hold here. If a claim has several numbers, the one furthest "
    "beyond its bound is shown, in standard errors.",
    UNDECIDED: "The paper claims this, and the numbers here are too near their bound to tell. If a claim has several "
    "numbers, the worst one is shown.",
}
LEADING = (  # what the paper is cited for, and our questions whose answers a user of a bounded state needs
    "Window explodes: at least 33 times the topline's perplexity at every k below the context",
    "TOVA has a lower perplexity than H2O at every k below the context",
    "TOVA has a lower perplexity than Window+4 at every k below the context",
    "TOVA has a lower perplexity than the short context at every k below the context",
    "Keeping the first 4 tokens gains TOVA nothing (at most 1 %)",
    "TOVA is within 0.4 perplexity of the topline at 1/8 of the context",
    "H2O needs at least 1/2 of the context to be within 0.4 perplexity of the topline",
    "SQuALITY: TOVA beats Window+4 and the short context at every k (the prompt read step by step)",
    "QASPER: TOVA beats Window+4 and the short context at every k (the prompt read step by step)",
    "At 1/8 of the context 88 % of the cache is saved (7/8)",
    "At 1/8 of the context throughput is at least 4.8 times the full model's",
    "At equal memory a smaller state decodes faster",
    "TOVA with 512 tokens and compressed gaps loses less than 0.5 perplexity up to 70,000 tokens",
    "Recent tokens are 73 to 76 % of what TOVA keeps",
    "The first token is kept to the end at every k (in at least 95 % of layers)",
    "Possessive endings are kept longest of all tags, at k up to 1/4",
    "Needle: with the question after the text, TOVA finds the fact less often than the full model",
    "Needle: with the question before the text, TOVA finds it more often than with it after",
)


class Finding(NamedTuple):
    """What has one outcome, as sentences."""

    title: str
    about: str  # all of it
    leading: Sequence[str]
    others: Sequence[str]


def findings(report: Report) -> list[Finding]:
    """One for each outcome of the paper's claims, and one of our own questions; none is empty."""
    papers = [one for one in report.decided if one.claim.is_papers]
    found = [
        _finding(f"{title}: {_claims(len(mine))}", ABOUT[outcome], mine)
        for outcome, title in TITLES.items()
        if (mine := [one for one in papers if one.verdict.outcome == outcome])
    ]
    asked = [one for one in report.decided if not one.claim.is_papers and one.verdict.parts]
    if asked:
        found.append(_finding("What the paper does not ask", "Questions of ours beside it.", asked, with_outcome=True))
    missing = list(_not_measured(papers))
    return [*found, Finding("What is not measured", "The results do not say.", missing, [])] if missing else found


def _claims(count: int) -> str:
    return f"{count} claim{'' if count == 1 else 's'}"


def _finding(title: str, about: str, decided: Sequence[Decided], *, with_outcome: bool = False) -> Finding:
    leading: list[str] = []
    others: list[str] = []
    for one in decided:
        before = f"{one.verdict.outcome.capitalize()}: " if with_outcome else ""
        (leading if one.claim.text in LEADING else others).append(before + sentence(one))
    return Finding(title, about, leading or others, others if leading else [])


def _not_measured(decided: Sequence[Decided]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for claim, verdict in decided:
        if verdict.outcome == NOT_MEASURED:
            reasons.setdefault(verdict.note, []).append(claim.text)
    for reason, texts in reasons.items():
        yield f"{'; '.join(texts)}. Why: {reason.replace('not measured: ', 'there is no result at ')}."


def sentence(one: Decided) -> str:
    """A claim, the number that its verdict hangs on, what it needs, and the paper's."""
    claim, verdict = one
    part = tightest(verdict) or verdict.parts[0]
    paper = "" if part.paper is None else f", the paper has {spell_paper(part)}"
    measured = f"Measured at {part.what}: {spell_number(part)} ({verdict.unit}); the claim needs a number {part.wanted}"
    agreeing = sum(part.outcome == AGREES for part in verdict.parts)
    counted = f" It holds in {agreeing} of {len(verdict.parts)} comparisons." if len(verdict.parts) > 1 else ""
    note = f" ({verdict.note[0].upper()}{verdict.note[1:]}.)" if verdict.note else ""
    return f"{claim.text}. {measured}{paper}.{counted}{note}"
