"""Which tokens survive in the multi-state: the paper's Figures 8, 9, 12 and 13 and Table 5.

python -m experiments.retention checkpoints/smollm2-135m --data path/to/books

One segment of the context length from the middle of each book is read token by token, eight books side by side, and
every layer writes down which token it forgot when, and how much of the attention lay on it.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.common.books import Passage, read_books, spread
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
from experiments.common.policies import named, policies_of
from experiments.common.study import Key, Unit, complete
from experiments.retention.fields import check
from experiments.retention.lives import numbers_of
from experiments.retention.maps import pack
from experiments.retention.recording import BATCH, record
from experiments.retention.tables import summarise, table, table_of_tags
from experiments.retention.tags import tag_tokens, tagger_version
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.options import MeshText
from msrnn_jax.io.journal import Line
from msrnn_jax.policies import parse_policy
from msrnn_jax.recurrence.checks import check_int

NAME = "retention"
PICTURED = 512  # the budget of the paper's maps


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is recorded on what.

    Attributes:
      segment: tokens of a segment; None: the model's context, at most 4,096.
      books: the first ones, one segment of each; 0 for all.
      maps: of so many books the whole record is written, too, at the paper's budget of 512, or the largest one.
    """

    checkpoint: str = ""
    data: tuple[str, ...] = ()
    policies: tuple[str, ...] = ("tova",)
    budgets: tuple[int, ...] = (256, 512, 1024, 2048)
    segment: int | None = None
    books: int = 8
    maps: int = 1
    dtype: str | None = None
    mesh: str | None = None


PRESETS = {"small": Settings(), "paper": Settings(books=31)}


def run(settings: Settings, out: pathlib.Path, console: Console) -> list[Line]:
    """Records what is missing, and returns all lines."""
    tagger = tagger_version()
    model = open_model(settings.checkpoint, settings.dtype, settings.mesh)
    size = check_int("segment", model.context if settings.segment is None else settings.segment, 2)
    settings = dataclasses.replace(settings, segment=size)
    _check(settings, model, size)
    books = read_books(model.tokenizer, settings.data, size, console, settings.books)
    passages = [passage for book in books for passage in spread(book, size, 1)]
    mapped = {passage.name for passage in passages[: settings.maps]}
    pictured = PICTURED if PICTURED in settings.budgets else max(settings.budgets)
    every = [
        {**named(text), "budget": budget, "segment": size, "tagger": tagger}
        for text in settings.policies
        for budget in settings.budgets
    ]
    units = [
        _unit(model, setting, passages[start : start + BATCH], mapped if setting["budget"] == pictured else set())
        for setting in every
        for start in range(0, len(passages), BATCH)
    ]
    return complete(out, NAME, settings, model.about, units, console, check)


def _check(settings: Settings, model: Model, size: int) -> None:
    for name in ("books", "maps"):
        check_int(name, getattr(settings, name), 0)
    policies_of(model.config, settings.policies, settings.budgets, size)


def _unit(model: Model, setting: dict[str, Any], passages: Sequence[Passage], mapped: set[str]) -> Unit:
    """The numbers of some books under one setting, and the maps of those that get one."""
    policy, budget = parse_policy(setting["policy"]), setting["budget"]
    drawn = [index for index, passage in enumerate(passages) if passage.name in mapped]

    def work() -> list[dict[str, Any]]:
        found = record(model, policy, budget, [passage.tokens for passage in passages])
        numbers = [
            numbers_of(recorded, budget, tag_tokens(model.tokenizer, passage.tokens.tolist()))
            for recorded, passage in zip(found, passages, strict=True)
        ]
        return numbers + [pack(found[index].freed) for index in drawn]

    keys = [Key(setting, passage.name, passage.sha256) for passage in passages]
    maps = [Key({**setting, "record": "map"}, passages[index].name, passages[index].sha256) for index in drawn]
    return Unit(keys + maps, work)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=command_of(PRESETS), help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    data: Books = None,
    preset: Preset = "small",
    policy: Policies = None,
    budget: Budgets = None,
    segment: Segment = None,
    books: NumBooks = None,
    maps: Annotated[int | None, typer.Option(help="Books whose whole record is written, too.")] = None,
    dtype: Dtype = None,
    mesh: MeshText = None,
    out: Out = pathlib.Path("results/retention.jsonl"),
) -> None:
    settings = settings_of(
        PRESETS,
        preset,
        checkpoint=checkpoint,
        data=data,
        policies=policy,
        budgets=budget,
        segment=segment,
        books=books,
        maps=maps,
        dtype=dtype,
        mesh=mesh,
    )
    rows = summarise(run(settings, out, Console(stderr=True)))
    names = dict.fromkeys(row["policy"] for row in rows)
    show(table(rows), *(table_of_tags([row for row in rows if row["policy"] == name]) for name in names))


if __name__ == "__main__":
    app()
