"""A result for reading."""

import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from experiments.throughput.memory import summarise
from experiments.throughput.policies import EXTEND, MORE, NO_MORE, stepping
from experiments.throughput.timing import Row
from msrnn_jax.io.units import spell_bytes


def tables(result: dict[str, Any]) -> list[Table]:
    """The tables of every section that ran."""
    makers = {"roofline": _roofline, "decode": _decode, "prompt": _prompt, "extend": _extend, "memory": _memory}
    makers["policies"] = _policies
    return [table for section, make in makers.items() if section in result for table in make(result)]


def model_name(result: dict[str, Any]) -> str:
    """What the model is called, for titles."""
    settings = result["settings"]
    return settings["shape"] or pathlib.Path(settings["checkpoint"]).name


def size(count: float) -> str:
    """Bytes with three digits and a unit."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} GB"


def _table(title: str, *columns: str, left: int = 2) -> Table:
    """So many columns of words on the left, then numbers on the right."""
    made = Table(title=title, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < left else "right")
    return made


def _roofline(result: dict[str, Any]) -> list[Table]:
    columns = ("dtype", "rows", "ms a pass", "GB/s of weights", "GFLOP/s")
    made = _table("Products of the model's MLPs alone", *columns, left=1)
    for row in result["roofline"]["rows"]:
        rates = row["bytes_per_second"] / 1e9, row["operations_per_second"] / 1e9
        milliseconds = 1e3 * row["rows"] / row["tokens_per_second"]
        made.add_row(row["dtype"], str(row["rows"]), f"{milliseconds:.2f}", *(f"{rate:.1f}" for rate in rates))
    return [made]


def _decode(result: dict[str, Any]) -> list[Table]:
    section = result["decode"]
    made = _table(
        f"Decoding, {result['settings']['policy']}, {result['settings']['decode']['new_tokens']} tokens a call",
        *("dtype", "what", "budget", "batch", "from t", "ms a step", "tokens/s", "time / products"),
        *("speed / transformers", "of roofline"),
    )
    for row in section["rows"]:
        ratios = [one for one in section["ratios"] if _same(one, row)]
        made.add_row(
            row["dtype"],
            row["series"].split()[0],
            *(f"{row[name]:,}" if name in row else "" for name in ("budget", "batch", "position")),
            f"{1e3 * statistics.median(row['seconds']) / row['steps']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            _median(ratios, over=f"products batch {row['batch']}"),
            _median(ratios, over=f"transformers batch {row['batch']}"),
            _share(result, row),
        )
    late = [one for one in section["ratios"] if " at " in one["over"]]
    made.caption = "\n".join(f"{one['dtype']}: {one['of']} takes {one['median']:.3f} x {one['over']}" for one in late)
    return [made]


def _prompt(result: dict[str, Any]) -> list[Table]:
    section, settings = result["prompt"], result["settings"]["prompt"]
    title = f"First token after {settings['length']:,}, {result['settings']['policy']} {settings['budget']}"
    made = _table(title, "dtype", "way", "seconds", "time / transformers")
    for row in section["rows"]:
        ratios = [one for one in section["ratios"] if _same(one, row)]
        made.add_row(row["dtype"], row["series"], f"{statistics.median(row['seconds']):.3f}", _median(ratios))
    return [made]


def _extend(result: dict[str, Any]) -> list[Table]:
    return [_whole(result), _grid(result), _reading_memory(result)]


def _whole(result: dict[str, Any]) -> Table:
    section, settings = result["extend"], result["settings"]["extend"]
    made = _table(
        f"Reading {settings['tokens']:,} tokens with their losses",
        *("dtype", "way", "tokens/s", "x as fast is ours", "of roofline", "nats a token"),
    )
    made.caption = (
        f"scan of step: over {settings['stretch']} tokens from a full state\n"
        "full: every chunk attends to all slots, and those still free are masked"
    )
    losses = {one["dtype"]: one for one in section["losses"]}
    for row in section["whole"]:
        nats = losses[row["dtype"]].get(row["series"])
        ratios = [one for one in section["whole_ratios"] if one["dtype"] == row["dtype"]]
        made.add_row(
            row["dtype"],
            row["series"],
            f"{row['tokens_per_second']:.1f}",
            _median(ratios, over=row["series"]),
            _share(result, row),
            "" if nats is None else f"{nats:.4f}",
        )
    return made


def _grid(result: dict[str, Any]) -> Table:
    section, settings = result["extend"], result["settings"]["extend"]
    title = f"Reading {settings['grid_tokens']:,} tokens with their losses, one factor varied"
    made = _table(title, "dtype", "policy", "budget", "chunk", "tokens/s", "speed / first")
    for row in section["grid"]:
        ratios = [one for one in section["grid_ratios"] if _same(one, row)]
        speed = f"{row['tokens_per_second']:.1f}"
        made.add_row(row["dtype"], row["policy"], f"{row['budget']:,}", f"{row['chunk']:,}", speed, _median(ratios))
    return made


def _reading_memory(result: dict[str, Any]) -> Table:
    made = _table("Memory of reading, by XLA's count", "dtype", "tokens", "arguments", "temporary", "outputs", "peak")
    for one in result["extend"]["memory"]:
        for tokens, parts in zip(one["tokens"], one["bytes"], strict=True):
            sizes = (size(parts[name]) for name in ("arguments", "temporary", "outputs", "peak"))
            made.add_row(one["dtype"], f"{tokens:,}", *sizes)
        made.add_row(one["dtype"], "each more", "", "", "", f"{one['bytes_per_token']:.1f} B")
    return made


def _memory(result: dict[str, Any]) -> list[Table]:
    section = result["memory"]
    rooms = dict.fromkeys(map(spell_bytes, section["memory_bytes"].values()))  # one, or one for every dtype
    fits = _table(
        f"Rows that fit into {', '.join(rooms)}",
        *("dtype", "policy", "budget", "weights", "state", "beside it", "largest batch"),
        *("batch run", "tokens/s", "speed / full"),
    )
    checks = _table(
        f"The loop over steps, batch {result['settings']['memory']['check_batch']}: by XLA's count and by ours",
        *("dtype", "policy", "budget", "arguments", "ours", "temporary", "ours, at most", "one layer", "not in place"),
    )
    if result["device"].startswith("cpu") and "bfloat16" in result["settings"]["dtypes"]:
        checks.caption = "On this CPU XLA widens bfloat16 before it multiplies: its temporaries hold such copies."
    for row in section["rows"]:
        about = (row["dtype"], row["policy"], f"{row['budget']:,}")
        sizes = (size(row[name]) for name in ("weight_bytes", "state_bytes", "working_bytes"))
        fits.add_row(*about, *sizes, f"{row['largest_batch']:,}", *_timed(row))
        names = ("arguments", "expected_arguments", "temporary", "expected_temporary", "one_layer")
        outside = row["check"]["outputs"] - row["check"]["aliased"]
        checks.add_row(*about, *(size(row["check"][name]) for name in names), size(outside))
    return [fits, checks, *(_table1(result, dtype) for dtype in section["memory_bytes"])]


def _table1(result: dict[str, Any], dtype: str) -> Table:
    """The paper's layout: a column for every budget, its numbers under ours."""
    rows = [row for row in summarise(result) if row["dtype"] == dtype]
    names = [f"full {row['budget']:,}" if row["policy"] == "full" else f"{row['budget']:,}" for row in rows]
    made = _table(f"The paper's Table 1: multi-state sizes in equal memory, {dtype}", "model", "", *names)
    made.add_row(model_name(result), "memory of a state", *(size(row["state_bytes"]) for row in rows))
    made.add_row("", "largest batch", *(f"{row['batch']:,}" for row in rows))
    made.add_row("", "relative throughput", *(_given(row["relative"], ".2f") for row in rows), end_section=True)
    published = [row["published"] or {} for row in rows]
    memory = (_given(one.get("gigabytes"), ".2f", " GB") for one in published)
    made.add_row("LLaMA-2-7B, published", "memory of a state", *memory)
    made.add_row("", "largest batch", *(_given(one.get("batch"), ",") for one in published))
    made.add_row("", "relative throughput", *(_given(one.get("relative"), ".1f") for one in published))
    made.caption = (
        "Published: one V100, whole sequences of 4,096 tokens.\n"
        "Above it: steps of states that are full, full attention's too; a relative\n"
        "throughput only where decoding at the largest batch is asked for."
    )
    return made


