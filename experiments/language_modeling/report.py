"""Claims on perplexity against the multi-state size: Table 3 and Figure 3; and the section of the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from experiments.common import published
from experiments.common.claims import Claim, Part, Verdict, above, below, every, inside, not_measured
from experiments.common.draws import common, select, values_of
from experiments.common.estimates import Estimate, exp, mean_of, minus
from experiments.common.figures import (
    GREY,
    Column,
    Grid,
    Lines,
    Picture,
    Row,
    Section,
    budget_axis,
    canvas,
    key_to_papers,
    label,
    legend_below,
    ours,
    papers,
    plain_log,
    png,
)
from experiments.common.records import Records
from experiments.language_modeling.tables import summarise
from msrnn_jax.io.journal import Line

ALIKE = math.log(1.01)  # nats: perplexities within 1 %; in the paper those called alike are within 0.8 %
LOG_RATIO, PERPLEXITY = "difference in nats per token", "difference in perplexity"
BUDGETS = published.BUDGETS[:-1]  # those of the paper that forget anything
HALF = published.CONTEXT // 2
Of = tuple[str, int]  # a policy and the paper's budget
NAME = "language_modeling"
FIGURE_3 = ("baseline", "window", "window:sinks=4", "h2o", "tova")
BANDS = ("window:sinks=1", "tova:sinks=1", "tova:sinks=4")
FARTHEST = 12.0  # times the least perplexity, where an axis ends
COLUMNS = (
    Column("policy", "policy"),
    Column("budget", "k"),
    Column("segments", "segments"),
    Column("perplexity", "perplexity", 2),
    Column("paper", "paper, LLaMA-2-7B", 2),
    Column("above_full", "nats above full", 4),
    Column("paper_above_full", "paper", 4),
    Column("kl", "KL from full, nats", 4),
    Column("agreement", "top-1 agreement, %", 1, 100.0),
)


class Losses(NamedTuple):
    """Results of one segment length, with the paper's budgets as shares of it."""

    lines: list[Line]
    segment: int

    def budget(self, paper: int) -> int:
        """What is the same share of our segment as `paper` is of the paper's context."""
        return paper * self.segment // published.CONTEXT

    def of(self, *settings: Of) -> list[list[Line]] | None:
        """The lines of several settings on the segments that all have; None where there are none."""
        groups = common(*(select(self.lines, policy=policy, budget=self.budget(size)) for policy, size in settings))
        return groups if groups[0] else None

    def apart(self, first: Of, second: Of) -> Estimate | None:
        """How many nats per token the first is above the second.

        Each is held against the full model on its own tokens, since the short context has fewer.
        """
        groups = self.of(first, second)
        return minus(*map(above_full, groups)) if groups else None

    def name(self, paper: int) -> str:
        return f"k = {self.budget(paper)}"


def above_full(lines: Sequence[Line]) -> Estimate:
    """Nats per token above the full model's on the same tokens."""
    return minus(mean_of(lines, "nats", "tokens"), mean_of(lines, "full_nats", "tokens"))


def losses(records: Records) -> Losses | None:
    """The results, None where there are none."""
    lines = records.lines(NAME)
    return Losses(lines, values_of(lines, "segment")[-1]) if lines else None


Compare = Callable[[Losses, int], Part | None]  # at one of the paper's budgets


def at_all(compare: Compare, sizes: Sequence[int], unit: str, records: Records) -> Verdict:
    """Decides a claim at each of the paper's budgets."""
    found = losses(records)
    if found is None:
        return not_measured(records.why(NAME))
    parts = [compare(found, size) for size in sizes]
    missing = [found.name(size) for size, part in zip(sizes, parts, strict=True) if part is None]
    return every([part for part in parts if part is not None], unit, missing=missing)


def _paper(first: Of, second: Of) -> tuple[float, float]:
    ours, theirs = published.perplexity(*first), published.perplexity(*second)
    assert ours and theirs
    return ours, theirs


def lower(first: str, second: str, found: Losses, size: int, *, factor: int = 1) -> Part | None:
    """Whether the first policy predicts better than the second at so many times its budget."""
    settings = (first, size), (second, size * factor)
    apart = found.apart(*settings)
    ours, theirs = _paper(*settings)
    return below(found.name(size), apart, 0.0, math.log(ours / theirs)) if apart else None


