"""A fact hidden in a long text: is it found when it is asked for after the text, or before it as well?

python -m experiments.needle checkpoints/smollm2-135m --data path/to/books

One sentence, such as "The secret number of Lisbon is 48213.", stands at a given depth of a stretch of a book. Order
`after`: the text, then the question. Order `before`: the question, the text, the question again. In both the answer is
begun for the model: "The secret number of Lisbon is". `full` remembers everything.

Mode `stepwise` is the recurrence, which in the order `after` forgets without knowing what will be asked. Mode `oneshot`
reads text and question with full attention and cuts once, when it has seen the question (the query-aware protocol).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from experiments.common.books import read_books
from experiments.common.console import show
from experiments.common.model import Model, open_model
from experiments.common.options import (
    Books,
    Budgets,
    Checkpoint,
    Dtype,
    Mode,
    Out,
    Policies,
    Preset,
    command_of,
    settings_of,
)
from experiments.common.policies import FULL, check_keeps_no_prompt, named, policies_of
from experiments.common.study import Key, Unit, complete
from experiments.needle.asking import Asked, ask
from experiments.needle.fields import check
from experiments.needle.haystack import draw_case, needle_tokens
from experiments.needle.prompts import ORDERS, rooms_for, write_prompt
from experiments.needle.tables import depth_table, summarise, summarise_depths, table
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.options import MeshText
from msrnn_jax.io.journal import Line
from msrnn_jax.model.prefill import check_mode
from msrnn_jax.policies import Policy, parse_policy
from msrnn_jax.recurrence.checks import check_int

NAME = "needle"


def evenly(count: int) -> tuple[float, ...]:
    """Depths from 0 to 1."""
    return tuple(round(index / (count - 1), 4) for index in range(count))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is hidden where, and who looks for it.

    Attributes:
      policies: those that forget; full attention is always beside them.
      lengths: tokens of the text with the needle in it, at most.
      depths: shares of the text before the needle.
      draws: texts with a needle for every length and depth, all different.
      orders: of the question and the text.
      mode: how prompts are read.
      chat: by the model's chat template, rather than as plain text.
      seed: of the draws.
    """

    checkpoint: str = ""
    data: tuple[str, ...] = ()
    policies: tuple[str, ...] = ("window:sinks=4", "h2o", "tova")
    budgets: tuple[int, ...] = (128, 256)
    lengths: tuple[int, ...] = (512, 1024, 2048)
    depths: tuple[float, ...] = evenly(10)
    draws: int = 5
    orders: tuple[str, ...] = ORDERS
    mode: str = "stepwise"
    chat: bool = False
    seed: int = 0
    dtype: str | None = None
    mesh: str | None = None


PRESETS = {
    "small": Settings(),
    "paper": Settings(
        policies=("window:sinks=4", "h2o", "tova", "tova:sinks=4"),
        budgets=(64, 128, 256, 512),
        lengths=(1024, 2048, 4096),
        depths=evenly(11),
        draws=10,
    ),
}


def run(settings: Settings, out: pathlib.Path, console: Console) -> list[Line]:
    """Asks what is missing, and returns all lines."""
    model = open_model(settings.checkpoint, settings.dtype, settings.mesh)
    settings = dataclasses.replace(settings, depths=tuple(round(depth, 6) + 0.0 for depth in settings.depths))
    _check(settings, model)
    rooms = rooms_for(model.tokenizer, settings.lengths, settings.chat)
    for length, room in rooms.items():
        if room.lead + room.tail > model.config.max_length:
            most = model.config.max_length - room.lead - room.tail + length
            raise ValueError(f"length is {length}; it must be at most {most}, so that the question fits the context")
    books = read_books(model.tokenizer, settings.data, max(settings.lengths) * settings.draws, console)
    cases = {
        (length, depth): [
            draw_case(model.tokenizer, books, settings.seed, length, depth, draw) for draw in range(settings.draws)
        ]
        for length in settings.lengths
        for depth in settings.depths
    }

    @functools.cache
    def asked(order: str, length: int, depth: float) -> list[Asked]:
        drawn = cases[length, depth]
        return [Asked(case, write_prompt(model.tokenizer, case, order, settings.chat)) for case in drawn]

    def unit(policy: Policy, budgets: Sequence[int], order: str, length: int, depth: float) -> Unit:
        """The draws of one length and depth in one order, under all budgets together."""
        about = {"order": order, "length": length, "depth": depth, "mode": settings.mode, "chat": settings.chat}
        keys = [
            Key({**named(policy), "budget": budget, **about}, case.name, case.sha256)
            for budget in budgets
            for case in cases[length, depth]
        ]
        where = order, length, depth
        return Unit(keys, lambda: ask(model, policy, asked(*where), budgets, rooms[length], settings.mode))

    units = [
        unit(parse_policy(text), [length] if text == FULL else settings.budgets, order, length, depth)
        for text in (FULL, *settings.policies)  # one after the other, so that the programs of each can be freed
        for length in settings.lengths
        for order in settings.orders
        for depth in settings.depths
    ]
    return complete(out, NAME, settings, model.about, units, console, check)


def _check(settings: Settings, model: Model) -> None:
    check_int("draws", settings.draws, 1)
    check_int("seed", settings.seed, 0)
    check_mode(settings.mode)
    least = needle_tokens(model.tokenizer)
    for length in settings.lengths:
        if length < least:
            raise ValueError(f"length is {length}; it must be at least {least}, the needle and its question")
    for depth in settings.depths:
        if not 0 <= depth <= 1:
            raise ValueError(f"depth is {depth}; it must be from 0 to 1, the share of the text before the needle")
    for order in settings.orders:
        if order not in ORDERS:
            raise ValueError(f"order is {order!r}; it must be one of {', '.join(ORDERS)}")
    check_keeps_no_prompt(policies_of(model.config, settings.policies, settings.budgets, min(settings.lengths)))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=command_of(PRESETS), help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    data: Books = None,
    preset: Preset = "small",
    policy: Policies = None,
    budget: Budgets = None,
    length: Annotated[list[int] | None, typer.Option(help="Tokens of the text, at most; repeat it.")] = None,
    depth: Annotated[
        list[float] | None, typer.Option(help="Share of the text before the needle, 0 to 1; repeat it.")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Texts for every length and depth.")] = None,
    order: Annotated[
        list[str] | None, typer.Option(help="The question: after, or before (as well); repeat it.")
    ] = None,
    mode: Mode = None,
    chat: Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the model's chat template.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draws.")] = None,
    dtype: Dtype = None,
    mesh: MeshText = None,
    out: Out = pathlib.Path("results/needle.jsonl"),
) -> None:
    settings = settings_of(
        PRESETS,
        preset,
        checkpoint=checkpoint,
        data=data,
        policies=policy,
        budgets=budget,
        lengths=length,
        depths=depth,
        draws=draws,
        orders=order,
        mode=mode,
        chat=chat,
        seed=seed,
        dtype=dtype,
        mesh=mesh,
    )
    lines = run(settings, out, Console(stderr=True))
    show(table(summarise(lines)), depth_table(summarise_depths(lines)))


if __name__ == "__main__":
    app()
