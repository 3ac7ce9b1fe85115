"""The `msrnn` command."""

from typing import Annotated

import typer

from msrnn_jax.cli.calibrate import calibrate
from msrnn_jax.cli.chat import chat
from msrnn_jax.cli.generate import generate
from msrnn_jax.cli.info import info
from msrnn_jax.cli.launch import launch
from msrnn_jax.cli.perplexity import perplexity
from msrnn_jax.cli.policies import policies
from msrnn_jax.cli.trace import trace
from msrnn_jax.cli.usage import Command, Program
from msrnn_jax.convert.cli import app as convert  # pyright: ignore[reportMissingImports], see pyproject.toml

app = typer.Typer(
    name="msrnn",
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> bool:
    if asked:
        import importlib.metadata

        typer.echo(f"msrnn_jax {importlib.metadata.version('msrnn_jax')}")
        raise typer.Exit
    return asked


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """LLaMA as a multi-state RNN: generation and perplexity with a state of fixed size."""
    del version


for command in (generate, chat, perplexity, policies, calibrate, info, trace, launch):
    app.command(cls=Command)(command)
app.add_typer(convert, name="convert")
