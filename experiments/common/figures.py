"""How figures look: ours solid and filled, the paper's dashed, hollow and grey."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from msrnn_jax.io.journal import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LABELS = {
    "full": "full model",
    "baseline": "short context",
    "window": "Window",
    "window:sinks=1": "Window+1",
    "window:sinks=4": "Window+4",
    "h2o": "H2O",
    "h2o:scope=layer": "H2O per layer",
    "tova": "TOVA",
    "tova:scope=head": "TOVA per head",
    "tova:sinks=1": "TOVA+1",
    "tova:sinks=4": "TOVA+4",
}
MARKERS = dict(zip(LABELS, "*PXv^sDo<>p", strict=True))
COLORS = {  # those that stand side by side most are furthest apart, for the colour-blind too; none is the paper's grey
    "full": "k",
    "baseline": "#56b4e9",
    "window": "#e69f00",
    "window:sinks=1": "#8c510a",
    "window:sinks=4": "#d55e00",
    "h2o": "#009e73",
    "h2o:scope=layer": "#66c2a5",
    "tova": "#0072b2",
    "tova:scope=head": "#762a83",
    "tova:sinks=1": "#cc79a7",
    "tova:sinks=4": "#9970ab",
}
GREY = "0.55"
POINTS = 100  # an inch
SHADES = 128  # colours of a file, so that a page with all figures in it stays small
Row = Mapping[str, Any]  # numbers and words by the name of their column
Lines = Sequence[Line]


def canvas(columns: int = 1, rows: int = 1, *, width: float = 4.6, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """An empty figure and its panels, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.grid(True, alpha=0.3)
    return figure, panels


def label(policy: str) -> str:
    """What a policy is called in the paper."""
    return LABELS.get(policy, policy)


def ours(axes: Axes, policy: str, points: Iterable[tuple[Any, float | None, float | None]], **style: Any) -> None:
    """A line of ours.

    Args:
      points: place, value and standard error; those without a value are left out.
    """
    drawn = [(x, y, e) for x, y, e in points if y is not None and math.isfinite(y)]
    if not drawn:
        return
    errors = [e if e is not None and math.isfinite(e) else 0.0 for _, _, e in drawn]
    look: dict[str, Any] = {
        "color": COLORS.get(policy, "C0"),
        "marker": MARKERS.get(policy, "o"),
        "label": label(policy),
    } | style
    axes.errorbar([x for x, _, _ in drawn], [y for _, y, _ in drawn], yerr=errors, capsize=2, **look)


def papers(axes: Axes, policy: str, points: Iterable[tuple[Any, float | None]], **style: Any) -> None:
    """A line of the paper's."""
    drawn = [(x, y) for x, y in points if y is not None]
    if drawn:
        look: dict[str, Any] = {
            "marker": MARKERS.get(policy, "o"),
            "linestyle": "--",
            "linewidth": 1,
            "color": GREY,
        } | style
        axes.plot(*zip(*drawn, strict=True), markerfacecolor="none", zorder=1, **look)


def key_to_papers(axes: Axes, text: str = "paper, LLaMA-2-7B") -> None:
    """One entry of the legend for all that is the paper's."""
    axes.plot([], [], color=GREY, linestyle="--", marker="o", markerfacecolor="none", linewidth=1, label=text)


def budget_axis(axes: Axes, budgets: Sequence[int]) -> None:
    """The paper's axis of multi-state sizes."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(budgets), [str(budget) for budget in budgets])
    axes.minorticks_off()
    axes.set_xlabel("multi-state size")


def plain_log(axes: Axes) -> None:
    """A logarithmic axis upwards whose numbers are written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(axes: Axes, **where: Any) -> None:
    """In letters as large as those of the axes."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="medium", **where)


def legend_below(figure: Figure, columns: int) -> None:
    """One for all panels, which hides no line: below them, each entry once."""
    found = {}
    for panel in figure.axes:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns, fontsize="medium")


def png(figure: Figure, shades: int = SHADES) -> bytes:
    """The figure's file: equal bytes for equal figures.

    Args:
      shades: more of them for a figure in which many colours lie over each other.
    """
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=POINTS)
    image = Image.open(drawn).convert("RGB").quantize(shades, dither=Image.Dither.NONE)
    image.save(small, format="PNG", optimize=True)
    return small.getvalue()


class Column(NamedTuple):
    """How a value of a row is shown; its standard error, where there is one, goes by `NAME_stderr`."""

    name: str
    title: str
    places: int = 0
    factor: float = 1.0  # such as 100 for a share in per cent


class Grid(NamedTuple):
    """A table."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    def cells(self) -> list[list[str]]:
        """Every row as it is read."""
        return [[_cell(row, column) for column in self.columns] for row in self.rows]


def _cell(row: Row, column: Column) -> str:
    value, error = row.get(column.name), row.get(f"{column.name}_stderr")
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and column.factor == 1:
        return f"{value:,}"
    shown = number(value * column.factor, column.places)
    return shown if error is None or error != error else f"{shown} ± {number(error * column.factor, column.places)}"


def number(value: float, places: int) -> str:
    """A number for reading, a dash for none."""
    return "–" if value - value != 0 else f"{value:,.{places}f}".replace("-", "−")


class Picture(NamedTuple):
    """A figure."""

    name: str  # of its file, without .png
    caption: str
    alt: str  # what is in it, for who cannot see it
    png: bytes


class Section(NamedTuple):
    """One experiment in the report."""

    name: str
    title: str
    about: str
    grids: Sequence[Grid]
    pictures: Sequence[Picture]
