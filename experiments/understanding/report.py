"""Claims on questions and summaries of long documents: Figures 4 and 5; and the section of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from experiments.common import published
from experiments.common.claims import Claim, Part, Verdict, above, below, every, not_measured, some
from experiments.common.draws import Draws, common, full, select, sizes
from experiments.common.estimates import Estimate, minus
from experiments.common.figures import Column, Grid, Picture, Row, Section, budget_axis, canvas, legend_below, ours, png
from experiments.common.records import Records
from experiments.understanding.tables import nats_of, score_of, summarise
from msrnn_jax.io.journal import Line

NAME = "understanding"
RIVALS = {"window:sinks=4": "Window+4", "baseline": "short context"}
SHARES = (16, 8, 4, 2)  # of the context, one by the paper's budgets
MODES = {"stepwise": "the prompt read step by step", "oneshot": "the prompt read at once, then compressed"}
TASKS = {
    "squality": ("SQuALITY", "ROUGE, geometric mean", "figure_4"),
    "qasper": ("QASPER", "F1", "figure_5"),
}
COLUMNS = (
    Column("policy", "policy"),
    Column("mode", "prompt"),
    Column("budget", "k"),
    Column("questions", "questions"),
    Column("score", "score, of 100", 2),
    Column("nats", "nats per token of the reference", 4),
    Column("generated_tokens", "tokens of the answer", 1),
)


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


def make(records: Records) -> Section | None:
    """The section of these results, None where there are none."""
    lines = records.lines(NAME)
    if not lines:
        return None
    about = (
        "Documents are cut at their end to fit the context. The score of an answer is near its floor for a small "
        "model, so the loss of the reference answers under the same state stands beside it."
    )
    grids, pictures, found = [], [], summarise(lines)
    for task, (name, measure, picture) in TASKS.items():
        rows = [{**row, "mode": row["mode"] or ""} for row in found if row["task"] == task]
        if rows:
            grids.append(Grid(f"{name}: {measure}", COLUMNS, rows))
            pictures.append(_picture(rows, name, measure, picture, published.SCORES[task]))
    return Section(NAME, "Long-range understanding (Figures 4 and 5)", about, grids, pictures)


def _picture(rows: Sequence[Row], name: str, measure: str, file: str, axis: tuple[int, int]) -> Picture:
    modes = list(dict.fromkeys(row["mode"] for row in rows if row["policy"] not in ("full", "baseline"))) or [""]
    figure, panels = canvas(len(modes), 2, width=5.2, height=3.6)
    for number, panel in enumerate(panels):
        mode, value = modes[number % len(modes)], ("score", "nats")[number // len(modes)]
        _panel(panel, [row for row in rows if row["mode"] == mode or row["policy"] in ("full", "baseline")], value)
        panel.set_title(f"{name}, {mode} prompts" if mode else name)
        panel.set_ylabel(f"{measure}, of 100" if value == "score" else "nats per token of the reference")
    legend_below(figure, 2 * len(modes))
    low, high = axis
    return Picture(
        file,
        f"Figure {file[-1]}: {name} against the multi-state size, scores above, loss of the references below. "
        "Points of one size stand side by side. "
        f"The paper gives a plot only: LLaMA-2-7B-chat lies between {low} and {high}.",
        f"Score and loss of {name} against the multi-state size, a line for each policy",
        png(figure),
    )


def _panel(panel, rows: Sequence[Row], value: str) -> None:
    budgets = sorted({row["budget"] for row in rows if row["policy"] != "full"})
    for number, policy in enumerate(dict.fromkeys(row["policy"] for row in rows)):
        apart = 2 ** (0.05 * (number - 2))  # side by side, so that errors do not cover each other
        mine = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["budget"] or 0)
        if policy == "full":
            panel.axhline(mine[0][value], color="black", linewidth=1, label="full model")
        else:
            ours(panel, policy, [(row["budget"] * apart, row[value], row[f"{value}_stderr"]) for row in mine])
    budget_axis(panel, budgets)
