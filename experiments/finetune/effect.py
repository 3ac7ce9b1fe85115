"""What training changed: perplexity before and after, under the policy and under full attention, on other texts.

python -m experiments.finetune.effect checkpoints/smollm2-135m runs/tova64 runs/full --data book.txt --out runs/effect

Every model reads the same segments. Differences are paired: trained minus untrained, segment by segment.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.table import Table

from experiments.common.books import read_books
from experiments.common.console import last_part, say, show, with_error
from experiments.common.estimates import Estimate, by, columns, exp, mean_of, minus, over
from experiments.common.options import Checkpoint, Dtype
from experiments.common.origin import check_out, write_result
from experiments.common.policies import FULL
from experiments.finetune.plot import plot_runs
from experiments.finetune.run import MODEL, read_about, read_losses
from experiments.language_modeling.__main__ import Settings as Reading
from experiments.language_modeling.__main__ import run as read
from msrnn_jax.checkpoint.identity import fingerprint
from msrnn_jax.checkpoint.load import load
from msrnn_jax.checkpoint.tokenizer import load_tokenizer
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command
from msrnn_jax.evaluation.plot import check_plot
from msrnn_jax.io.journal import Line
from msrnn_jax.io.provenance import tokens_hash
from msrnn_jax.policies import parse_policy
from msrnn_jax.text.display import decimals

NAME = "finetune_effect"
UNTRAINED = "untrained"
PICTURE = "losses.png"
WINDOW = 16  # steps of the mean that is drawn


class Texts(Protocol):
    """Settings that say what is read."""

    @property
    def data(self) -> tuple[str, ...]: ...
    @property
    def segment(self) -> int: ...
    @property
    def segments(self) -> int: ...
    @property
    def dtype(self) -> str | None: ...


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      runs: folders that `experiments.finetune` wrote.
      data: texts, best not those that were trained on.
      segments: of every text, evenly spread; 0 for all.
      segment: tokens of each.
    """

    checkpoint: str
    runs: tuple[str, ...]
    data: tuple[str, ...]
    policy: str = "tova"
    budget: int = 64
    segment: int = 2048
    segments: int = 0
    dtype: str | None = "bfloat16"


def run(settings: Settings, out: pathlib.Path, console: Console) -> list[dict[str, Any]]:
    """Measures what is missing, draws the losses of the runs, and writes `effect.json`; returns its rows.

    Raises:
      ValueError: for a run without a checkpoint, one that has not come to its end or began from another model, and two
        of one name.
    """
    names = [last_part(run) for run in settings.runs]
    if len({UNTRAINED, *names}) <= len(names):
        raise ValueError(f"runs are called {', '.join(names)}; no two may have one name, nor {UNTRAINED!r}")
    check_out(out / "effect.json")
    check_plot(out / PICTURE)
    _check_runs(settings, console)
    losses = {name: read_losses(pathlib.Path(run)) for name, run in zip(names, settings.runs, strict=True)}
    models = {UNTRAINED: settings.checkpoint}
    models |= {name: str(pathlib.Path(run) / MODEL) for name, run in zip(names, settings.runs, strict=True)}
    asked = (settings.policy,), (settings.budget,), settings
    lines = {name: read(reading(model, *asked), out / f"{name}.jsonl", console) for name, model in models.items()}
    rows = summarise(lines, str(parse_policy(settings.policy)), settings.budget)
    plot_runs(out / PICTURE, losses, WINDOW)
    write_result(out / "effect.json", NAME, settings, {"rows": rows})
    return rows


def _check_runs(settings: Settings, console: Console) -> None:
    """Refuses runs that say nothing of this model, and tells of texts that were trained on."""
    weights = fingerprint(*load(settings.checkpoint, dtype="float32"))
    tokenizer = load_tokenizer(settings.checkpoint)
    books = read_books(tokenizer, settings.data, 2, Console(quiet=True))
    texts = {tokens_hash(book.tokens) for book in books}
    for run in settings.runs:
        about = read_about(pathlib.Path(run) / MODEL)
        if about["steps_done"] != about["steps"]:
            taken = f"{about['steps_done']} of {about['steps']}"
            raise ValueError(f"run {run!r} has taken {taken} steps; it must have come to its end")
        if about["model_sha256"] != weights:
            raise ValueError(
                f"run {run!r} began from model {about['model_sha256']}, not from checkpoint {settings.checkpoint!r}, "
                f"which is {weights}"
            )
        for name, digest in about["data_sha256"]:
            if digest in texts:
                say(console, f"note: run {run!r} was trained on {name}, of which numbers say nothing about other texts")


