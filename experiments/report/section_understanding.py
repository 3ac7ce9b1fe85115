"""Questions and summaries of long documents: Figures 4 and 5."""

from __future__ import annotations

from collections.abc import Sequence

from experiments import published
from experiments.report.content import Column, Grid, Picture, Row, Section
from experiments.report.drawing import budget_axis, canvas, legend, ours, png
from experiments.report.records import Records
from experiments.understanding.tables import summarise

NAME = "understanding"
TASKS = {
    "squality": ("SQuALITY", "ROUGE, geometric mean", "figure_4"),
    "qasper": ("QASPER", "F1", "figure_5"),
}

COLUMNS = (
    Column("policy", "policy"),
    Column("mode", "prompt"),
    Column("budget", "k"),
    Column("questions", "questions"),
    Column("score", "score, of 100", 2),
    Column("nats", "nats per token of the reference", 4),
    Column("generated_tokens", "tokens of the answer", 1),
)


def make(records: Records) -> Section | None:
    """The section of these results, None where there are none."""
    lines = records.lines(NAME)
    if not lines:
        return None
    about = (
        "Documents are cut at their end to fit the context. The score of an answer is near its floor for a small "
        "model, so the loss of the reference answers under the same state stands beside it."
    )
    grids, pictures, found = [], [], summarise(lines)
    for task, (name, measure, picture) in TASKS.items():
        rows = [{**row, "mode": row["mode"] or ""} for row in found if row["task"] == task]
        if rows:
            grids.append(Grid(f"{name}: {measure}", COLUMNS, rows))
            pictures.append(_picture(rows, name, measure, picture, published.SCORES[task]))
    return Section(NAME, "Long-range understanding (Figures 4 and 5)", about, grids, pictures)


def _picture(rows: Sequence[Row], name: str, measure: str, file: str, axis: tuple[int, int]) -> Picture:
    modes = list(dict.fromkeys(row["mode"] for row in rows if row["policy"] not in ("full", "baseline"))) or [""]
    figure, panels = canvas(len(modes), 2, width=5.0, height=3.4)
    for number, panel in enumerate(panels):
        mode, value = modes[number % len(modes)], ("score", "nats")[number // len(modes)]
        _panel(panel, [row for row in rows if row["mode"] == mode or row["policy"] in ("full", "baseline")], value)
        panel.set_title(f"{name}, {mode} prompts" if mode else name)
        panel.set_ylabel(f"{measure}, of 100" if value == "score" else "nats per token of the reference")
    low, high = axis
    return Picture(
        file,
        f"Figure {file[-1]}: {name} against the multi-state size, scores above, loss of the references below. "
        f"The paper gives a plot only: LLaMA-2-7B-chat lies between {low} and {high}.",
        f"Score and loss of {name} against the multi-state size, a line for each policy",
        png(figure),
    )


def _panel(panel, rows: Sequence[Row], value: str) -> None:
    budgets = sorted({row["budget"] for row in rows if row["policy"] != "full"})
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["budget"] or 0)
        if policy == "full":
            panel.axhline(mine[0][value], color="black", linewidth=1, label="full model")
        else:
            ours(panel, policy, [(row["budget"], row[value], row[f"{value}_stderr"]) for row in mine])
    budget_axis(panel, budgets)
    legend(panel)
