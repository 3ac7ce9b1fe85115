"""How commands end when something is wrong: one line and an exit code, never a traceback."""

import functools
import signal
import threading
from collections.abc import Callable
from typing import Any

import typer


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns a refusal into a line on stderr and exit code 2, ctrl-C into 130.

    A SIGTERM unwinds the command too, so that whatever it was writing is removed.
    """

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            signal.signal(signal.SIGTERM, _terminate)
        try:
            command(*args, **kwargs)
        except ValueError as error:
            _end(f"error: {error}", 2)
        except OSError as error:
            _end(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", 2)
        except KeyboardInterrupt:
            _end("interrupted", 130)

    return guarded


def _terminate(number: int, frame: Any) -> None:
    del frame
    raise SystemExit(128 + number)


def _end(line: str, code: int) -> None:
    typer.echo(line, err=True)
    raise typer.Exit(code) from None
