"""What policies cost, out of a run of the section policies: a page, and the numbers that `msrnn policies` shows.

python -m experiments.throughput.costs results/throughput.json
"""

import json
import pathlib
import statistics
from typing import Annotated, Any

import typer

from experiments.common.markdown import table
from experiments.throughput.policies import BASE, EXTEND, MORE, stepping
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command
from msrnn_jax.io.atomic import write_json, write_text
from msrnn_jax.policies.costs import FILE

PAGE = pathlib.Path(__file__).parents[1] / "results" / "policies.md"
ABOUT = """# What every policy costs

`python -m experiments.throughput CKPT --section policies --dtype {dtype}` measured this on {model}: budget {budget},
{hardware}, jax {jax}, Python {python}. Times are medians over {turns} turns, of a step, or of a token
in `extend`. A ratio is taken within a turn; the table has the median over turns, ± half of the range. `extend` reads in
chunks of {chunk} tokens with losses. A policy that cuts every b tokens has slots for b more.
"""
SELDOM = """## Cutting every 128 tokens, over cutting at each

Where scoring costs much, a cut now and then saves most of it. Where it costs next to nothing (window, tova, h2o), it
saves nothing, and a row that waits for its cut holds up to 127 tokens more, which attention goes over. {more}
"""


def write(result: dict[str, Any], numbers: pathlib.Path = FILE, page: pathlib.Path = PAGE) -> None:
    """Writes both files from the first dtype of a result."""
    dtype, batch = result["settings"]["dtypes"][0], max(_batches(result))
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
    """The tables as Markdown."""
    settings, dtype, works = result["settings"], result["settings"]["dtypes"][0], _works(result)
    about = ABOUT.format(
        dtype=dtype,
        model=pathlib.Path(settings["checkpoint"] or settings["shape"]).name,
        budget=settings["decode"]["budget"],
        hardware=result["hardware"],
        jax=result["versions"]["jax"],
        python=result["python"],
        turns=settings["slow_turns"],
        chunk=settings["extend"]["chunk"],
    )
    titles = [f"{kind}, {unit}" for kind in works for unit in ("ms", "over Window")]
    rows = []
    for count in (one for one in result["policies"]["bytes"] if one["dtype"] == dtype):
        cells = [cell for work in works for cell in _cells(result, count["policy"], work)]
        kept = (count["statistics"] + count["row_statistics"]) / count["keys_and_values"]
        rows.append([count["policy"], *cells, f"{count['slots']:,.0f}", f"{kept:.1%}"])
    pairs = [one for one in result["policies"]["pairs"] if one["dtype"] == dtype]
    compared = [
        [
            name,
            *(_spread(one["each"]) for work in works for one in pairs if (one["policy"], one["work"]) == (name, work)),
        ]
        for name in dict.fromkeys(one["policy"] for one in pairs)
    ]
    more = [f"{one['policy']} ({one['work']})" for one in pairs if one["costs"] == MORE]
    said = f"Slower in every turn: {', '.join(more)}." if more else "None is slower in every turn."
    lines = [about, *table(["policy", *titles, "slots", "statistics"], rows), "", SELDOM.format(more=said)]
    return "\n".join([*lines, *table(["policy", *works], compared)]) + "\n"


def _cells(result: dict[str, Any], policy: str, work: str) -> list[str]:
    dtype = result["settings"]["dtypes"][0]

    def found(name: str) -> list[dict[str, Any]]:
        lines = result["policies"][name]
        return [one for one in lines if (one["dtype"], one["policy"], one["work"]) == (dtype, policy, work)]

    (row,), ratios = found("rows"), found("ratios")
    return [
        f"{1e3 * statistics.median(row['seconds']) / row['steps']:.2f}",
        _spread(ratios[0]["each"]) if ratios else "",
    ]


def _spread(each: list[float]) -> str:
    return f"{statistics.median(each):.2f} ± {(max(each) - min(each)) / 2:.2f}"


def _batches(result: dict[str, Any]) -> list[int]:
    return result["settings"]["policies"]["batches"]


def _works(result: dict[str, Any]) -> list[str]:
    return [*map(stepping, _batches(result)), EXTEND]


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
