"""The command line of `convert`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from msrnn_jax.command import plain_errors
from msrnn_jax.usage import Command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command)
@plain_errors(patience=30.0)
def command(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A Hugging Face LLaMA folder, a .gguf file, or the name smollm2-135m."),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights; by default the source's own, float32 if that is quantised."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint that is there.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where downloads are kept; by default $MSRNN_CACHE, else msrnn_jax in the user's cache."),
    ] = None,
) -> None:
    """Turns a LLaMA-family checkpoint into one of ours.

    Example: python -m convert smollm2-135m checkpoints/smollm2-135m
    """
    from .conversion import convert
    from .progress import bar

    typer.echo(convert(source, destination, dtype=dtype, force=force, cache=cache, report=_note, meter=bar))


def _note(line: str) -> None:
    typer.echo(line, err=True)
