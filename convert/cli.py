"""The command line of `convert`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command, WithDefault

app = typer.Typer(
    cls=WithDefault,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turns checkpoints of the LLaMA family into ours, and back. The word `import` may be left out.",
)
Force = Annotated[bool, typer.Option("--force", help="Replace what an earlier run has written there.")]


@app.command("import", cls=Command)
@plain_errors
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A Hugging Face LLaMA folder, a .gguf file, a model on the Hugging Face hub (org/name, or "
            "org/name/file.gguf), or smollm2-135m.",
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Dtype of the weights. Default: the source's own, or float32 if that is quantised."),
    ] = None,
    force: Force = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for downloads. Default: $MSRNN_CACHE, else msrnn_jax in the user's cache; for the hub "
            "its own cache."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")] = None,
    pre: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How a .gguf file's tokenizer cuts texts into words, if the file does not say it, or says it wrongly: "
            "llama-bpe, qwen2, gpt-2, smollm, tekken or another name of llama.cpp's.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the logits with transformers' first; needs torch, and time.")
    ] = False,
) -> None:
    """Turns a LLaMA-family checkpoint into one of ours.

    Example: msrnn convert smollm2-135m checkpoints/smollm2-135m
    """
    from .conversion import convert
    from .progress import bar

    options = {"dtype": dtype, "force": force, "cache": cache, "revision": revision, "pre": pre, "verify": verify}
    typer.echo(convert(source, destination, **options, report=_note, meter=bar))


@app.command(cls=Command)
@plain_errors
def export(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A checkpoint of ours.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    shard_size: Annotated[str, typer.Option(metavar="BYTES", help="Largest size of a file of weights.")] = "5GB",
    force: Force = False,
) -> None:
    """Turns a checkpoint of ours into a Hugging Face folder, which transformers loads.

    Example: msrnn convert export checkpoints/smollm2-135m smollm2-hf
    """
    from msrnn_jax.io.units import parse_bytes

    from .huggingface.export import export as write
    from .progress import bar

    size = parse_bytes("--shard-size", shard_size)
    typer.echo(write(source, destination, shard_bytes=size, force=force, report=_note, meter=bar))


def _note(line: str) -> None:
    typer.echo(line, err=True)
