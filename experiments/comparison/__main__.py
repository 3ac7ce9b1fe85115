"""Every eviction policy on one footing: perplexity, nearness to the full model, and a fact far back.

python -m experiments.comparison checkpoints/smollm2-135m --data path/to/books

Runs experiments.language_modeling and experiments.needle on all policies, at every token and every 128 tokens, into
journals of its own, which a killed run goes on with. Then writes comparison.md and comparison.png into the folder.
"""

import dataclasses
import pathlib
from typing import Annotated

import typer
from rich.console import Console

from experiments.common.markdown import table
from experiments.common.options import Books, Budgets, Checkpoint, Dtype, NumBooks, Policies, command_of, settings_of
from experiments.common.policies import check_keeps_no_prompt
from experiments.comparison.differences import reference_of
from experiments.comparison.figure import draw
from experiments.comparison.findings import findings_of, when
from experiments.comparison.policies import DEFAULT, SLOW, held
from experiments.comparison.tables import Row, page, rows_of
from experiments.language_modeling import __main__ as language_modeling
from experiments.language_modeling.tables import summarise
from experiments.needle import __main__ as needle
from experiments.needle import tables as needle_tables
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.options import MeshText, budgets_option
from msrnn_jax.evaluation.plot import check_plot
from msrnn_jax.io.atomic import check_writable, write_bytes, write_text
from msrnn_jax.io.journal import Line
from msrnn_jax.policies import parse_policy
from msrnn_jax.recurrence.checks import check_int

