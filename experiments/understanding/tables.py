"""What the answers say together: mean scores, and how far every policy is from the full model."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from experiments.common.console import with_error
from experiments.common.estimates import Estimate, Line, by, columns, geometric, mean_of, minus, pair
from experiments.common.policies import FULL
from experiments.understanding.scores import ROUGE
from msrnn_jax.text.display import decimals

NAMES = ("task", "policy", "budget", "mode")


def summarise(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row for every task, policy, budget and mode, in the order of the lines.

    Returns:
      `score`, see `score_of`, and `score_above_full`, how much more it is than the full model's on the same questions;
      `nats`, of the reference answers per token, and `nats_above_full`; each with a standard error over questions.
      `generated_tokens`, their mean, and for summaries the mean of every ROUGE.
    """
    full = {task: mine for (task, policy), mine in by(lines, "task", "policy").items() if policy == FULL}
    return [_row(setting, mine, full.get(setting[0], [])) for setting, mine in by(lines, *NAMES).items()]


def _row(setting: tuple[Any, ...], mine: Sequence[Line], full: Sequence[Line]) -> dict[str, Any]:
    row: dict[str, Any] = {**dict(zip(NAMES, setting, strict=True)), "questions": len(mine)}
    for name, number in {"score": score_of, "nats": nats_of}.items():
        above = minus(*map(number, pair(mine, full)))
        row |= columns(name, number(mine)) | columns(f"{name}_above_full", above)
    row |= columns("generated_tokens", mean_of(mine, "generated_tokens"))
    return row | {name: mean_of(mine, name).value for name in ROUGE if has_rouge(mine)}


def score_of(lines: Sequence[Line]) -> Estimate:
    """Points: the mean F1, or of ROUGE the geometric mean of its three means, as SCROLLS and ZeroSCROLLS have it."""
    if not has_rouge(lines):
        return mean_of(lines, "score")
    return geometric(*(mean_of(lines, name) for name in ROUGE))


def has_rouge(lines: Sequence[Line]) -> bool:
    """Whether these are answers to SQuALITY."""
    return bool(lines) and all(name in line for name in ROUGE for line in lines)


def nats_of(lines: Sequence[Line]) -> Estimate:
    """Nats per token of the reference answers."""
    return mean_of(lines, "reference_nats", "reference_tokens")


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Scores and nearness to the full model, for reading."""
    shown = {"score": ("score", 2), "above full": ("score_above_full", 2)}
    shown |= {"nats per token": ("nats", 3), "above full ": ("nats_above_full", 3)}
    made = Table("task", "policy")
    for title in ("budget", "mode", "questions", *shown, "tokens"):
        made.add_column(title, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        cells = [row["task"], row["policy"], str(row["budget"]), row["mode"] or "-", str(row["questions"])]
        for name, places in shown.values():
            cells.append(with_error(row, name, places))
        last = index + 1 == len(rows) or rows[index + 1]["task"] != row["task"]
        made.add_row(*cells, decimals(row["generated_tokens"], 0), end_section=last)
    return made
