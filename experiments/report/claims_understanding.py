"""Claims on questions and summaries of long documents: Figures 4 and 5."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from experiments.estimates import Estimate, minus
from experiments.report.draws import Draws, common, full, select, sizes
from experiments.report.records import Records
from experiments.report.verdicts import Claim, Part, Verdict, above, below, every, not_measured, some
from experiments.understanding.tables import nats_of, score_of
from msrnn_jax.journal import Line

NAME = "understanding"
RIVALS = {"window:sinks=4": "Window+4", "baseline": "short context"}
SHARES = (16, 8, 4, 2)  # of the context, one by the paper's budgets
MODES = {"stepwise": "the prompt read step by step", "oneshot": "the prompt read at once, then compressed"}


class Answers(NamedTuple):
    """The answers to one task, prompts read in one way."""

    lines: list[Line]
    task: str
    mode: str

    @property
    def context(self) -> int:
        return max(line["setting"]["context"] for line in self.lines)

    @property
    def budgets(self) -> list[int]:
        """Of TOVA, less than the context."""
        found = sizes(self.lines, "tova", task=self.task, mode=self.mode)
        return [budget for budget in found if budget < self.context]

    def of(self, policy: str, budget: int) -> Draws:
        """A short context is the same however a prompt is read."""
        wanted = {"task": self.task, "policy": policy, "budget": budget}
        if policy == "baseline":
            return select(self.lines, ("mode",), **wanted)
        return select(self.lines, mode=self.mode, **wanted)

    def full(self) -> Draws:
        return full(self.lines, task=self.task)


Decide = Callable[[Answers], Verdict]


def decide(task: str, mode: str, how: Decide, records: Records) -> Verdict:
    """Decides a claim on one task and one way to read prompts."""
    lines = [line for line in records.lines(NAME) if line["setting"]["task"] == task]
    if not lines:
        return not_measured(records.why(NAME) if not records.lines(NAME) else f"{NAME}.jsonl has no result of {task}")
    found = Answers(lines, task, mode)
    if not found.budgets:
        return not_measured(f"{NAME}.jsonl has no result of tova with {MODES[mode]}")
    return how(found)


def beats_all(found: Answers) -> Verdict:
    """Whether TOVA scores higher than each of its rivals at all budgets."""
    return every(*_against(found, score_of, partial(above, bound=0.0), "points more than the rival"))


def predicts_better(found: Answers) -> Verdict:
    """Whether TOVA gives the reference answers a higher probability than its rivals do."""
    return every(
        *_against(found, nats_of, partial(below, bound=0.0), "nats per token of the reference above the rival's")
    )


def by_points(bound: float, found: Answers) -> Verdict:
    """Whether TOVA is so many points above a rival anywhere."""
    return some(*_against(found, score_of, partial(above, bound=bound), "points more than the rival"))


def _against(
    found: Answers, number: Callable[[list[Line]], Estimate], test: Callable[..., Part], unit: str
) -> tuple[list[Part], str, str, list[str]]:
    """What `every` and `some` are given: the parts, their unit, no note, and those that are missing."""
    parts, missing = [], []
    for budget in (found.context // share for share in SHARES):
        for policy, name in RIVALS.items():
            ours, theirs = common(found.of("tova", budget), found.of(policy, budget))
            what = f"k = {budget}, {name}"
            if ours:
                parts.append(test(what, minus(number(ours), number(theirs))))
            else:
                missing.append(what)
    return parts, unit, "", missing


def within(points: float, share_of: int, found: Answers) -> Verdict:
    """Whether TOVA is within so many points of the full model at 1/`share_of` of the context."""
    return _below_full(points, [found.context // share_of], found, below)


def not_within(points: float, share_of: int, found: Answers) -> Verdict:
    """Whether TOVA is farther than so many points from the full model at all budgets up to a share of the context."""
    return _below_full(points, [found.context // share for share in SHARES if share >= share_of], found, above)


def _below_full(points: float, budgets: list[int], found: Answers, test: Callable[..., Part]) -> Verdict:
    parts, missing = [], []
    for budget in budgets:
        whole, ours = common(found.full(), found.of("tova", budget))
        if ours:
            parts.append(test(f"k = {budget}", minus(score_of(whole), score_of(ours)), points))
        else:
            missing.append(f"k = {budget}")
    return every(parts, "points less than the topline", missing=missing)


def _claims() -> Iterator[Claim]:
    for mode, how in MODES.items():

        def claim(
            task: str, text: str, decide_: Decide, *, ours: bool = False, mode: str = mode, how: str = how
        ) -> Claim:
            return Claim("3.2", f"{text} ({how})", partial(decide, task, mode, decide_), not ours)

        yield claim("squality", "SQuALITY: TOVA beats Window+4 and the short context at every k", beats_all)
        yield claim(
            "squality",
            "SQuALITY: TOVA is within 1 ROUGE point of the topline at 1/8 (LLaMA-2-chat)",
            partial(within, 1.0, 8),
        )
        yield claim(
            "squality",
            "SQuALITY: TOVA is within 1 ROUGE point of the topline at 1/4 (other models)",
            partial(within, 1.0, 4),
        )
        yield claim("qasper", "QASPER: TOVA beats Window+4 and the short context at every k", beats_all)
        yield claim("qasper", "QASPER: in some cases the gap is more than 5 F1", partial(by_points, 5.0))
        yield claim(
            "qasper", "QASPER: at 1/2 of the context TOVA is within 1 F1 of the topline", partial(within, 1.0, 2)
        )
        yield claim("qasper", "QASPER: with less than 1/2 of the context it is not", partial(not_within, 1.0, 4))
        for task, name in {"squality": "SQuALITY", "qasper": "QASPER"}.items():
            text = (
                f"{name}: TOVA finds the reference answers likelier than Window+4 and the short context do, at every k"
            )
            yield claim(task, text, predicts_better, ours=True)


CLAIMS = tuple(_claims())
