"""What the books say together: how recent what is kept is, what forgetting costs, how long tokens of a kind live."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from experiments.common.console import with_error
from experiments.common.estimates import Estimate, by, columns, mean, mean_of, ratio
from experiments.common.published import LIFE_BUDGETS, LIVES, RECENT, life
from experiments.common.schema import is_map
from msrnn_jax.io.journal import Line

FEWEST = 30  # tokens of a kind that is shown, unless the paper names it


def summarise(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row for every policy and budget, in the order of the lines.

    Returns:
      Means over books, each with a standard error: `recent`, `recent_end`, `life` and `lost` of the lines, and of
      position 0 `first`, the steps it was kept, and `first_held`, the share of layers that hold it at the end.
      `first_steps` and `first_held_each` are lists of [mean, standard error] over the first positions. `tags` and
      `joined`: for every kind of token `tokens`, how many there are, and the mean of the steps they were kept,
      `life`, with the standard error over books.
    """
    lines = [line for line in lines if not is_map(line)]
    return [_row(policy, budget, mine) for (policy, budget), mine in by(lines, "policy", "budget").items()]


def _row(policy: str, budget: int, lines: Sequence[Line]) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": policy, "budget": budget, "books": len(lines)}
    steps, held = _each(lines, "first"), _each(lines, "first_held")
    found = {name: mean_of(lines, name) for name in ("recent", "recent_end", "life", "lost")}
    for name, one in {**found, "first": steps[0], "first_held": held[0]}.items():
        row |= columns(name, one)
    for name, each in {"first_steps": steps, "first_held_each": held}.items():
        row[name] = [[one.value, one.stderr] for one in each]
    return {**row, "tags": _by_kind(lines, "tags"), "joined": _by_kind(lines, "joined")}


def _each(lines: Sequence[Line], name: str) -> list[Estimate]:
    """The mean of every number of a list over lines."""
    return [mean(column) for column in zip(*(line[name] for line in lines), strict=True)]


def _by_kind(lines: Sequence[Line], name: str) -> dict[str, dict[str, Any]]:
    found = {}
    for kind in sorted({kind for line in lines for kind in line[name]}):
        count = sum(line[name][kind][0] for line in lines if kind in line[name])
        found[kind] = {"tokens": count, **columns("life", life_of(lines, kind, name))}
    return found


def life_of(lines: Sequence[Line], kind: str, name: str = "tags") -> Estimate:
    """Mean steps that tokens of a kind are kept, by its name in `tags` or `joined`; nan where no text has the kind."""
    counts, sums = zip(*(line[name].get(kind, (0, 0)) for line in lines), strict=True)
    return ratio(sums, counts)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Recency, the first token, and attention lost, for reading."""
    title = f"Kept tokens, means over books (paper: {RECENT[0]:.0%} to {RECENT[1]:.0%} recent, first token always held)"
    shown = {
        "recent": ("recent", 3),
        "at the end": ("recent_end", 3),
        "token 0: steps": ("first", 0),
        "held by layers": ("first_held", 3),
    }
    made = Table("policy", title=title)
    for name in ("budget", "books", *shown, "attention lost"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [str(row["budget"]), str(row["books"]), *[with_error(row, *at) for at in shown.values()]]
        made.add_row(row["policy"], *cells, f"{row['lost']:.1e} +- {row['lost_stderr']:.0e}")
    return made


def table_of_tags(rows: Sequence[dict[str, Any]]) -> Table:
    """Steps that tokens are kept by part of speech, longest first, of one policy; the paper's beside them."""
    made = Table("tag", title=f"Steps kept by part of speech: {rows[0]['policy']} / the paper's TOVA (LLaMA-2-7B)")
    for name in ("tokens", *[str(row["budget"]) for row in rows]):
        made.add_column(name, justify="right")
    made.add_row("all tokens", "", *[_beside(with_error(row, "life", 0), None, row["budget"]) for row in rows])
    for name in ("tags", "joined"):
        made.add_section()
        for kind in _shown(rows[0][name]):
            found = [row[name].get(kind) for row in rows]  # of an unfinished run not every budget has every book
            cells = ["-" if one is None else with_error(one, "life", 0) for one in found]
            cells = [_beside(cell, kind, row["budget"]) for cell, row in zip(cells, rows, strict=True)]
            made.add_row(kind, str(rows[0][name][kind]["tokens"]), *cells)
    return made


def _shown(kinds: dict[str, dict[str, Any]]) -> list[str]:
    """The frequent kinds and those that the paper names, by how long they live."""
    chosen = [kind for kind, found in kinds.items() if found["tokens"] >= FEWEST or kind in LIVES]
    return sorted(chosen, key=lambda kind: -kinds[kind]["life"])


def _beside(cell: str, tag: str | None, budget: int) -> str:
    theirs = life(tag, budget)
    return cell if budget not in LIFE_BUDGETS else f"{cell} / {'-' if theirs is None else theirs}"
