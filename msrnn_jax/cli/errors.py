"""How commands end when something is wrong: one line and an exit code, never a traceback."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from msrnn_jax.io.errors import first_line, lacks_memory

Command = Callable[..., None]
LOST = 3  # exit code where another process is gone, which is the one to look at
CLOSED = 141  # where nobody reads what is written (`| head`): that of a program which SIGPIPE ends


def plain_errors(command: Command) -> Command:
    """Turns a refusal into a line on stderr and exit code 2, and a KeyboardInterrupt into 130."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            if sys.stdout is None:
                raise ValueError("standard output is closed")
            command(*args, **kwargs)
        except BrokenPipeError:  # whoever read our output has seen enough; see `usage`
            raise
        except KeyboardInterrupt:
            _end("interrupted", 130)
        except Exception as error:
            line = in_words(error)
            if line is None:
                raise
            _end(f"error: {line}", LOST if _is_lost(error) else 2)

    return guarded


def in_words(error: Exception) -> str | None:
    """What a user is told of an error; None for one that nobody foresaw."""
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, OverflowError):
        return f"a number is too large: {first_line(error)}"
    if _is_lost(error):
        return f"another process is gone: {first_line(error)}"
    is_from_xla = _is_from_xla(error)
    if isinstance(error, MemoryError) or (is_from_xla and lacks_memory(error)):
        return f"this needs more memory than there is: {first_line(error)}"
    if is_from_xla:
        return _failure_of_xla(error)
    if isinstance(error, RuntimeError) and str(error).startswith("Unable to initialize backend"):
        return f"JAX finds no device to work on: {first_line(error)}"
    return None


def _is_from_xla(error: Exception) -> bool:
    jax = sys.modules.get("jax")  # unless a command has imported it, nothing can come from it
    return jax is not None and isinstance(error, jax.errors.JaxRuntimeError)


def _failure_of_xla(error: Exception) -> str:
    line, *rest = str(error).splitlines() or [""]
    if line.endswith("Traceback (most recent call last):"):  # of a policy with `jax.pure_callback`, perhaps
        line = next((line for line in rest if line[:1].strip()), line)
        return f"a function that XLA called failed: {line[:200]}"
    return (
        f"XLA failed: {first_line(error)}; if it does so again, report that with the versions of JAX and of the "
        "driver to https://github.com/jax-ml/jax/issues"
    )


def _is_lost(error: Exception) -> bool:
    processes = sys.modules.get("msrnn_jax.devices.processes")
    return processes is not None and processes.is_lost(error)


def _end(line: str, code: int) -> NoReturn:
    complain(line)
    raise typer.Exit(code) from None


def complain(line: str) -> None:
    """Says on stderr what is wrong, if anybody reads it."""
    with contextlib.suppress(BrokenPipeError):  # the exit code says it, too
        typer.echo(line, err=True)


def is_closed(error: BaseException) -> bool:
    """Whether an error says that nobody reads what is written; Rich makes it an exit of its own."""
    return isinstance(error if isinstance(error, OSError) else error.__context__, BrokenPipeError)


def leave(code: int) -> NoReturn:
    """Ends the process; what cannot be written is dropped, since Python would complain of it."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
            is_open = code != CLOSED
        except (OSError, ValueError):
            is_open = False
        if not is_open:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    jax = sys.modules.get("jax")
    if code and jax is not None and jax.distributed.is_initialized():
        os._exit(code)  # its end would wait for the other processes, for minutes
    sys.exit(code)