def higher(first: str, second: str, found: Losses, size: int, *, factor: int = 1, by: float = 0.0) -> Part | None:
    """Whether the first policy predicts worse, by so many nats."""
    settings = (first, size), (second, size * factor)
    apart = found.apart(*settings)
    ours, theirs = _paper(*settings)
    return above(found.name(size), apart, by, math.log(ours / theirs)) if apart else None


def alike(first: str, second: str, found: Losses, size: int, *, factor: int = 1) -> Part | None:
    """Whether two perplexities are within 1 %."""
    settings = (first, size), (second, size * factor)
    apart = found.apart(*settings)
    ours, theirs = _paper(*settings)
    return inside(found.name(size), apart, -ALIKE, ALIKE, math.log(ours / theirs)) if apart else None


def no_better(first: str, second: str, found: Losses, size: int) -> Part | None:
    """Whether the first policy gains at most 1 % of perplexity over the second."""
    apart = found.apart((first, size), (second, size))
    ours, theirs = _paper((first, size), (second, size))
    return above(found.name(size), apart, -ALIKE, math.log(ours / theirs)) if apart else None


def gap(policy: str, found: Losses, size: int) -> tuple[Estimate, float] | None:
    """By how much its perplexity is above the full model's on the same tokens, in ours and in the paper."""
    groups = found.of((policy, size))
    if groups is None:
        return None
    ours, theirs = (exp(mean_of(groups[0], name, "tokens")) for name in ("nats", "full_nats"))
    paper = _paper((policy, size), ("full", published.CONTEXT))
    return minus(ours, theirs), paper[0] - paper[1]


def near_full(policy: str, bound: float, found: Losses, size: int) -> Part | None:
    """Whether perplexity is less than so much above the full model's."""
    one = gap(policy, found, size)
    return below(found.name(size), one[0], bound, one[1]) if one else None


def far_from_full(policy: str, bound: float, found: Losses, size: int) -> Part | None:
    """Whether perplexity is more than so much above the full model's."""
    one = gap(policy, found, size)
    return above(found.name(size), one[0], bound, one[1]) if one else None


def _claim(
    text: str, compare: Compare, sizes: Sequence[int], unit: str = LOG_RATIO, *, is_papers: bool = True
) -> Claim:
    return Claim("3.1", text, partial(at_all, compare, sizes, unit), is_papers)


def _claims() -> Iterator[Claim]:
    yield _claim(
        "Window explodes: at least 33 times the topline's perplexity at every k below the context",
        lambda found, size: _explodes(found, size, math.log(33)),
        BUDGETS,
    )
    yield _claim("Window is worse than reading k tokens at a time", partial(higher, "window", "baseline"), BUDGETS)
    first, fourth = "window:sinks=1", "window:sinks=4"
    yield _claim("Window+1 and Window+4 are alike (within 1 %)", partial(alike, first, fourth), BUDGETS)
    for name, policy in {"H2O": "h2o", "Window+4": fourth, "Window+1": first, "the short context": "baseline"}.items():
        text = f"TOVA has a lower perplexity than {name} at every k below the context"
        yield _claim(text, partial(lower, "tova", policy), BUDGETS)
    yield _claim("TOVA per head is worse than per layer", partial(higher, "tova:scope=head", "tova"), BUDGETS)
    yield _claim(
        "TOVA per head is worse than H2O up to k = 1/4", partial(higher, "tova:scope=head", "h2o"), BUDGETS[:-1]
    )
    yield _claim("TOVA per head is better than H2O at k = 1/2", partial(lower, "tova:scope=head", "h2o"), (HALF,))
    yield _claim(
        "H2O per layer and per head are alike (within 1 %), as in the paper, whose row per layer is doubtful",
        partial(alike, "h2o:scope=layer", "h2o"),
        BUDGETS,
        is_papers=False,
    )
    for count in (1, 4):
        text = f"Keeping the first {'token' if count == 1 else f'{count} tokens'} gains TOVA nothing (at most 1 %)"
        yield _claim(text, partial(no_better, f"tova:sinks={count}", "tova"), BUDGETS)
    for share_, size, bound in (("1/16", 256, 0.55), ("1/8", 512, 0.25), ("1/4", 1024, 0.09), ("1/2", 2048, 0.01)):
        text = f"TOVA is at most {bound} perplexity above the topline at k = {share_}"
        yield _claim(text, partial(near_full, "tova", bound), (size,), PERPLEXITY)
    yield _claim(
        "TOVA at k is like Window+4 at 2k (within 1 %), for k from 1/16",
        partial(alike, "tova", fourth, factor=2),
        BUDGETS[2:-1],  # at 2k = context both are the topline
    )
    yield _claim(
        "TOVA at k is worse than Window+4 at 2k, for k up to 1/32",
        partial(higher, "tova", fourth, factor=2),
        BUDGETS[:2],
    )
    text = "TOVA is within 0.4 perplexity of the topline at 1/8 of the context"
    yield _claim(text, partial(near_full, "tova", 0.4), (512,), PERPLEXITY)
    for name, policy in {"Window": "window", "Window+4": fourth, "H2O": "h2o", "the short context": "baseline"}.items():
        text = (
            f"{name[0].upper()}{name[1:]} needs at least 1/2 of the context to be within 0.4 perplexity of the topline"
        )
        yield _claim(text, partial(far_from_full, policy, 0.4), BUDGETS[:-1], PERPLEXITY)
    other = "the results are of one model; each has a report of its own"
    yield Claim("3.1", "The same holds for LLaMA-2, Mistral and Yi", lambda records: not_measured(other))


