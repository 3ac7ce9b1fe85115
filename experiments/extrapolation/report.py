"""Claims on streams beyond the trained context: Figure 7; and the section of the report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.common import published
from experiments.common.claims import Claim, Verdict, below, either, every, not_measured
from experiments.common.draws import Draws, common, select
from experiments.common.estimates import Estimate, by, columns, exp, minus, ratio
from experiments.common.figures import (
    COLORS,
    GREY,
    Column,
    Grid,
    Lines,
    Picture,
    Row,
    Section,
    canvas,
    label,
    legend_below,
    plain_log,
    png,
)
from experiments.common.records import Records
from msrnn_jax.io.journal import Line

NAME, BUDGET = "extrapolation", 512
LENGTH = 70_000  # tokens of the paper's streams
PLACES = tuple(range(10_000, LENGTH + 1, 10_000))  # where a running average is looked at
MODES = ("absolute", "cache", "gap")
_ONE = "only ln(ln(g)) is implemented, the one the paper found best"
SHOWN = (4_096, 10_000, 20_000, 40_000, 70_000)
TICKS = (-10, -3, -1, -0.5, 0, 0.5, 1, 3, 10, 30, 100, 300, 1000, 3000)
STYLES = {"gap": "-", "cache": ":", "absolute": "-."}
COLUMNS = (
    Column("policy", "policy"),
    Column("budget", "k"),
    Column("positions", "positions"),
    Column("books", "books"),
    *(Column(f"at_{place}", f"{place:,} tokens", 3) for place in SHOWN),
)


class Stream(NamedTuple):
    """Sums over books, up to the end of every block that all of them have."""

    nats: Float[np.ndarray, "D J"]
    tokens: Float[np.ndarray, "D J"]

    def until(self, tokens: float) -> Estimate:
        """Nats per token over the blocks that end within so many tokens, or over the first one."""
        ends = self.tokens.mean(axis=0)
        last = max(int(np.searchsorted(ends, tokens, side="right")) - 1, 0)
        return ratio(self.nats[:, last].tolist(), self.tokens[:, last].tolist())

    @property
    def length(self) -> float:
        return float(self.tokens.mean(axis=0)[-1])


def stream(lines: list[Line]) -> Stream:
    """The running sums of these books."""
    blocks = min(len(line["nats"]) for line in lines)
    nats = [[np.nan if value is None else value for value in line["nats"][:blocks]] for line in lines]
    tokens = [line["tokens"][:blocks] for line in lines]
    return Stream(np.cumsum(np.asarray(nats, np.float64), axis=1), np.cumsum(np.asarray(tokens, np.float64), axis=1))


def of(records: Records, policy: str, positions: str) -> Draws:
    """The books under one policy and one way of counting positions."""
    return select(records.lines(NAME), policy=policy, budget=BUDGET, positions=positions)


def stays(policy: str, positions: str, records: Records) -> Verdict:
    """Whether the running perplexity rises by less than 0.5 above what it is at the end of the trained context."""
    (lines,) = common(of(records, policy, positions))
    if not lines:
        return not_measured(_why(records, positions))
    found, context = stream(lines), min(line["setting"]["context"] for line in lines)
    if found.length <= context:
        return not_measured(f"streams end after {found.length:,.0f} tokens, within the trained context of {context:,}")
    start = exp(found.until(context))
    reached = [place for place in PLACES if context < place <= found.length + 1]
    parts = [below(f"{place:,} tokens", minus(exp(found.until(place)), start), 0.5) for place in reached]
    missing = [f"{place:,} tokens" for place in PLACES if place > found.length + 1]
    return every(parts, f"perplexity above that of the first {context:,} tokens", missing=missing)


def beats(positions: str, rivals: tuple[str, ...], records: Records) -> Verdict:
    """Whether TOVA's running perplexity at the end is lower than that of Window+4, which counts positions in one of
    these ways."""
    parts, missing = [], []
    for mode in rivals:
        ours, theirs = common(of(records, "tova", positions), of(records, "window:sinks=4", mode))
        if ours:
            first, second = stream(ours), stream(theirs)
            end = min(first.length, second.length) + 1
            parts.append(below(f"Window+4, {mode} positions", minus(first.until(end), second.until(end)), 0.0))
        else:
            missing.append(f"Window+4, {mode} positions")
    if not parts and not records.lines(NAME):
        return not_measured(records.why(NAME))
    return either(parts, "difference in nats per token", missing=missing)


def compared(first: str, second: str, records: Records) -> Verdict:
    """Whether TOVA predicts better with one way of counting positions than with another."""
    ours, theirs = common(of(records, "tova", first), of(records, "tova", second))
    if not ours:
        return not_measured(_why(records, first))
    one, other = stream(ours), stream(theirs)
    end = min(one.length, other.length) + 1
    return every(
        [below(f"{int(end):,} tokens", minus(one.until(end), other.until(end)), 0.0)], "difference in nats per token"
    )


def _why(records: Records, positions: str) -> str:
    return f"{NAME}.jsonl has no book with {positions} positions" if records.lines(NAME) else records.why(NAME)


CLAIMS = (
    Claim(
        "3.5",
        "TOVA with 512 tokens and compressed gaps loses less than 0.5 perplexity up to 70,000 tokens",
        partial(stays, "tova", "gap"),
    ),
    Claim(
        "3.5",
        "There it predicts better than Window+4 (whose positions the paper does not say)",
        partial(beats, "gap", MODES),
    ),
    Claim(
        "3.5", "Gaps compressed to ln(ln(g)) are better than to ln(g) or sqrt(g)", lambda records: not_measured(_ONE)
    ),
    *(
        Claim(
            "3.5",
            f"The same with {mode} positions: TOVA loses less than 0.5 perplexity",
            partial(stays, "tova", mode),
            False,
        )
        for mode in MODES[:2]
    ),
    *(
        Claim(
            "3.5",
            f"The same with {mode} positions: TOVA predicts better than Window+4",
            partial(beats, mode, (mode,)),
            False,
        )
        for mode in MODES[:2]
    ),
    Claim(
        "3.5",
        "Compressed gaps are better for TOVA than absolute positions",
        partial(compared, "gap", "absolute"),
        False,
    ),
)


def make(records: Records) -> Section | None:
    """The section of these results, None where there are none."""
    lines = records.lines(NAME)
    if not lines:
        return None
    streams = {setting: stream(some) for setting, some in _groups(lines).items()}
    about = (
        "The perplexity of all tokens so far, of whole books read as one stream with a state of fixed size. With few "
        "books a standard error over them says little."
    )
    grid = Grid("Running perplexity (Figure 7)", COLUMNS, rows_of(lines))
    return Section(NAME, "Extrapolation to 70,000 tokens (Figure 7)", about, [grid], [_picture(streams)])


def _groups(lines: Lines) -> dict[tuple[Any, ...], list]:
    return by(lines, "policy", "budget", "positions")


def rows_of(lines: Lines) -> list[Row]:
    """One row for every policy and way of counting positions."""
    rows = []
    for (policy, budget, positions), some in _groups(lines).items():
        found = stream(some)
        row = {"policy": policy, "budget": budget, "positions": positions, "books": len(some)}
        for place in SHOWN:
            if place <= found.length + 1:
                row |= columns(f"at_{place}", exp(found.until(place + 1)))
        rows.append(row)
    return rows


def _picture(streams: dict[tuple[Any, ...], Stream]) -> Picture:
    figure, (left, right) = canvas(2, width=5.2, height=4.6)
    plain_log(left)  # what explodes does not press the others together
    right.set_yscale("symlog", linthresh=1.0)
    for (policy, budget, positions), found in streams.items():
        places: Sequence[float] = found.tokens.mean(axis=0).tolist()
        running = [exp(found.until(place + 0.5)) for place in places]
        start = exp(found.until(published.CONTEXT)).value
        look: dict[str, Any] = {"color": COLORS.get(policy, "C0"), "linestyle": STYLES.get(positions, "-")}
        left.plot(places, [one.value for one in running], label=f"{label(policy)}, k = {budget}, {positions}", **look)
        right.plot(places, [one.value - start for one in running], **look)
    right.axhline(0.5, color=GREY, linestyle="--", linewidth=1, label="paper: TOVA stays below")
    for axes in (left, right):
        axes.set_xlabel("tokens read")
    low, high = right.get_ylim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    right.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    legend_below(figure, 3)
    left.set_ylabel("perplexity of all so far")
    right.set_ylabel(f"above that of the first {published.CONTEXT:,}")
    low, high = published.RUNNING
    return Picture(
        "figure_7",
        f"Figure 7: perplexity of all tokens so far. The paper gives a plot only: LLaMA-2-7B is from {low} to {high}. "
        "Both scales are logarithmic, the right one linear up to 1.",
        "Lines of running perplexity against the tokens read, for each policy and way of counting positions",
        png(figure),
    )
