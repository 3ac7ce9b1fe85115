"""Options and help that several commands share."""

from collections.abc import Iterable
from typing import Annotated, Any

import typer

OURS = ("full", "random", "window", "window:sinks=4", "h2o", "h2o:scope=layer", "tova", "tova:scope=head") + (
    "a2sf", "roco", "keyformer", "snapkv", "snapkvd", "rkv", "gkv", "morphkv", "expectedattention", "triattention",
    "knorm", "keydiff", "cur", "lagkv", "learned",
)  # fmt: skip


def _starting_with(values: Iterable[str]):
    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


POLICY_HELP = (
    "Such as tova, h2o:recent=32, window:sinks=4, full (`msrnn policies` lists all), or your own: "
    "file.py:Class:option=1, module:Class."
)

Checkpoint = Annotated[str, typer.Argument(help="Folder made by `msrnn convert`.", metavar="CKPT")]
PolicyText = Annotated[str, typer.Option("--policy", help=POLICY_HELP, autocompletion=_starting_with(OURS))]
PolicyTexts = Annotated[
    list[str] | None,
    typer.Option("--policy", help=f"Repeat it. {POLICY_HELP}", autocompletion=_starting_with(OURS)),
]
Positions = Annotated[
    str,
    typer.Option(
        help="How keys are rotated: absolute, cache (StreamingLLM) or gap.",
        autocompletion=_starting_with(("absolute", "cache", "gap")),
    ),
]
Mode = Annotated[
    str,
    typer.Option(
        help="How the prompt is read: stepwise or oneshot.", autocompletion=_starting_with(("stepwise", "oneshot"))
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Cast the weights: bfloat16, float16 or float32.",
        autocompletion=_starting_with(("bfloat16", "float16", "float32")),
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line, and nothing else.")]
Budget = Annotated[int, typer.Option(help="Multi-state size: tokens each layer remembers.")]


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter("it must be a whole number, or several with commas between them") from None


def _in_one(several: list[list[int]] | None) -> list[int] | None:
    return None if several is None else [number for numbers in several for number in numbers]


def budgets_option(help: str, name: str = "--budget") -> Any:
    """An option of a `list[int]`: given more than once, or once with commas, 32,64, which is the same."""
    return typer.Option(name, help=help, metavar="N[,N...]", parser=_whole_numbers, callback=_in_one)


Seed = Annotated[int, typer.Option(help="Seed of the draws, which a temperature above 0 makes.", min=0, max=2**32 - 1)]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k most likely tokens.")]
TopP = Annotated[
    float | None, typer.Option(help="Draw from the most likely tokens that have this probability together.")
]
MinP = Annotated[
    float | None, typer.Option(help="Draw from tokens at least this share as likely as the most likely one.")
]
MeshText = Annotated[
    str | None,
    typer.Option(
        "--mesh",
        help="Devices that share the rows (data) and every layer's heads, MLP and the vocabulary (model).",
        metavar="data=D,model=M",
    ),
]
