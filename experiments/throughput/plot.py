"""The figure of a result file."""

import io
import json
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from experiments.throughput.tables import model_name
from msrnn_jax.io.atomic import write_bytes

Panel = Callable[[Any, dict[str, Any]], None]


def plot(path: pathlib.Path) -> pathlib.Path | None:
    """Draws what a result file holds and returns where, a PNG beside it; None where it holds nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    result = json.loads(path.read_text(encoding="utf-8"))
    panels = [(title, draw) for section, title, draw in PANELS if section in result]
    if not panels:
        return None
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, places = plt.subplots(
        lines, columns, figsize=(4.6 * columns, 3.6 * lines), layout="constrained", squeeze=False
    )
    for place in places.flat[len(panels) :]:
        place.set_axis_off()
    for place, (title, draw) in zip(places.flat, panels, strict=False):
        place.set_title(title)
        place.grid(True, alpha=0.3)
        draw(place, result)
        if place.get_legend_handles_labels()[0]:
            place.legend()
    figure.suptitle(f"{model_name(result)}, {result['settings']['policy']}, {result['device']}")
    picture, drawn = path.with_suffix(".png"), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130)
    plt.close(figure)
    write_bytes(picture, drawn.getvalue())
    return picture


def _decode_by(factor: str, wanted: Callable[[dict[str, Any], dict[str, Any]], bool]) -> Panel:
    """Milliseconds of a step against a factor, for the rows that vary it; products and transformers dashed."""

    def draw(axes: Any, result: dict[str, Any]) -> None:
        rows, settings = result["decode"]["rows"], result["settings"]["decode"]
        for number, dtype in enumerate(result["settings"]["dtypes"]):
            mine = [row for row in rows if row["dtype"] == dtype]
            steps = [row for row in mine if row["series"].startswith("step") and wanted(row, settings)]
            _line(axes, factor, steps, _milliseconds, f"C{number}o-", f"step, {dtype}")
            for kind, style in (("products", ":"), ("transformers", "--")):
                others = [row for row in mine if row["series"].startswith(kind)]
                if factor == "batch":
                    _line(axes, factor, others, _milliseconds, f"C{number}{style}", f"{kind}, {dtype}")
                elif others:
                    level = _milliseconds(others[0])  # batch 1, or the least there is
                    label = f"{kind}, batch {others[0]['batch']}, {dtype}"
                    axes.axhline(level, color=f"C{number}", linestyle=style, label=label)
        axes.set_xlabel({"position": "position t", "budget": "budget", "batch": "batch"}[factor])
        axes.set_ylabel("ms per step")
        axes.set_ylim(bottom=0)
        _ticks(axes, [row[factor] for row in rows if row["series"].startswith("step") and wanted(row, settings)])

    return draw


def _extend_by(factor: str, other: str) -> Panel:
    """Tokens per second against chunk or budget, the other being the default; references dashed."""

    def draw(axes: Any, result: dict[str, Any]) -> None:
        section, settings = result["extend"], result["settings"]["extend"]
        for number, dtype in enumerate(result["settings"]["dtypes"]):
            grid = [row for row in section["grid"] if row["dtype"] == dtype]
            base = grid[0]
            rows = [row for row in grid if row["policy"] == base["policy"] and row[other] == settings[other]]
            _line(axes, factor, rows, _speed, f"C{number}o-", f"{base['policy']}, {dtype}")
            _references(axes, section, dtype, f"C{number}")
        axes.set_xlabel({"chunk": "chunk", "budget": "budget"}[factor])
        axes.set_ylabel("tokens per second, loss included")
        axes.set_ylim(bottom=0)
        _ticks(axes, settings[f"{factor}s"])

    return draw


def _extend_policies(axes: Any, result: dict[str, Any]) -> None:
    """A bar for every policy at the default chunk and budget."""
    section, settings = result["extend"], result["settings"]["extend"]
    dtypes = result["settings"]["dtypes"]
    names: list[str] = []
    for number, dtype in enumerate(dtypes):
        rows = [row for row in section["grid"] if row["dtype"] == dtype and row["chunk"] == settings["chunk"]]
        rows = [row for row in rows if row["policy"] == "full" or row["budget"] == settings["budget"]]
        names = [row["policy"] for row in rows]
        heights = [_speed(row) for row in rows]
        shift = (number - (len(dtypes) - 1) / 2) * 0.4
        axes.bar([place + shift for place in range(len(rows))], heights, 0.4, color=f"C{number}", label=dtype)
        _references(axes, section, dtype, f"C{number}")
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize="small")
    axes.set_ylabel("tokens per second, loss included")


def _references(axes: Any, section: dict[str, Any], dtype: str, color: str) -> None:
    """Full attention, transformers and single steps on the whole text."""
    styles = {"full": "-.", "transformers": "--", "scan of step": ":"}
    for row in section["whole"]:
        kind = row["series"].split(" budget")[0]
        if row["dtype"] == dtype and kind in styles:
            axes.axhline(_speed(row), color=color, linestyle=styles[kind], linewidth=1, label=f"{kind}, {dtype}")


def _fits(axes: Any, result: dict[str, Any]) -> None:
    """The largest batch against the budget; full attention marked by a star."""
    for number, dtype in enumerate(result["settings"]["dtypes"]):
        rows = [row for row in result["memory"]["rows"] if row["dtype"] == dtype]
        ours = [row for row in rows if row["policy"] != "full"]
        _line(axes, "budget", ours, lambda row: row["largest_batch"], f"C{number}o-", f"{ours[0]['policy']}, {dtype}")
        full = rows[-1]
        axes.plot(full["budget"], full["largest_batch"], f"C{number}*", markersize=10, label=f"full, {dtype}")
    axes.set_xlabel("budget")
    axes.set_ylabel("rows")
    _ticks(axes, [row["budget"] for row in result["memory"]["rows"]])
    if any(row["largest_batch"] for row in result["memory"]["rows"]):  # else there is nothing to scale
        axes.set_yscale("log")


def _line(axes: Any, factor: str, rows: list[dict[str, Any]], value: Callable, style: str, label: str) -> None:
    points = sorted((row[factor], value(row)) for row in rows)
    if points:
        axes.plot(*zip(*points, strict=True), style, label=label)


def _ticks(axes: Any, values: Sequence[int]) -> None:
    """A logarithmic axis that names the values there are."""
    axes.set_xscale("log")
    axes.set_xticks(sorted(set(values)), [f"{value:,}" for value in sorted(set(values))])
    axes.set_xticks([], minor=True)


def _milliseconds(row: dict[str, Any]) -> float:
    return 1e3 * statistics.median(row["seconds"]) / row["steps"]


def _speed(row: dict[str, Any]) -> float:
    return row["tokens_per_second"]


def _is_moved(row: dict[str, Any], settings: dict[str, Any]) -> bool:
    del settings
    return " at " in row["series"]


def _is_single(row: dict[str, Any], settings: dict[str, Any]) -> bool:
    return row["batch"] == 1 and not _is_moved(row, settings)


def _is_default(row: dict[str, Any], settings: dict[str, Any]) -> bool:
    return row["budget"] == settings["budget"] and not _is_moved(row, settings)


PANELS: list[tuple[str, str, Panel]] = [
    ("decode", "Step against position", _decode_by("position", _is_moved)),
    ("decode", "Step against budget, batch 1", _decode_by("budget", _is_single)),
    ("decode", "Step against batch", _decode_by("batch", _is_default)),
    ("extend", "Reading against chunk", _extend_by("chunk", "budget")),
    ("extend", "Reading against budget", _extend_by("budget", "chunk")),
    ("extend", "Reading by policy", _extend_policies),
    ("memory", "Largest batch that fits", _fits),
]
