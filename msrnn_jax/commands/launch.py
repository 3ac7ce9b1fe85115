"""`msrnn launch`: one command in several processes, here or on many hosts."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Annotated, Any

import typer

from msrnn_jax.command import ending_when_told, plain_errors

GRACE = 1.0  # seconds for others to fail, too
PATIENCE = 5.0  # seconds that a process gets to end when it is told
SHARED = ("perplexity",)  # commands that several processes can run together


@plain_errors(in_thread=False)
def launch(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help=f"One of {', '.join(SHARED)}, with its options.")
    ],
    processes: Annotated[int, typer.Option(help="How many, of all hosts together.")] = 1,
    process: Annotated[
        int | None, typer.Option(help="Start this one only, from 0, as one host of several. Default: all, here.")
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(help="Where the first process can be reached.", metavar="HOST:PORT")
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="One process of a cluster that JAX knows: SLURM, Open MPI, TPU pods.")
    ] = False,
) -> None:
    """Runs a command in several processes, which share the devices of all through --mesh.

    Example: msrnn launch --processes 2 -- perplexity checkpoints/smollm2-135m --text books --mesh data=2
    """
    from msrnn_jax.hosts import CLUSTER, COORDINATOR, PROCESS, PROCESSES

    if command[0] not in SHARED:
        raise ValueError(f"command is {command[0]!r}; it must be one of {', '.join(SHARED)}")
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    if cluster and (process is not None or coordinator is not None):
        raise ValueError("a cluster says itself what --process and --coordinator are; give neither with --cluster")
    if process is not None and (coordinator is None or not 0 <= process < processes):
        where = "" if coordinator else ", and --coordinator HOST:PORT must be given"
        raise ValueError(f"process is {process}; it must be from 0 to {processes - 1}{where}")
    if cluster:
        settings = [{COORDINATOR: CLUSTER}]
    else:
        numbers = range(processes) if process is None else [process]
        place = coordinator or f"127.0.0.1:{_free_port()}"
        settings = [{COORDINATOR: place, PROCESSES: str(processes), PROCESS: str(number)} for number in numbers]
    with ending_when_told():
        code = run([sys.executable, "-m", "msrnn_jax", *command], settings)
    if code:
        raise typer.Exit(code)


def run(command: Sequence[str], settings: Sequence[dict[str, str]]) -> int:
    """Runs one process for each of the settings until all have ended, or one has failed.

    Args:
      settings: variables of its environment. The first process writes to this terminal, of the others only what they
        say when they fail is shown.

    Returns:
      0, or the exit code of the process that failed first; what it was is said on stderr.
    """
    with contextlib.ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in settings[1:]]
        running = [
            stack.enter_context(_started(command, own, error))
            for own, error in zip(settings, [None, *errors], strict=True)
        ]
        failed = _wait(running)
        if failed is None:
            return 0
        _end(running)
        code = running[failed].returncode
        if failed:
            errors[failed - 1].seek(0)
            sys.stderr.write(errors[failed - 1].read().decode("utf-8", "replace"))
        if failed or code < 0:  # what the first says of itself stands there already
            typer.echo(f"error: process {failed} of {len(running)} {_in_words(code)}; no other goes on", err=True)
        if code < 0:
            typer.echo("The same command goes on from the results that are written (--out).", err=True)
        return code if code > 0 else 128 - code


@contextlib.contextmanager
def _started(command: Sequence[str], own: dict[str, str], error: IO[bytes] | None) -> Any:
    """A process that does not outlive the launcher."""
    quiet: Any = {} if error is None else {"stdout": subprocess.DEVNULL, "stderr": error, "stdin": subprocess.DEVNULL}
    process: Any = subprocess.Popen(command, env={**os.environ, **own}, **quiet)
    try:
        yield process
    finally:
        _end([process])


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The number of the first process that failed, or None once all have ended well."""
    deadline = None
    while True:
        codes = [process.poll() for process in running]
        wrong = [(code > 0, number) for number, code in enumerate(codes) if code]
        if wrong and deadline is None:
            deadline = time.monotonic() + GRACE
        if deadline is not None and (None not in codes or time.monotonic() > deadline):
            return min(wrong)[1]  # one that was killed: that is why others fail; else the first, which says the most
        if None not in codes:
            return None
        time.sleep(0.05)


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends all that still run, the hard way those that wait for one that is gone."""
    for send in (subprocess.Popen.terminate, subprocess.Popen.kill):
        for process in running:
            if process.poll() is None:
                send(process)
        deadline = time.monotonic() + PATIENCE
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))


def _in_words(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
