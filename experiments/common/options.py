"""Options that the experiments share, and how they change a preset."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import typer

from msrnn_jax.cli.options import budgets_option

T = TypeVar("T")

Checkpoint = Annotated[str, typer.Argument(help="Folder made by `msrnn convert`.", metavar="CKPT")]
Preset = Annotated[str, typer.Option(help="small: hours on a CPU, for a small model; paper: the paper's sizes.")]
Dtype = Annotated[str | None, typer.Option(help="Cast the weights: bfloat16, float16 or float32.")]
Policies = Annotated[list[str] | None, typer.Option("--policy", help="As in msrnn perplexity; repeat it.")]
Budgets = Annotated[list[int] | None, budgets_option("Multi-state size; repeat it.")]
Books = Annotated[
    list[str] | None, typer.Option("--data", help="Books: files or folders of .txt. Default: Python's help.")
]
NumBooks = Annotated[int | None, typer.Option("--books", help="The first ones only; 0 for all.")]
Segment = Annotated[int | None, typer.Option(help="Tokens of a segment. Default: the context, at most 4,096.")]
Mode = Annotated[str | None, typer.Option(help="How prompts are read: stepwise or oneshot.")]
Chat = Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the chat template. Default: if there is one.")]
Out = Annotated[pathlib.Path, typer.Option(help="JSON lines to write, or to go on with.")]


def settings_of(presets: Mapping[str, T], preset: str, **given: Any) -> T:
    """A preset with what was given instead: None is what was not, and a list becomes a tuple without repetition.

    Raises:
      ValueError: for a preset that does not exist.
    """
    if preset not in presets:
        raise ValueError(f"preset is {preset!r}; it must be one of {', '.join(presets)}")
    changes = {name: value for name, value in given.items() if value is not None}
    for name, value in changes.items():
        if isinstance(value, list):
            changes[name] = tuple(dict.fromkeys(value))
    return dataclasses.replace(presets[preset], **changes)  # type: ignore[type-var]
