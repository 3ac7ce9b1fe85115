"""Claims on a fact far back, which follow-up work found lost: the paper has none of its own."""

from __future__ import annotations

from collections.abc import Callable

from experiments.estimates import minus
from experiments.paired import mean_of
from experiments.report.draws import Draws, common, full, select, sizes, values_of
from experiments.report.records import Records
from experiments.report.verdicts import Claim, Verdict, above, every, not_measured
from msrnn_jax.journal import Line

NAME = "needle"


def longer_than(lines: list[Line], budget: int) -> list[Line]:
    """Texts that do not fit into a budget."""
    return [line for line in lines if line["setting"]["length"] > budget]


def loses(records: Records) -> Verdict:
    """Whether TOVA finds the fact less often than the full model, when the question comes after the text."""
    return _at_all(
        records, "after", "share found, full less TOVA", lambda far, ours, order: (full(far, order=order), ours)
    )


def asked_before(records: Records) -> Verdict:
    """Whether TOVA finds the fact more often when the question comes before the text."""

    def pair(far: list[Line], ours: Draws, order: str) -> tuple[Draws, Draws]:
        del order
        setting = next(iter(ours.values()))["setting"]
        wanted = {"policy": "tova", "budget": setting["budget"], "order": "before"}
        return select(far, ("mode",), **wanted), ours

    return _at_all(records, "after", "share found, before less after", pair)


def _at_all(
    records: Records, order: str, unit: str, pair: Callable[[list[Line], Draws, str], tuple[Draws, Draws]]
) -> Verdict:
    """Decides at every budget of TOVA whether the first of a pair finds more, on texts that do not fit into it."""
    lines, parts = records.lines(NAME), []
    for mode in values_of(lines, "mode"):
        for budget in sizes(lines, "tova", mode=mode, order=order):
            one_mode = [
                line for line in lines if line["setting"]["mode"] == mode or line["setting"]["policy"] == "full"
            ]
            far = longer_than(one_mode, budget)
            ours = select(far, ("mode",), policy="tova", budget=budget, order=order)
            first, second = common(*pair(far, ours, order)) if ours else ([], [])
            if first:
                what = f"k = {budget}, {mode}" if mode else f"k = {budget}"
                parts.append(above(what, minus(mean_of(first, "correct"), mean_of(second, "correct")), 0.0))
    return every(parts, unit) if parts else not_measured(records.why(NAME))


CLAIMS = (
    Claim(
        "5.1",
        "Needle: with the question after the text, TOVA finds the fact less often than the full model",
        loses,
        False,
    ),
    Claim(
        "5.1",
        "Needle: with the question before the text, TOVA finds it more often than with it after",
        asked_before,
        False,
    ),
)
