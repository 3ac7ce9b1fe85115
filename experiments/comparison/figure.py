"""Small multiples: a panel for every family, beside TOVA and the full model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from experiments.common.figures import GREY, Picture, budget_axis, canvas, legend, png
from experiments.comparison.differences import reference_of
from experiments.comparison.findings import when
from experiments.comparison.tables import Row

ACROSS = 3  # panels side by side: 1,200 pixels
LINEAR = 0.05  # nats; differences beyond are drawn by their logarithm
TICKS = (-1.0, -0.3, -0.1, -0.05, 0.0, 0.05, 0.1, 0.3, 1.0, 3.0)
MARKERS = "osv^DP"
MANY = 4  # entries of a legend in one column
SHADES = 256  # bands lie over each other


def draw(rows: Sequence[Row]) -> Picture:
    """The difference from TOVA by budget, two standard errors around it, of every policy in the panel of its family."""
    panels = _panels(rows)
    across = min(ACROSS, max(Counter(every for every, _ in panels).values()))
    places = _places(panels, across)
    figure, axes = canvas(across, places[-1] // across + 1, width=4.0, height=3.4)
    apart = [row["apart"] for row in rows if math.isfinite(row["apart"])]
    low, high = max([LINEAR, *_gaps(rows), *(-one for one in apart)]), max([LINEAR, *apart])
    for place, (every, family) in zip([axes[place] for place in places], panels, strict=True):
        group = [row for row in rows if row["every"] == every]
        _panel(place, group, family)
        place.set_title(f"{family}, cut {when(every)}")
        place.set_ylim(-1.3 * low, 4 * high)  # legends above the lines
    for place in set(range(len(axes))) - set(places):
        axes[place].set_visible(False)
    for place in axes[::across]:
        place.set_ylabel("nats per token above TOVA")
    return Picture(
        "comparison",
        "Nats per token above TOVA that cuts as often, by multi-state size, with two standard errors over the same "
        f"segments. Grey is TOVA, dotted the full model. The scale is linear up to {LINEAR} nats, and logarithmic "
        "beyond.",
        "A panel for every family of policies, with a line for each policy around that of TOVA",
        png(figure, SHADES),
    )


def _panels(rows: Sequence[Row]) -> list[tuple[int, str]]:
    """How often policies cut, and a family: those that have a policy beside TOVA itself, unless there is none."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    found = {(row["every"], row["family"]) for row in rows if not _is_tova(row)}
    found = found or {(row["every"], row["family"]) for row in rows}
    return sorted(found, key=lambda one: (one[0], families.index(one[1])))


def _places(panels: Sequence[tuple[int, str]], across: int) -> list[int]:
    """Where in the grid each panel is: policies that cut as often begin a row of their own."""
    places: list[int] = []
    for number, (every, _) in enumerate(panels):
        last = places[-1] if places else -1
        begins = not number or every != panels[number - 1][0]
        places.append((last // across + 1) * across if begins else last + 1)
    return places


def _is_tova(row: Row) -> bool:
    return row["policy"] == reference_of(row["policy"])


def _gaps(rows: Sequence[Row]) -> list[float]:
    """By how much TOVA is above the full model."""
    return [row["above_full"] for row in rows if _is_tova(row) and math.isfinite(row["above_full"])]


def _panel(axes: Any, group: Sequence[Row], family: str) -> None:
    tova = sorted((row["budget"], -row["above_full"]) for row in group if _is_tova(row))
    axes.axhline(0.0, color=GREY, linewidth=4, alpha=0.5, zorder=1)
    if tova:
        axes.plot(*zip(*tova, strict=True), color="black", linestyle=":", linewidth=1)
    names = dict.fromkeys(row["policy"] for row in group if row["family"] == family and not _is_tova(row))
    for number, name in enumerate(names):
        mine = sorted((row for row in group if row["policy"] == name), key=lambda row: row["budget"])
        sizes, values = [row["budget"] for row in mine], [row["apart"] for row in mine]
        low, high = ([row["apart"] + sign * 2 * row["apart_stderr"] for row in mine] for sign in (-1, 1))
        look: dict[str, Any] = {"color": f"C{number}"}
        axes.fill_between(sizes, low, high, alpha=0.25, linewidth=0, **look)
        axes.plot(sizes, values, marker=MARKERS[number % len(MARKERS)], markersize=4, label=mine[0]["label"], **look)
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS], fontsize="small")
    budget_axis(axes, sorted({row["budget"] for row in group}))
    legend(axes, ncols=1 + len(names) // MANY)
