"""Perplexity over a stream that is longer than the trained context: the paper's Figure 7.

python -m experiments.extrapolation checkpoints/smollm2-135m --data path/to/books

Each book is read through one state, without an end, at one budget and in every way to rotate keys (--positions).
"""

import dataclasses
import pathlib
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.common.books import Passage, read_books
from experiments.common.console import show
from experiments.common.model import Model, open_model
from experiments.common.options import Books, Checkpoint, Dtype, Out, Policies, Preset, command_of, settings_of
from experiments.common.policies import named, policies_of
from experiments.common.study import Key, Unit, complete
from experiments.extrapolation.fields import check
from experiments.extrapolation.reading import read_streams
from experiments.extrapolation.tables import summarise, table
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.options import MeshText
from msrnn_jax.io.journal import Line
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import check_int

NAME = "extrapolation"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is read.

    Attributes:
      tokens: of every book, from its beginning.
      books: the first ones that are long enough; 0 for all.
      batch: books read side by side, which share each reading of the weights.
    """

    checkpoint: str = ""
    data: tuple[str, ...] = ()
    policies: tuple[str, ...] = ("tova", "window:sinks=4")
    budget: int = 512
    positions: tuple[str, ...] = ("absolute", "cache", "gap")
    tokens: int = 70_000
    books: int = 2
    batch: int = 2
    dtype: str | None = None
    mesh: str | None = None


PRESETS = {"small": Settings(), "paper": Settings(books=52, batch=4)}


def run(settings: Settings, out: pathlib.Path, console: Console) -> list[Line]:
    """Measures what is missing, and returns all lines."""
    model = open_model(settings.checkpoint, settings.dtype, settings.mesh)
    check_int("tokens", settings.tokens, 2)
    check_int("books", settings.books, 0)
    check_int("batch", settings.batch, 1)
    policies = policies_of(model.config, settings.policies, [settings.budget], settings.tokens, settings.positions)
    books = read_books(model.tokenizer, settings.data, settings.tokens, console, settings.books)
    passages = [Passage(book.name, 0, book.tokens[: settings.tokens]) for book in books]
    units = [
        _unit(settings, model, policy, positions, passages[start : start + settings.batch])
        for positions in settings.positions
        for policy in policies
        for start in range(0, len(passages), settings.batch)
    ]
    return complete(out, NAME, settings, model.about, units, console, check)


def _unit(settings: Settings, model: Model, policy: Policy, positions: str, passages: list[Passage]) -> Unit:
    setting = {
        **named(policy),
        "budget": settings.budget,
        "positions": positions,
        "tokens": settings.tokens,
        "context": model.config.max_length,
        "batch": len(passages),
    }

    def work() -> list[dict[str, Any]]:
        texts = [passage.tokens for passage in passages]
        return read_streams(model, policy, texts, budget=settings.budget, positions=positions)

    return Unit([Key(setting, passage.name, passage.sha256) for passage in passages], work)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=command_of(PRESETS), help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    data: Books = None,
    preset: Preset = "small",
    policy: Policies = None,
    budget: Annotated[int | None, typer.Option(help="Multi-state size.")] = None,
    positions: Annotated[list[str] | None, typer.Option(help="absolute, cache or gap; repeat it.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of every book, from its beginning.")] = None,
    books: Annotated[int | None, typer.Option(help="Take the first books that are long enough; 0 for all.")] = None,
    batch: Annotated[int | None, typer.Option(help="Books read side by side.")] = None,
    dtype: Dtype = None,
    mesh: MeshText = None,
    out: Out = pathlib.Path("results/extrapolation.jsonl"),
) -> None:
    settings = settings_of(
        PRESETS,
        preset,
        checkpoint=checkpoint,
        data=data,
        policies=policy,
        budget=budget,
        positions=positions,
        tokens=tokens,
        books=books,
        batch=batch,
        dtype=dtype,
        mesh=mesh,
    )
    lines = run(settings, out, Console(stderr=True))
    show(table(summarise(lines)))


if __name__ == "__main__":
    app()