def _explodes(found: Losses, size: int, bound: float) -> Part | None:
    apart = found.apart(("window", size), ("full", published.CONTEXT))
    ours, theirs = _paper(("window", size), ("full", published.CONTEXT))
    return above(found.name(size), apart, bound, math.log(ours / theirs)) if apart else None


CLAIMS = tuple(_claims())


def make(records: Records) -> Section | None:
    """The section of these results, None where there are none."""
    lines = records.lines(NAME)
    if not lines:
        return None
    rows = rows_of(lines)
    about = (
        "Books in segments of the context length, each read from an empty state. Standard errors are over segments, "
        "and of differences over the same segments. The short context is the same model on pieces of k tokens."
    )
    grid = Grid("Perplexity of PG-19 by policy and multi-state size (Table 3)", COLUMNS, rows)
    pictures = [_figure_3(rows), _table_3(rows), _fidelity(rows)]
    return Section(NAME, "Language modelling (Table 3, Figure 3)", about, [grid], pictures)


def rows_of(lines: Lines) -> list[Row]:
    """One row for every policy and budget, with the paper's numbers at the same share of the context."""
    segment = max(line["setting"]["segment"] for line in lines)
    rows = []
    for row in summarise([line for line in lines if line["setting"]["segment"] == segment]):
        size = row["budget"] * published.CONTEXT / segment
        paper = published.perplexity(row["policy"], int(size)) if size == int(size) else None
        above = None if paper is None else math.log(paper / published.FULL_PERPLEXITY)
        rows.append({**row, "label": label(row["policy"]), "paper": paper, "paper_above_full": above})
    return rows


def _of(rows: Sequence[Row], policy: str) -> list[Row]:
    return sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["budget"])


def _budgets(rows: Sequence[Row]) -> list[int]:
    return sorted({row["budget"] for row in rows if row["policy"] != "full"})


def _perplexity_error(row: Row) -> float:
    return row["perplexity"] * row["nll_stderr"]


