"""What trained gates are worth, beside other policies, on texts that they were not trained on.

python -m experiments.finetune.gates CKPT learned:runs/soft/gate.safetensors --adapted runs/lora64/model --data BOOKS

Every policy reads the same segments at every budget, in the model and in one with trained adapters. The folder --out
gets gates.json, gates.md, gates.png, and the results of every segment; the same command goes on where it was cut off.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.common.books import Passage, read_books, spread
from experiments.common.console import show
from experiments.common.model import Model, open_model
from experiments.common.options import Checkpoint, Dtype
from experiments.common.origin import check_out, write_result
from experiments.common.policies import named
from experiments.common.study import Key, Unit, complete
from experiments.finetune.effect import reading
from experiments.finetune.gate_figure import draw
from experiments.finetune.gate_tables import ADAPTED, BASE, TOVA, as_markdown, name_of, summarise, summarise_soft, table
from experiments.language_modeling.__main__ import run as read
from experiments.language_modeling.fields import check
from experiments.language_modeling.reading import Full, compare_whole, read_budgets, read_full
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command
from msrnn_jax.io.atomic import write_bytes, write_text
from msrnn_jax.io.journal import Line
from msrnn_jax.policies import Learned, parse_policy

NAME = "gates"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      gates: policies as text, each with a file.
      adapted: a checkpoint with trained adapters, which reads the same; empty for none.
      policies: that gates are compared with.
      segments: of every book, evenly spread; 0 for all.
      segment: tokens of each.
    """

    checkpoint: str
    gates: tuple[str, ...]
    data: tuple[str, ...]
    adapted: str = ""
    policies: tuple[str, ...] = ("tova", "tova:scope=head", "h2o", "window")
    budgets: tuple[int, ...] = (64, 128, 256)
    segment: int = 2048
    segments: int = 8
    dtype: str | None = "bfloat16"


def run(settings: Settings, out: pathlib.Path, console: Console) -> dict[str, list[dict[str, Any]]]:
    """Measures what is missing and writes all files; returns `rows`, one for every model, policy and budget, and
    `soft`, one for every gate: how far it is from the full model while tokens only fade, and from its own hard choices.

    Raises:
      ValueError: for a policy that is no gate, two of one name, and what cannot be read.
    """
    gates = list(map(_gate, settings.gates))
    names = list(map(name_of, map(str, gates)))
    if len(set(names)) < len(names):
        raise ValueError(f"gates are called {', '.join(names)}; no two may have one name, that of their folder")
    if TOVA not in settings.policies:
        raise ValueError(f"policies are {', '.join(settings.policies)}; {TOVA} must be among them")
    check_out(out / "gates.json")
    models = {BASE: settings.checkpoint, **({ADAPTED: settings.adapted} if settings.adapted else {})}
    asked = (*settings.policies, *settings.gates), settings.budgets, settings
    lines = {name: read(reading(path, *asked), out / f"{name}.jsonl", console) for name, path in models.items()}
    soft = _read_soft(settings, gates, out, console)
    policies = [str(parse_policy(text)) for text in (*settings.policies, *settings.gates)]
    found = {"rows": summarise(lines, policies, settings.budgets), "soft": summarise_soft(soft)}
    write_bytes(out / "gates.png", draw(found["rows"]))
    write_text(out / "gates.md", as_markdown(found["rows"], found["soft"]))
    write_result(out / "gates.json", NAME, settings, found)
    return found


def _gate(text: str) -> Learned:
    policy = parse_policy(text)
    if not isinstance(policy, Learned) or not policy.gate:
        raise ValueError(f"policy {policy} is no gate of a file; it must be learned:PATH")
    return policy


def _read_soft(settings: Settings, gates: list[Learned], out: pathlib.Path, console: Console) -> list[Line]:
    model, size = open_model(settings.checkpoint, settings.dtype), settings.segment
    books = read_books(model.tokenizer, settings.data, size * max(1, settings.segments), console)
    fading = [gate for gate in gates if gate.ageing]  # other scores say who goes, and nothing of how fast
    passages = [passage for book in books for passage in spread(book, size, settings.segments)]

    @functools.lru_cache(maxsize=1)  # gates take turns on one segment
    def full(place: int) -> Full:
        return read_full(model, passages[place].tokens)

    units = [
        _soft_unit(model, gate, passage, functools.partial(full, place), settings.budgets)
        for place, passage in enumerate(passages)
        for gate in fading
    ]
    return complete(out / "soft.jsonl", "gates_soft", settings, model.about, units, console, check)


def _soft_unit(
    model: Model, gate: Learned, passage: Passage, full: Callable[[], Full], budgets: tuple[int, ...]
) -> Unit:
    """What every query finds faded, held against the full model, and hard choices held against that."""
    size = len(passage.tokens)
    against = {"full": size - 1, **{f"hard at {budget}": budget for budget in budgets}}
    keys = [
        Key({**named(gate), "against": other, "budget": budget, "segment": size}, passage.name, passage.sha256)
        for other, budget in against.items()
    ]

    def work() -> list[dict[str, Any]]:
        faded = read_full(model, passage.tokens, gate.replace(soft=True))
        return [
            compare_whole(model, faded, passage.tokens, full()),
            *read_budgets(model, gate, passage.tokens, faded, budgets),
        ]

    return Unit(keys, work)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    gates: Annotated[list[str], typer.Argument(help="Policies with a gate, learned:PATH.", metavar="GATE...")],
    data: Annotated[list[str], typer.Option("--data", help="Texts to measure on: files or folders of .txt.")],
    adapted: Annotated[str, typer.Option(help="A checkpoint with trained adapters, to read the same.")] = "",
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", help="Compared with gates; repeat it. Default: TOVA (also per head), H2O, Window."),
    ] = None,
    budgets: Annotated[
        list[int] | None, typer.Option("--budget", help="Multi-state size; repeat it. Default: 64, 128, 256.")
    ] = None,
    segment: Annotated[int, typer.Option(help="Tokens of a segment.")] = Settings.segment,
    segments: Annotated[
        int, typer.Option(help="Segments of every text, evenly spread; 0 for all.")
    ] = Settings.segments,
    dtype: Dtype = Settings.dtype,
    out: Annotated[pathlib.Path, typer.Option(help="Folder to write, or to go on with.")] = pathlib.Path(
        "results/gates"
    ),
) -> None:
    chosen = tuple(policies or Settings.policies), tuple(budgets or Settings.budgets)
    settings = Settings(checkpoint, tuple(gates), tuple(data), adapted, *chosen, segment, segments, dtype)
    found = run(settings, out, Console(stderr=True))
    show(*table(found["rows"], found["soft"]))
    typer.echo(out / "gates.md")


if __name__ == "__main__":
    app()
