"""How commands end when something is wrong: one line and an exit code, never a traceback."""

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import typer

from msrnn_jax.io.errors import lacks_memory

Command = Callable[..., None]
LOST = 3  # exit code where another process is gone, which is the one to look at
CLOSED = 141  # where nobody reads what is written (`| head`): that of a program which SIGPIPE ends


def plain_errors(patience: float = 1.0, *, in_thread: bool = True) -> Callable[[Command], Command]:
    """Turns a refusal into a line on stderr and exit code 2, ctrl-C into 130, a SIGTERM into 143.

    The command runs in a thread of its own, since the main one cannot answer a signal while it is inside a
    compiled program. A second ctrl-C ends it at once.

    Args:
      in_thread: False for a command that deals with ctrl-C itself, by KeyboardInterrupt.
      patience: seconds that an interrupted command gets to come back from a compiled program and to remove
        what it was writing, before it is left behind.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                if sys.stdout is None:
                    raise ValueError("standard output is closed")
                call = functools.partial(command, *args, **kwargs)
                _run_interruptibly(call, patience) if in_thread else call()
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

    return decorate


class _Worker(threading.Thread):
    """Runs a call and keeps how it ended."""

    def __init__(self, call: Callable[[], None]):
        super().__init__(daemon=True)
        self.call = call
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.call()
        except BaseException as error:
            self.error = error

    def interrupt(self) -> None:
        """Raises KeyboardInterrupt in the thread as soon as it runs Python again."""
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), ctypes.py_object(KeyboardInterrupt))


def _run_interruptibly(call: Callable[[], None], patience: float) -> None:
    if threading.current_thread() is not threading.main_thread():  # no other gets signals
        return call()
    worker = _Worker(call)
    code = 0

    def stop(number: int, frame: Any) -> None:
        nonlocal code
        del frame
        if code:
            os._exit(code)
        code = 128 + number

    hook = sys.unraisablehook
    lost = threading.Event()  # an interrupt that landed in a callback of somebody's, where nobody catches it

    def note(unraisable: Any) -> None:
        if code or isinstance(unraisable.exc_value, KeyboardInterrupt):  # what breaks now was broken by the interrupt
            lost.set()
        else:
            hook(unraisable)

    sys.unraisablehook = note
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        worker.start()
        while worker.is_alive() and not code:
            worker.join(0.05)
        deadline = time.monotonic() + patience
        lost.set()
        while worker.is_alive() and time.monotonic() < deadline:
            if lost.is_set():
                lost.clear()
                worker.interrupt()
            worker.join(0.05)
        if code:
            _leave(code)  # perhaps inside a compiled program, which writes nothing
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if sys.unraisablehook is note:  # a failed read of a checkpoint puts in its own, for good
            sys.unraisablehook = hook
    if worker.error is not None:
        raise worker.error


def _leave(code: int) -> NoReturn:
    """Ends the process at once: threads that are still at work would make Python's own end fail."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(code)


@contextlib.contextmanager
def ending_when_told() -> Iterator[None]:
    """Lets ctrl-C and a SIGTERM end the processes that a command has started, too: they raise as errors do."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        raise SystemExit(128 + number)

    handlers = {signal.SIGTERM: leave, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_words(error: Exception) -> str | None:
    """What a user is told of an error; None for one that nobody foresaw."""
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, OverflowError):
        return f"a number is too large: {_first_line(error)}"
    if _is_lost(error):
        return f"another process is gone: {_first_line(error)}"
    is_from_xla = _is_from_xla(error)
    if isinstance(error, MemoryError) or (is_from_xla and lacks_memory(error)):
        return f"this needs more memory than there is: {_first_line(error)}"
    if is_from_xla:
        return _failure_of_xla(error)
    if isinstance(error, RuntimeError) and str(error).startswith("Unable to initialize backend"):
        return f"JAX finds no device to work on: {_first_line(error)}"
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
        f"XLA failed: {_first_line(error)}; if it does so again, report that with the versions of JAX and of the "
        "driver to https://github.com/jax-ml/jax/issues"
    )


def _is_lost(error: Exception) -> bool:
    hosts = sys.modules.get("msrnn_jax.devices.processes")
    return hosts is not None and hosts.is_lost(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


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
