"""Options that the experiments share, and how they change a preset."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import typer

from msrnn_jax.cli.options import budgets_option
from msrnn_jax.cli.usage import Command

T = TypeVar("T")
LONG = 60  # characters of a default that are too many to be read

Checkpoint = Annotated[str, typer.Argument(help="Folder made by `msrnn convert`.", metavar="CKPT")]
Preset = Annotated[str, typer.Option(help="small: hours on a CPU, for a small model; paper: the paper's sizes.")]
Dtype = Annotated[str | None, typer.Option(help="Cast the weights: bfloat16, float16 or float32.")]
Policies = Annotated[list[str] | None, typer.Option("--policy", help="As in msrnn perplexity; repeat it.")]
Budgets = Annotated[list[int] | None, budgets_option("Multi-state size; repeat it.")]
Books = Annotated[
    list[str] | None, typer.Option("--data", help="Books: files or folders of .txt. Default: Python's help.")
]
NumBooks = Annotated[int | None, typer.Option("--books", help="Take the first books only; 0 for all.")]
Segment = Annotated[int | None, typer.Option(help="Tokens of a segment. Default: the context, at most 4,096.")]
Mode = Annotated[str | None, typer.Option(help="How prompts are read: stepwise or oneshot.")]
Chat = Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the chat template. Default: if there is one.")]
Out = Annotated[pathlib.Path, typer.Option(help="JSON lines to write, or to go on with.")]


def command_of(presets: Mapping[str, Any]) -> type[Command]:
    """For `app.command(cls=...)`: a command whose help tells what options are that are left out."""

    class Experiment(Command):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            options: list[Any] = self.params
            for option in options:
                told = _default(option.name, presets) if option.default is None else ""
                if told and "Default" not in (option.help or ""):
                    option.help = f"{option.help} Default: {told}."

    return Experiment


def _default(option: str, presets: Mapping[str, Any]) -> str:
    """What each preset has for an option; nothing where that is empty or long."""
    told = {}
    for name, settings in presets.items():
        fields = (option, f"{option}s", f"{option[:-1]}ies")
        value = next((getattr(settings, field) for field in fields if hasattr(settings, field)), None)
        told[name] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    first, *others = told
    if told[first] in ("", "None", "False") or max(map(len, told.values())) > LONG:
        return ""
    return "; ".join([told[first], *(f"{name}: {told[name]}" for name in others if told[name] != told[first])])


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