def _policies(result: dict[str, Any]) -> list[Table]:
    return [make(result, dtype) for dtype in result["settings"]["dtypes"] for make in (_costs, _pairs)]


def _costs(result: dict[str, Any], dtype: str) -> Table:
    """Milliseconds of every policy and times over Window's; bytes of statistics as shares of keys and values."""
    section, settings = result["policies"], result["settings"]
    works = _works(result)
    columns = [name for work in works.values() for name in (f"{work}\nms", "x Window")]
    title = f"Policies at budget {settings['decode']['budget']:,}, {dtype}: a step; a token of extend"
    made = _table(title, "policy", *columns, "slots", "stats", "row\nstats", left=1)
    made.columns[0].no_wrap = True
    made.caption = (
        "x Window: median over turns, ± half of the range\n"
        "stats: bytes of a policy's statistics over those of keys and values"
    )
    for count in (one for one in section["bytes"] if one["dtype"] == dtype):
        rows = {row["work"]: row for row in section["rows"] if _of_policy(row, count)}
        ratios = [one for one in section["ratios"] if _of_policy(one, count)]
        times = (f"{1e3 * statistics.median(rows[work]['seconds']) / rows[work]['steps']:.2f}" for work in works)
        cells = [cell for pair in zip(times, _spreads(works, ratios), strict=True) for cell in pair]
        shares = (f"{count[name] / count['keys_and_values']:.1%}" for name in ("statistics", "row_statistics"))
        made.add_row(count["policy"], *cells, f"{count['slots']:,.0f}", *shares)
    return made


