"""How programs end: wrong options in one line and exit code 2, output that nobody reads in 141 and silence."""

import inspect
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from msrnn_jax.cli.errors import CLOSED, complain, is_closed, leave

_UsageError: Any = typer.BadParameter.__base__  # typer does not name it in public


class _OneLine:
    """Runs a program as a whole, which typer would end with the usage and a framed message, or a code of its own."""

    def main(self, args: Any = None, *rest: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        run = super().main  # pyright: ignore[reportAttributeAccessIssue]
        if not standalone_mode:
            return run(args, *rest, standalone_mode=False, **kwargs)
        try:
            leave(self._run(run, args, *rest, **kwargs))
        except (BrokenPipeError, SystemExit) as error:
            if not is_closed(error):
                raise
        leave(CLOSED)

    def _run(self, run: Any, args: Any, *rest: Any, **kwargs: Any) -> int:
        """The exit code of a program."""
        try:
            code = run(args, *rest, standalone_mode=False, **kwargs)
            if sys.stdout is not None:
                sys.stdout.flush()
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                complain(f"error: {_in_words(error, sys.argv[1:] if args is None else args)}")
            code = error.exit_code
        except BrokenPipeError:
            raise
        except OSError as error:  # of help that nobody can be shown
            complain(f"error: standard output: {error.strerror}")
            code = 2
        except (KeyboardInterrupt, typer.Abort):
            complain("interrupted")
            code = 130
        return code if isinstance(code, int) else 0


def _in_words(error: Any, arguments: Sequence[str]) -> str:
    """What is wrong, with the value that typer leaves out."""
    names = getattr(getattr(error, "param", None), "opts", [])
    pairs = [*pairwise([*arguments, ""]), *(part.split("=", 1) for part in arguments if "=" in part)]
    given = [value for name, value in pairs if name in names and name.startswith("-")]
    message = " ".join((error.message if given else error.format_message()).split())
    said = f"{names[0]} is {', '.join(map(repr, given))}: " if given else ""
    return f"{said}{message[:1].lower()}{message[1:]}"


class Program(_OneLine, TyperGroup):
    """For `typer.Typer(cls=Program)`, a program of several commands."""


class WithDefault(Program):
    """A program whose first command may be left out: what is no command is its first argument."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] != "--help" and args[0] not in self.commands:
            args = [self.list_commands(ctx)[0], *args]
        return super().parse_args(ctx, args)


class Command(_OneLine, TyperCommand):
    """For `app.command(cls=Command)`: its help fills the lines of a paragraph, however wide the terminal is."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        self.help = "\n\n".join(re.sub(r"\n\s*", " ", paragraph) for paragraph in paragraphs)
