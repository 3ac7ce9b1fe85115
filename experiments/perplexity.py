"""Perplexity against multi-state size for every policy: the paper's Table 3 and Figure 3.

python -m experiments.perplexity checkpoints/smollm2-135m --segment 512 --segments 4 --budget 64 --budget 128
"""

import dataclasses
import json
import math
import pathlib
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from experiments.results import check_out, write_result
from msrnn_jax.command import plain_errors
from msrnn_jax.measure import decimals, measure, origin, read_inputs
from msrnn_jax.usage import Command


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was measured; the defaults are the paper's, at SmolLM2's scale."""

    checkpoint: str
    texts: tuple[str, ...]  # empty: the default text
    policies: tuple[str, ...] = ("full", "window", "window:sinks=1", "window:sinks=4", "h2o", "tova", "random")
    budgets: tuple[int, ...] = (64, 128, 256, 512)
    segment: int = 4096
    segments: int = 0
    batch: int = 4
    positions: str = "absolute"
    dtype: str | None = None


def run(settings: Settings, console: Console) -> dict[str, Any]:
    """Measures every policy at every budget."""
    inputs = read_inputs(settings.checkpoint, settings.texts, settings.segment, settings.segments, settings.dtype)
    with console.status("compiling") as status:
        rows = measure(
            inputs,
            settings.policies,
            settings.budgets,
            batch=settings.batch,
            positions=settings.positions,
            report=status.update,
        )
        rows = list(rows)
    return {**origin(inputs), "tokens": inputs.tokens, "rows": rows}


def table(result: dict[str, Any]) -> Table:
    """Perplexities, a row for each policy and a column for each budget."""
    budgets = sorted({row["budget"] for row in result["rows"]})
    made = Table("policy", *(str(budget) for budget in budgets), title="Perplexity by multi-state size")
    for policy in dict.fromkeys(row["policy"] for row in result["rows"]):
        found = {row["budget"]: row["perplexity"] for row in result["rows"] if row["policy"] == policy}
        made.add_row(policy, *(decimals(found[budget], 2) if budget in found else "" for budget in budgets))
    return made


def plot(path: pathlib.Path) -> pathlib.Path:
    """Draws the figure of a result file and returns where it is, a PNG beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    result = json.loads(path.read_text(encoding="utf-8"))
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    markers = iter("os^Dv<>ph*")
    for policy in dict.fromkeys(row["policy"] for row in result["rows"]):
        rows = sorted(
            (row["budget"], math.nan if row["perplexity"] is None else row["perplexity"])
            for row in result["rows"]
            if row["policy"] == policy
        )
        if policy == "full":  # the topline: no budget of its own
            axes.axhline(rows[0][1], color="black", linestyle="--", linewidth=1, label="full attention")
        else:
            axes.plot(*zip(*rows, strict=True), marker=next(markers, "o"), label=policy)
    axes.set_xscale("log", base=2)
    if any(row["perplexity"] for row in result["rows"]):  # a model that yields no number has no scale
        axes.set_yscale("log")
    ticks = sorted({row["budget"] for row in result["rows"] if row["policy"] != "full"})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("multi-state size (tokens kept per layer)")
    axes.set_ylabel("perplexity")
    axes.set_title(f"{pathlib.Path(result['settings']['checkpoint']).name}, {result['tokens']} tokens")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    return picture


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors()
def main(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT")],
    text: Annotated[list[str] | None, typer.Option(help="UTF-8 file; repeat it. Default: Python's help.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Repeat it. Default: those of the paper.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="Repeat it. Default: 64 to 512.")] = None,
    segment: Annotated[int, typer.Option(help="Tokens per segment.")] = 4096,
    segments: Annotated[int, typer.Option(help="Use the first N segments; 0 uses all.")] = 0,
    batch: Annotated[int, typer.Option(help="Rows (segment, budget) run at once.")] = 4,
    positions: Annotated[str, typer.Option(help="How keys are rotated: absolute, cache or gap.")] = "absolute",
    dtype: Annotated[str | None, typer.Option(help="Cast the weights.")] = None,
    out: Annotated[pathlib.Path, typer.Option(help="JSON to write; the plot goes beside it.")] = pathlib.Path(
        "results/perplexity.json"
    ),
) -> None:
    check_out(out)
    settings = Settings(
        checkpoint=checkpoint,
        texts=tuple(text or ()),
        policies=tuple(policy or Settings.policies),
        budgets=tuple(budget or Settings.budgets),
        segment=segment,
        segments=segments,
        batch=batch,
        positions=positions,
        dtype=dtype,
    )
    result = run(settings, Console(stderr=True))
    write_result(out, "perplexity", settings, result)
    Console().print(table(result))
    typer.echo(f"{result['tokens']} tokens predicted, text {result['text_sha256']}; wrote {out} and {plot(out)}")


if __name__ == "__main__":
    app()
