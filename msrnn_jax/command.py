"""How commands end when something is wrong: one line and an exit code, never a traceback."""

import functools
from collections.abc import Callable
from typing import Any

import typer


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns a refusal into a line on stderr and exit code 2, ctrl-C into 130."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ValueError as error:
            _end(f"error: {error}", 2)
        except OSError as error:
            _end(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", 2)
        except KeyboardInterrupt:
            _end("interrupted", 130)

    return guarded


def _end(line: str, code: int) -> None:
    typer.echo(line, err=True)
    raise typer.Exit(code) from None
