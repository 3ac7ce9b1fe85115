"""Perplexity of books against the multi-state size: the paper's Table 3 and Figure 3.

python -m experiments.language_modeling checkpoints/smollm2-135m --data path/to/books

Books are cut into segments of the context length, each read from an empty state. `baseline` is the same model with a
context as short as the budget; `full` remembers everything. Every prediction is compared with that of the full model.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.common.books import Passage, read_books, spaced, spread
from experiments.common.console import show
from experiments.common.model import Model, open_model
from experiments.common.options import (
    Books,
    Budgets,
    Checkpoint,
    Dtype,
    NumBooks,
    Out,
    Policies,
    Preset,
    Segment,
    command_of,
    settings_of,
)
from experiments.common.policies import BASELINE, FULL, named, policies_of
from experiments.common.study import Key, Unit, complete
from experiments.language_modeling.fields import check
from experiments.language_modeling.reading import Full, read_budgets, read_full, read_short, together
from experiments.language_modeling.tables import summarise, table
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.options import MeshText
from msrnn_jax.io.journal import Line
from msrnn_jax.policies import parse_policy
from msrnn_jax.recurrence.checks import check_int

NAME = "language_modeling"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured on what.

    Attributes:
      policies: of Figure 3; full attention and the short context are always beside them.
      others: of Table 3 alone.
      segment: tokens of a segment; None: the model's context, at most 4,096.
      segments: of every book, evenly spread, for the first policies; 0 for all.
      other_segments: for the others.
    """

    checkpoint: str = ""
    data: tuple[str, ...] = ()
    policies: tuple[str, ...] = ("window", "window:sinks=4", "h2o", "tova")
    others: tuple[str, ...] = ("window:sinks=1", "h2o:scope=layer", "tova:scope=head", "tova:sinks=1", "tova:sinks=4")
    budgets: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    segment: int | None = None
    segments: int = 3
    other_segments: int = 1
    books: int = 0
    dtype: str | None = None
    mesh: str | None = None


PRESETS = {"small": Settings(), "paper": Settings(segments=0, other_segments=0)}


def run(settings: Settings, out: pathlib.Path, console: Console) -> list[Line]:
    """Measures what is missing, and returns all lines."""
    model = open_model(settings.checkpoint, settings.dtype, settings.mesh)
    size = check_int("segment", model.context if settings.segment is None else settings.segment, 2)
    settings = dataclasses.replace(settings, segment=size)
    _check(settings, model, size)
    books = read_books(model.tokenizer, settings.data, size * max(1, settings.segments), console, settings.books)
    cut = [spread(book, size, settings.segments) for book in books]
    passages = [passage for own in cut for passage in own]
    fewer = {passage.name for own in cut for passage in spaced(own, settings.other_segments)}

    @functools.lru_cache(maxsize=1)
    def full(index: int) -> Full:
        return read_full(model, passages[index].tokens)

    units = [
        unit
        for index, passage in enumerate(passages)
        for unit in _units(settings, model, passage, functools.partial(full, index), passage.name in fewer)
    ]
    return complete(out, NAME, settings, model.about, units, console, check)


def _check(settings: Settings, model: Model, size: int) -> None:
    for name in ("segments", "other_segments", "books"):
        check_int(name, getattr(settings, name), 0)
    if settings.segments and not 0 < settings.other_segments <= settings.segments:
        raise ValueError(f"other_segments is {settings.other_segments}; it must be from 1 to {settings.segments}")
    policies_of(model.config, (*settings.policies, *settings.others), settings.budgets, size)


def _units(
    settings: Settings, model: Model, passage: Passage, full: Callable[[], Full], others: bool
) -> Iterator[Unit]:
    """What is read of one segment, the full model first, whose predictions the others are compared with."""
    size = len(passage.tokens)

    def key(policy: str, budget: int) -> Key:
        return Key({**named(policy), "budget": budget, "segment": size}, passage.name, passage.sha256)

    def read_whole() -> list[dict[str, Any]]:
        nats = float(full().nats.sum(dtype="float64"))
        return [{"tokens": size - 1, "nats": nats, "kl": 0.0, "agreement": float(size - 1), "full_nats": nats}]

    yield Unit([key(FULL, size)], read_whole)
    for budget in settings.budgets:
        yield Unit([key(BASELINE, budget)], lambda budget=budget: [read_short(model, passage.tokens, full(), budget)])
    for text in (*settings.policies, *(settings.others if others else ())):
        policy = parse_policy(text)
        for group in together(settings.budgets):

            def read_group(policy: Any = policy, group: list[int] = group) -> list[dict[str, Any]]:
                return read_budgets(model, policy, passage.tokens, full(), group)

            yield Unit([key(str(policy), budget) for budget in group], read_group)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=command_of(PRESETS), help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    data: Books = None,
    preset: Preset = "small",
    policy: Policies = None,
    other: Annotated[list[str] | None, typer.Option(help="Policies for the fewer segments; repeat it.")] = None,
    budget: Budgets = None,
    segment: Segment = None,
    segments: Annotated[int | None, typer.Option(help="Segments of every book, evenly spread; 0 for all.")] = None,
    other_segments: Annotated[int | None, typer.Option(help="Segments of every book for --other.")] = None,
    books: NumBooks = None,
    dtype: Dtype = None,
    mesh: MeshText = None,
    out: Out = pathlib.Path("results/language_modeling.jsonl"),
) -> None:
    settings = settings_of(
        PRESETS,
        preset,
        checkpoint=checkpoint,
        data=data,
        policies=policy,
        others=other,
        budgets=budget,
        segment=segment,
        segments=segments,
        other_segments=other_segments,
        books=books,
        dtype=dtype,
        mesh=mesh,
    )
    lines = run(settings, out, Console(stderr=True))
    show(table(summarise(lines)))


if __name__ == "__main__":
    app()