def reading(checkpoint: str, policies: Sequence[str], budgets: Sequence[int], settings: Texts) -> Reading:
    """What `language_modeling` is to read: these policies at these budgets on all segments."""
    return Reading(
        checkpoint=checkpoint,
        data=settings.data,
        policies=tuple(policies),
        others=(),
        budgets=tuple(budgets),
        segment=settings.segment,
        segments=settings.segments,
        other_segments=settings.segments,
        dtype=settings.dtype,
    )


def summarise(lines: Mapping[str, Sequence[Line]], policy: str, budget: int) -> list[dict[str, Any]]:
    """A row for every model, the untrained one first.

    Returns:
      For `policy` and `full` the `perplexity` and `change`, nats per token more than the untrained model's on the same
      tokens; `gap`, nats of the policy above full attention in this model; `closed`, how much of what the policy costs
      the untrained model has come back: how far the loss under the policy fell, over the untrained model's gap. Each
      with a standard error over segments.
    """
    found = {name: _losses(own, policy, budget) for name, own in lines.items()}
    before = found[UNTRAINED]
    rows = []
    for name, losses in found.items():
        row: dict[str, Any] = {"model": name, "segments": losses["full"].documents}
        for attention, loss in losses.items():
            row |= columns(f"perplexity_{attention}", exp(loss))
            row |= columns(f"change_{attention}", minus(loss, before[attention]))
        row |= columns("gap", minus(losses["policy"], losses["full"]))
        back = minus(before["policy"], losses["policy"])
        row |= columns("closed", over(back, minus(before["policy"], before["full"])))
        rows.append(row)
    return rows


def _losses(lines: Sequence[Line], policy: str, budget: int) -> dict[str, Estimate]:
    """Nats per token under the policy and under full attention, on the same segments in the same order."""
    groups = by(lines, "policy")
    mine = [line for line in groups[policy,] if line["setting"]["budget"] == budget]
    return {"policy": mean_of(mine, "nats", "tokens"), "full": mean_of(groups[FULL,], "nats", "tokens")}


def table(rows: Sequence[dict[str, Any]], settings: Settings) -> Table:
    """Perplexities and changes, for reading."""
    made = Table("model")
    policy = f"{settings.policy}, {settings.budget}"
    titles = (policy, "change in nats", "full attention", "change in nats", "nats between", "closed")
    for title in titles:
        made.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for attention in ("policy", "full"):
            cells.append(with_error(row, f"perplexity_{attention}", 2))
            trained = row["model"] != UNTRAINED
            cells.append(with_error(row, f"change_{attention}", 4) if trained else "")
        cells.append(with_error(row, "gap", 4))
        closed = f"{decimals(100 * row['closed'], 1)} +- {decimals(100 * row['closed_stderr'], 1)} %"
        made.add_row(row["model"], *cells, closed if row["model"] != UNTRAINED else "")
    return made


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    runs: Annotated[list[str], typer.Argument(help="Folders that experiments.finetune wrote.", metavar="RUN...")],
    data: Annotated[list[str], typer.Option("--data", help="Texts to measure on: files or folders of .txt.")],
    policy: Annotated[str, typer.Option(help="As in msrnn perplexity.")] = Settings.policy,
    budget: Annotated[int, typer.Option(help="Multi-state size.")] = Settings.budget,
    segment: Annotated[int, typer.Option(help="Tokens of a segment.")] = Settings.segment,
    segments: Annotated[
        int, typer.Option(help="Segments of every text, evenly spread; 0 for all.")
    ] = Settings.segments,
    dtype: Dtype = Settings.dtype,
    out: Annotated[pathlib.Path, typer.Option(help="Folder to write, or to go on with.")] = pathlib.Path(
        "results/finetune_effect"
    ),
) -> None:
    settings = Settings(checkpoint, tuple(runs), tuple(data), policy, budget, segment, segments, dtype)
    rows = run(settings, out, Console(stderr=True))
    show(table(rows, settings))


if __name__ == "__main__":
    app()
