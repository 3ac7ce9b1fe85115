"""Claims on long stories: Figure 6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from experiments import published
from experiments.estimates import Estimate, mean, minus, over
from experiments.generation.verdict import DROPPED, outcomes
from experiments.paired import mean_of
from experiments.report.draws import common, full, select
from experiments.report.records import JUDGE, Records
from experiments.report.verdicts import Claim, Part, Verdict, above, below, every, inside, not_measured

NAME = "generation"


Judged = dict[str, str]  # by document, a win, tie or loss of TOVA


def judged(records: Records, budget: int) -> Judged:
    """What the judge said at a budget: a win or a loss only if both orders of the texts agree.

    Pairs that it has seen in one order only do not count yet.
    """
    found = outcomes(select(records.lines(JUDGE), policy="tova", budget=budget).values())
    return {document: one for document, one in found.items() if one != DROPPED}


def said(outcomes: Sequence[str], wanted: str) -> Estimate:
    """The share of pairs with an outcome."""
    return mean([float(one == wanted) for one in outcomes])


def topline_preferred(budget: int, records: Records) -> Verdict:
    """Whether the full model wins more often than TOVA does."""
    outcomes = list(judged(records, budget).values())
    if not outcomes:
        return not_measured(_why(records, budget))
    wins, _, losses, _ = published.STORIES[budget]
    more = minus(said(outcomes, "loss"), said(outcomes, "win"))
    return every([above(f"k = {budget}", more, 0.0, (losses - wins) / 100)], "share of pairs")


def mostly_ties(budget: int, records: Records) -> Verdict:
    """Whether more than half of the pairs are ties."""
    outcomes = list(judged(records, budget).values())
    if not outcomes:
        return not_measured(_why(records, budget))
    ties = published.STORIES[budget][1] / 100
    return every([above(f"k = {budget}", said(outcomes, "tie"), 0.5, ties)], "share of pairs")


def ties_grow(records: Records) -> Verdict:
    """Whether ties become more frequent with the budget."""
    parts, missing = [], []
    for small, large in ((256, 512), (512, 1024)):
        first, second = judged(records, small), judged(records, large)
        both = [document for document in first if document in second]
        if both:
            paper = (published.STORIES[large][1] - published.STORIES[small][1]) / 100
            more = minus(said([second[one] for one in both], "tie"), said([first[one] for one in both], "tie"))
            parts.append(above(f"k = {large} against {small}", more, 0.0, paper))
        else:
            missing.append(f"k = {large} against {small}")
    return every(parts, "share of pairs", missing=missing) if parts else not_measured(_why(records, 512))


def _why(records: Records, budget: int) -> str:
    return f"the judge saw no pair at k = {budget}" if records.lines(JUDGE) else records.why(JUDGE)


Test = Callable[[str, Estimate, Estimate], Part]  # of TOVA's lengths and the full model's


def lengths(budget: int, test: Test, unit: str, records: Records) -> Verdict:
    """Compares the lengths of TOVA's stories with those of the full model's."""
    lines = records.lines(NAME)
    if not lines:
        return not_measured(records.why(NAME))
    ours, theirs = common(select(lines, ("mode",), policy="tova", budget=budget), full(lines))
    if not ours:
        return not_measured(f"{NAME}.jsonl has no result of k = {budget}")
    cut = [sum(not line.get("ended") for line in lines) for lines in (ours, theirs)]
    if any(cut):
        most = max(line["setting"]["max_new_tokens"] for line in ours)
        counted = f"{cut[0]} of TOVA's and {cut[1]} of the full model's {len(ours)} stories"
        return not_measured(f"{counted} were cut at {most:,} tokens: how long they are is not known")
    return every([test(f"k = {budget}", mean_of(ours, "tokens"), mean_of(theirs, "tokens"))], unit)


def _shorter(what: str, ours: Estimate, whole: Estimate) -> Part:
    paper = published.STORIES[int(what.removeprefix("k = "))][3] - published.FULL_STORY
    return below(what, minus(ours, whole), 0.0, paper)


def _as_long(what: str, ours: Estimate, whole: Estimate) -> Part:
    return inside(what, over(ours, whole), 0.99, 1.01, 1.0)


CLAIMS = (
    Claim("3.3", "Stories: the full model wins more often than TOVA with 256 tokens", partial(topline_preferred, 256)),
    Claim("3.3", "Stories: the full model wins more often than TOVA with 512 tokens", partial(topline_preferred, 512)),
    Claim("3.3", "Stories: with 1,024 tokens most pairs are ties", partial(mostly_ties, 1024)),
    Claim("3.3", "Stories: ties become more frequent with k", ties_grow),
    Claim(
        "3.3", "Stories with 256 tokens are shorter than the full model's", partial(lengths, 256, _shorter, "tokens")
    ),
    Claim(
        "3.3", "Stories with 512 tokens are shorter than the full model's", partial(lengths, 512, _shorter, "tokens")
    ),
    Claim(
        "3.3",
        "Stories with 1,024 tokens are as long as the full model's (within 1 %)",
        partial(lengths, 1024, _as_long, "length over the full model's"),
    ),
)