NAME = "comparison"
DEPTHS = needle.evenly(5)  # shares of the text before the needle


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared on what.

    Attributes:
      segment: tokens of a segment of a book.
      segments: of every book, evenly spread; 0 for all.
      books: the first ones only; 0 for all.
      needle_budgets: those of the budgets at which needles are asked for.
      slow: policies that are measured on `slow_segments` of every book, and asked for no needles.
      needle_length: tokens of a text with a needle in it, at most.
      draws: texts with a needle for each of the DEPTHS; 0 for none.
    """

    checkpoint: str = ""
    data: tuple[str, ...] = ()
    policies: tuple[str, ...] = DEFAULT
    budgets: tuple[int, ...] = (64, 128, 256, 512)
    segment: int = 1024
    segments: int = 8
    books: int = 3
    slow: tuple[str, ...] = SLOW
    slow_segments: int = 2
    needle_length: int = 512
    needle_budgets: tuple[int, ...] = (64, 128)
    draws: int = 4
    dtype: str | None = None
    mesh: str | None = None


def run(settings: Settings, out: pathlib.Path, console: Console) -> str:
    """Measures what is missing, writes the page and the figure into a folder, and returns the page."""
    settings = dataclasses.replace(settings, policies=_with_tova(settings.policies))
    _check(settings, out)
    slow = tuple(policy for policy in settings.policies if policy in settings.slow)
    fast = tuple(policy for policy in settings.policies if policy not in settings.slow)
    alike = {name: getattr(settings, name) for name in ("checkpoint", "data", "dtype", "mesh")}
    sizes = {name: getattr(settings, name) for name in ("segment", "segments", "books")}
    journal = out / f"{NAME}_{language_modeling.NAME}.jsonl"
    books = language_modeling.Settings(**alike, **sizes, policies=fast, budgets=settings.budgets, others=())
    lines = language_modeling.run(books, journal, console)
    for budget in settings.budgets if slow else ():  # one by one: their cost grows with the slots of all rows
        number = min(settings.slow_segments, settings.segments or settings.slow_segments)
        few = {"budgets": (budget,), "policies": (), "others": slow, "other_segments": number}
        more = language_modeling.run(dataclasses.replace(books, **few), journal, console)
        lines += [line for line in more if line["setting"]["policy"] in slow]
    sizes = {"budgets": _asked_at(settings), "lengths": (settings.needle_length,), "depths": DEPTHS}
    asked = needle.Settings(**alike, **sizes, policies=fast, draws=settings.draws)
    journal = out / f"{NAME}_{needle.NAME}.jsonl"
    cases = needle.run(asked, journal, console) if _asked_at(settings) else []
    return write(lines, cases, out)


def _with_tova(policies: tuple[str, ...]) -> tuple[str, ...]:
    """Every policy is held against TOVA that cuts as often."""
    spelled = [str(parse_policy(policy)) for policy in policies]
    return tuple(dict.fromkeys([*spelled, *map(reference_of, spelled)]))


def _asked_at(settings: Settings) -> tuple[int, ...]:
    """Budgets of the needles, none without draws."""
    return tuple(size for size in settings.needle_budgets if size in settings.budgets and settings.draws)


def _check(settings: Settings, out: pathlib.Path) -> None:
    """Refuses before any work what `needle` would refuse after hours of `language_modeling`."""
    check_plot(out / f"{NAME}.png")
    check_writable("out", out / f"{NAME}.md")
    check_int("draws", settings.draws, 0)
    if _asked_at(settings):
        check_keeps_no_prompt([parse_policy(policy) for policy in settings.policies])


def write(lines: list[Line], cases: list[Line], out: pathlib.Path) -> str:
    """Writes comparison.png and comparison.md, which it returns."""
    rows = rows_of(lines, cases)
    picture = draw(rows)
    write_bytes(out / f"{picture.name}.png", picture.png)
    full = summarise([line for line in lines if line["setting"]["policy"] == "full"])[0]
    finds = [row for row in needle_tables.summarise(cases) if row["policy"] == "full"]
    found = ", ".join(f"{100 * row['correct']:.0f} % with the question {row['order']} the text" for row in finds)
    needles = f"; of needles it finds {found}" if found else ""
    texts = [
        "# Policies on one footing",
        f"{full['segments']} segments of {full['budget']:,} tokens of books, each read from an empty state; the full "
        f"model's perplexity is {full['perplexity']:.2f}{needles}. Differences are in nats per token, paired over "
        "segments, with standard errors. Better and worse are told from two standard errors on (of few segments more, "
        "by Student's t), without a correction for how many policies there are.",
        "\n".join(f"* {one}" for one in findings_of(lines, cases)),
        f"![{picture.alt}]({picture.name}.png)",
        picture.caption,
        _of_fewer(rows, full["segments"]),
    ]
    for every in sorted({row["every"] for row in rows}):
        sizes = sorted({row["budget"] for row in rows})
        texts += [
            f"## Cut {when(every)}",
            f"Perplexity, KL, agreement and needles at k = {' / '.join(map(str, sizes))} (needles at those they were "
            f"asked at); from one cut to the next {' / '.join(f'{held(size, every):,.1f}' for size in sizes)} tokens "
            "are held in the mean. The rank is by the mean difference from TOVA, on the same segments.",
            "\n".join(table(*page(rows, every))),
        ]
    text = "\n\n".join(filter(None, texts)) + "\n"
    write_text(out / f"{NAME}.md", text)
    return text


def _of_fewer(rows: list[Row], segments: int) -> str:
    """Which policies were measured on fewer segments than the full model."""
    fewer = {row["label"]: f"{row['label']} ({row['segments']})" for row in rows if row["segments"] < segments}
    return f"Of fewer segments, at every token: {', '.join(fewer.values())}." if fewer else ""


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=command_of({NAME: Settings()}), help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    data: Books = None,
    policy: Policies = None,
    budget: Budgets = None,
    segment: Annotated[int | None, typer.Option(help="Tokens of a segment.")] = None,
    segments: Annotated[int | None, typer.Option(help="Segments of every book, evenly spread; 0 for all.")] = None,
    books: NumBooks = None,
    slow_segments: Annotated[int | None, typer.Option(help="Segments of every book for the slowest policies.")] = None,
    needle_length: Annotated[int | None, typer.Option(help="Tokens of a text with a needle.")] = None,
    needle_budget: Annotated[
        list[int] | None, budgets_option("Budgets at which needles are asked for.", "--needle-budget")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Texts for every depth; 0 for no needles.")] = None,
    dtype: Dtype = None,
    mesh: MeshText = None,
    out: Annotated[pathlib.Path, typer.Option(help="Folder to write to, or to go on in.")] = pathlib.Path("results"),
) -> None:
    settings = settings_of(
        {NAME: Settings()},
        NAME,
        checkpoint=checkpoint,
        data=data,
        policies=policy,
        budgets=budget,
        segment=segment,
        segments=segments,
        books=books,
        slow_segments=slow_segments,
        needle_length=needle_length,
        needle_budgets=needle_budget,
        draws=draws,
        dtype=dtype,
        mesh=mesh,
    )
    run(settings, out, Console(stderr=True))
    typer.echo(f"wrote {out / f'{NAME}.md'}")


if __name__ == "__main__":
    app()
