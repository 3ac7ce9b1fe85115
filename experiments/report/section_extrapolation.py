"""Running perplexity of streams longer than the trained context: Figure 7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments import published
from experiments.estimates import columns, exp
from experiments.paired import by
from experiments.report.claims_extrapolation import Stream, stream
from experiments.report.content import Column, Grid, Lines, Picture, Row, Section
from experiments.report.drawing import COLORS, GREY, canvas, label, legend, png
from experiments.report.records import Records

NAME = "extrapolation"
PLACES = (4_096, 10_000, 20_000, 40_000, 70_000)
STYLES = {"gap": "-", "cache": ":", "absolute": "-."}

COLUMNS = (
    Column("policy", "policy"),
    Column("budget", "k"),
    Column("positions", "positions"),
    Column("books", "books"),
    *(Column(f"at_{place}", f"{place:,} tokens", 3) for place in PLACES),
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
        for place in PLACES:
            if place <= found.length + 1:
                row |= columns(f"at_{place}", exp(found.until(place + 1)))
        rows.append(row)
    return rows


def _picture(streams: dict[tuple[Any, ...], Stream]) -> Picture:
    figure, (left, right) = canvas(2, width=5.2, height=4.0)
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
        legend(axes)
    left.set_ylabel("perplexity of all so far")
    right.set_ylabel(f"above that of the first {published.CONTEXT:,}")
    low, high = published.RUNNING
    return Picture(
        "figure_7",
        f"Figure 7: perplexity of all tokens so far. The paper gives a plot only: LLaMA-2-7B is from {low} to {high}.",
        "Lines of running perplexity against the tokens read, for each policy and way of counting positions",
        png(figure),
    )