def _pairs(result: dict[str, Any], dtype: str) -> Table:
    """Whether a policy that cuts now and then costs no more a token than the same one that cuts at each."""
    works = _works(result)
    pairs = [one for one in result["policies"]["pairs"] if one["dtype"] == dtype]
    made = _table(f"Cutting now and then, time over at each token, {dtype}", "policy", *works.values(), left=1)
    for policy in dict.fromkeys(one["policy"] for one in pairs):
        made.add_row(policy, *_spreads(works, [one for one in pairs if one["policy"] == policy]))
    words = [one["costs"] for one in pairs]
    made.caption = f"In all turns: {words.count(NO_MORE)} cost no more, {words.count(MORE)} more, of {len(words)}"
    made.caption += "".join(f"\nmore: {one['policy']}, {works[one['work']]}" for one in pairs if one["costs"] == MORE)
    return made


def _works(result: dict[str, Any]) -> dict[str, str]:
    """The kinds of work of the section policies, and what they are called for short."""
    batches = result["settings"]["policies"]["batches"]
    return {**{stepping(batch): f"batch {batch}" for batch in batches}, EXTEND: EXTEND}


def _of_policy(row: Row, other: Row) -> bool:
    return (row["dtype"], row["policy"]) == (other["dtype"], other["policy"])


def _spreads(works: Iterable[str], ratios: Sequence[Row]) -> list[str]:
    """Of each kind of work the median ratio and half its range; nothing where there is none."""
    found = {one["work"]: f"{one['median']:.2f}±{(max(one['each']) - min(one['each'])) / 2:.2f}" for one in ratios}
    return [found.get(work, "") for work in works]


def _given(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _timed(row: Row) -> tuple[str, str, str]:
    timed, relative = row.get("timed"), row.get("relative")
    if timed is None:
        return "", "", ""
    return f"{timed['batch']:,}", f"{timed['tokens_per_second']:.1f}", _median([relative] if relative else [])


def _same(one: Row, row: Row) -> bool:
    """Whether a ratio is that of the row's series."""
    return one["of"] == row["series"] and one["dtype"] == row["dtype"]


def _median(ratios: Sequence[Row], over: str | None = None) -> str:
    """The first of these ratios, over that series if one is named."""
    return next((f"{one['median']:.3f}" for one in ratios if over in (None, one["over"])), "")


def _share(result: dict[str, Any], row: Row) -> str:
    shares = result.get("roofline", {}).get("shares", ())
    found = (one for one in shares if one["series"] == row["series"] and one["dtype"] == row["dtype"])
    return next((f"{one['share']:.0%}" for one in found), "")
