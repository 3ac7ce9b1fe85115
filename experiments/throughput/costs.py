"""What policies cost, out of a run of the section policies: a page, and the numbers that `msrnn policies` shows.

python -m experiments.throughput.costs results/throughput.json
"""

import json
import pathlib
from typing import Annotated, Any

import typer

from experiments.common.markdown import table
from experiments.throughput.policies import BASE, EXTEND, stepping
from experiments.throughput.tables import model_name, tables
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command
from msrnn_jax.io.atomic import write_json, write_text
from msrnn_jax.policies.costs import FILE

PAGE = pathlib.Path(__file__).parents[1] / "results" / "policies.md"
ABOUT = """# What every policy costs

`python -m experiments.throughput CKPT --section policies --dtype {dtype}` measured this on {model},
{hardware}, jax {jax}, Python {python}. Times are medians over {turns} turns. A ratio is taken within a turn.
`extend` reads in chunks of {chunk} tokens with losses. A policy that cuts every b tokens has slots for b more.
"""
SELDOM = """
Where scoring costs much, a cut now and then saves most of it. Where it costs next to nothing (window, tova, h2o), it
saves nothing, and a row that waits for its cut holds up to 127 tokens more, which attention goes over.
"""


def write(result: dict[str, Any], numbers: pathlib.Path = FILE, page: pathlib.Path = PAGE) -> None:
    """Writes both files from the first dtype of a result."""
    dtype, batch = result["settings"]["dtypes"][0], max(result["settings"]["policies"]["batches"])
    largest = stepping(batch)
    ratios = [one for one in result["policies"]["ratios"] if one["dtype"] == dtype]
    costs: dict[str, dict[str, float]] = {str(BASE): {"step": 1.0, "extend": 1.0}}
    for one in ratios:
        if one["work"] in (largest, EXTEND):
            costs.setdefault(one["policy"], {})["extend" if one["work"] == EXTEND else "step"] = round(one["median"], 2)
    origin = {name: result[name] for name in ("hardware", "device", "versions", "python", "commit", "finished")}
    about = {"dtype": dtype, "budget": result["settings"]["decode"]["budget"], "batch": batch}
    write_json(numbers, {**origin, **about, "over_window": costs})
    write_text(page, as_page(result))


def as_page(result: dict[str, Any]) -> str:
    """The tables of the first dtype as Markdown."""
    settings = {**result["settings"], "dtypes": result["settings"]["dtypes"][:1]}
    lines = ABOUT.format(
        dtype=settings["dtypes"][0],
        model=model_name(result),
        hardware=result["hardware"],
        jax=result["versions"]["jax"],
        python=result["python"],
        turns=settings["slow_turns"],
        chunk=settings["extend"]["chunk"],
    ).splitlines()
    for made in tables({"settings": settings, "policies": result["policies"]}):
        columns = [list(map(str, column.cells)) for column in made.columns]
        titles = [str(column.header) for column in made.columns]
        lines += ["", f"## {made.title}", "", *table(titles, list(zip(*columns, strict=True))), ""]
        lines += [f"* {line}" for line in str(made.caption).splitlines()]
    return "\n".join([*lines, *SELDOM.splitlines()]) + "\n"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors
def main(
    result: Annotated[pathlib.Path, typer.Argument(help="What experiments.throughput wrote.")],
    numbers: Annotated[pathlib.Path, typer.Option(help="Where the numbers go.")] = FILE,
    page: Annotated[pathlib.Path, typer.Option(help="Where the page goes.")] = PAGE,
) -> None:
    found = json.loads(result.read_text(encoding="utf-8"))
    if "policies" not in found:
        raise ValueError(f"{result} has no section policies; run experiments.throughput with --section policies")
    write(found, numbers, page)
    typer.echo(f"wrote {numbers} and {page}")


if __name__ == "__main__":
    app()