def _figure_3(rows: Sequence[Row]) -> Picture:
    figure, (left, right) = canvas(2, width=5.2, height=5.4)
    for axes in (left, right):
        plain_log(axes)
        budget_axis(axes, _budgets(rows))
    for row in _of(rows, "full"):
        left.axhline(row["perplexity"], color="black", linewidth=1, label="full model")
        left.axhline(published.FULL_PERPLEXITY, color=GREY, linestyle="--", linewidth=1)
    key_to_papers(left)
    shown = [row for policy in FIGURE_3 for row in _of(rows, policy)]
    for policy in FIGURE_3:
        mine = [row for row in shown if row["policy"] == policy]
        ours(left, policy, [(row["budget"], row["perplexity"], _perplexity_error(row)) for row in mine])
        papers(left, policy, [(row["budget"], row["paper"]) for row in mine])
        above = [row for row in mine if row["above_full"] > 0]  # what has a logarithm
        ours(right, policy, [(row["budget"], row["above_full"], row["above_full_stderr"]) for row in above])
        papers(right, policy, [(row["budget"], row["paper_above_full"] or None) for row in above])
    left.set_ylabel("perplexity")
    right.set_ylabel("nats per token above the full model")
    least = min([published.FULL_PERPLEXITY, *(row["perplexity"] for row in rows)])
    highest = max((row["perplexity"] for row in shown if math.isfinite(row["perplexity"])), default=20.0)
    left.set_ylim(0.9 * least, 1.1 * min(highest, FARTHEST * least))
    apart = [row["above_full"] for row in shown if 0 < row["above_full"] < math.inf] or [1.0]
    right.set_ylim(0.6 * min(apart), 1.4 * min(max(apart), math.log(FARTHEST)))
    legend_below(figure, 4)
    return Picture(
        "figure_3",
        "Figure 3: perplexity against the multi-state size, ours solid, the paper's LLaMA-2-7B dashed and grey. On the "
        "right is the difference from the full model on the same tokens, with standard errors, on a logarithmic scale: "
        "lines near the full model cover each other on the left. The paper's Window is above both axes "
        f"({_explosion()} its full model's perplexity). A line that leaves the right panel below is nearer to the full "
        "model.",
        "Lines of perplexity falling with the multi-state size, one for each policy, towards that of the full model, "
        "and lines of the difference from it",
        png(figure),
    )


def _explosion() -> str:
    ratios = [value / published.FULL_PERPLEXITY for value in published.PERPLEXITY["window"][:-1]]
    return f"{min(ratios):.0f} to {max(ratios):.0f} times"


def _look(policy: str) -> dict[str, float]:
    """A band behind the lines, for what is nearly the same as a policy that has one."""
    return {"linewidth": 5, "alpha": 0.5, "markersize": 10, "zorder": 1} if policy in BANDS else {}


def _table_3(rows: Sequence[Row]) -> Picture:
    figure, (mine, theirs) = canvas(2, width=5.2, height=5.4)
    for policy in dict.fromkeys(row["policy"] for row in rows if row["policy"] not in ("full", "window")):
        some = [row for row in _of(rows, policy) if row["above_full"] > 0]
        ours(
            mine,
            policy,
            [(row["budget"], row["above_full"], row["above_full_stderr"]) for row in some],
            **_look(policy),
        )
        color = {"color": "0.2"} if policy == "tova" else {}
        points = [(row["budget"], row["paper_above_full"] or None) for row in some]
        papers(theirs, policy, points, **color)
    for axes, name in ((mine, "ours"), (theirs, "paper, LLaMA-2-7B")):
        axes.set_title(name)
        plain_log(axes)
        budget_axis(axes, _budgets(rows))
        axes.set_ylabel("nats per token above the full model")
    theirs.set_ylim(mine.get_ylim())
    legend_below(figure, 5)
    return Picture(
        "table_3",
        "Table 3 as a picture: nats per token above the full model, of all policies but Window, on the same scale. "
        "Where a line leaves its panel below, the policy is nearer to the full model. Bands lie behind lines that they "
        "would hide.",
        "Two panels of lines falling with the multi-state size, ours on the left, the paper's on the right",
        png(figure),
    )


def _fidelity(rows: Sequence[Row]) -> Picture:
    figure, (left, right) = canvas(2, width=5.2, height=5.0)
    for policy in dict.fromkeys(row["policy"] for row in rows if row["policy"] != "full"):
        mine = _of(rows, policy)
        for axes, name in ((left, "kl"), (right, "agreement")):
            ours(axes, policy, [(row["budget"], row[name], row[f"{name}_stderr"]) for row in mine], **_look(policy))
    plain_log(left)
    left.set_ylabel("KL divergence from the full model, nats per token")
    right.set_ylabel("share of tokens with the same likeliest next token")
    for axes in (left, right):
        budget_axis(axes, _budgets(rows))
    legend_below(figure, 5)
    return Picture(
        "fidelity",
        "How near every policy's predictions are to the full model's on the same tokens; not in the paper. Bands lie "
        "behind lines that they would hide.",
        "KL divergence falls and agreement rises with the multi-state size, for every policy",
        png(figure),
    )
