"""All results in one page: figures, tables, and which claims of the paper they confirm.

python -m experiments.report results --out experiments/results

Reads the result files that are in a folder, also while an experiment is at work, and names what is missing. Writes
report.html, which needs nothing else, report.md, report.json and the figures; no texts of any data are in them.
"""

import pathlib
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from experiments.common.console import say
from experiments.common.records import read_records
from experiments.report.render import markdown_of, page_of, values_of
from experiments.report.report import CHECKS, Report, make_report
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command
from msrnn_jax.evaluation.plot import check_plot
from msrnn_jax.io.atomic import check_writable, write_bytes, write_json, write_text

WRITTEN = ("report.html", "report.md", "report.json")


def run(results: pathlib.Path, out: pathlib.Path, model: str | None = None) -> Report:
    """Makes a report of the results in a folder and writes it into another.

    Args:
      model: what it is called; None: as its checkpoint.
    """
    check_plot(out / "report.png")  # whether any can be drawn
    for name in WRITTEN:
        check_writable("out", out / name)
    report = make_report(read_records(results, CHECKS), model)
    pictures = {f"{one.name}.png": one.png for section in report.sections for one in section.pictures}
    texts = {"report.md": markdown_of(report), "report.html": page_of(report)}
    for name in pictures:
        check_writable("out", out / name)
    for name, content in pictures.items():
        write_bytes(out / name, content)
    write_json(out / "report.json", values_of(report))
    for name, text in texts.items():
        write_text(out / name, text)
    return report


def table(report: Report) -> Table:
    """How many claims had each outcome."""
    made = Table("claims", *report.counts())
    for is_papers, name in ((True, "of the paper"), (False, "of ours")):
        made.add_row(name, *map(str, report.counts(is_papers).values()))
    return made


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors
def main(
    results: Annotated[pathlib.Path, typer.Argument(help="Folder of result files.", metavar="RESULTS")],
    out: Annotated[pathlib.Path, typer.Option(help="Folder to write to.")] = pathlib.Path("results/report"),
    model: Annotated[str | None, typer.Option(help="What the model is called. Default: as its checkpoint.")] = None,
) -> None:
    report = run(results, out, model)
    console = Console()
    console.print(table(report))
    for one in [*report.warnings, *report.missing]:
        say(console, one)
    typer.echo(f"wrote {out / 'report.html'}")


if __name__ == "__main__":
    app()
