"""`msrnn policies`: what there is, and what each does."""

import json
from typing import Annotated, Any

import typer

from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.options import Json


@plain_errors
def policies(
    name: Annotated[str | None, typer.Argument(help="Explain this one.", metavar="NAME")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a page of Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Lists the policies, or explains one.

    Example: msrnn policies tova
    """
    from msrnn_jax.policies.catalogue import as_markdown, catalogue, describe

    entries = catalogue() if name is None else [describe(name)]
    if as_json:
        for entry in entries:
            typer.echo(json.dumps(entry._asdict()))
    elif markdown:
        typer.echo(as_markdown(), nl=False)
    elif name is None:
        _list(entries)
    else:
        _explain(entries[0])


def _list(entries: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from msrnn_jax.policies.catalogue import spell

    table = Table.grid(padding=(0, 2))
    for entry in entries:
        paper = f"arXiv:{entry.paper}" if entry.paper else ""
        more = "; ".join(filter(None, (spell(entry.defaults), paper)))
        table.add_row(Text(entry.name, "bold"), Text.assemble(entry.summary, " ", (more, "dim")))
    Console().print(table)
    typer.echo("`msrnn policies NAME` explains one.")


def _explain(entry: Any) -> None:
    from msrnn_jax.policies.catalogue import common_options, spell, spell_cost

    kept = f"{entry.per_slot} of every slot, {entry.per_row} of every row"
    typer.echo(f"{entry.name}: {entry.text}\n")
    typer.echo(f"It scores by {entry.scored_by}, and keeps numbers: {kept}")
    typer.echo("(for 8 KV heads of width 128 with 4 query heads each).")
    if entry.cost:
        step, extend = spell_cost(entry, "step"), spell_cost(entry, "extend")
        at_each = "; in brackets, where it cuts at each token" if entry.cost_at_each else ""
        typer.echo(f"Time over Window's, as measured: a step {step}, a token of extend {extend}{at_each}.")
    if entry.options:
        typer.echo(f"Options of its own: {spell(entry.options)}")
    typer.echo("Options of every policy:")
    for name, said in common_options().items():
        default = entry.defaults.get(name)
        typer.echo(f"  {name}: {said}" + (f" Here {default}." if default is not None else ""))
