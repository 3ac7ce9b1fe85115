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

from msrnn_jax.cli.errors import CLOSED, LOST, plain_errors
from msrnn_jax.cli.interrupts import ending_when_told
from msrnn_jax.io.environment import CLUSTER, COORDINATOR, PROCESS, PROCESSES

GRACE = 1.0  # seconds for others to fail, too
PATIENCE = 5.0  # seconds that a process gets to end when it is told
SHARED = ("perplexity",)  # commands that several processes can run together


@plain_errors
def launch(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND...", help=f"{' or '.join(SHARED)} and its options; no other command can be shared."
        ),
    ],
    processes: Annotated[int, typer.Option(help="Number of processes, of all hosts together.")] = 1,
    process: Annotated[
        int | None,
        typer.Option(
            help="Start only the process of this number, from 0; every host starts its own. Default: all, here."
        ),
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
    if command[0] not in SHARED:
        raise ValueError(f"command is {command[0]!r}; only {', '.join(SHARED)} can be shared")
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    if any(part == "-" or part.endswith("=-") for part in command):
        raise ValueError("text is '-'; several processes cannot share standard input, so it must be a file")
    if cluster and (process is not None or coordinator is not None or processes != 1):
        raise ValueError("a cluster says by itself how many processes there are and where; give --cluster alone")
    if coordinator is not None and not _is_address(coordinator):
        raise ValueError(f"coordinator is {coordinator!r}; it must be HOST:PORT, such as 10.0.0.1:1234")
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
      0, or the exit code of the process that failed first; what it was is said on stderr, unless nobody reads.
    """
    with contextlib.ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in settings[1:]]
        running = [
            stack.enter_context(_started(command, own, error))
            for own, error in zip(settings, [None, *errors], strict=True)
        ]
        failed = _wait(running)
        if not failed:
            return 0
        _end(running)
        number, code = failed[0], running[failed[0]].returncode
        if code == CLOSED:
            return code
        if number:  # the first has said it itself
            errors[number - 1].seek(0)
            sys.stderr.write(errors[number - 1].read().decode("utf-8", "replace"))
        if number or code < 0:
            place = settings[number].get(PROCESS, number), settings[number].get(PROCESSES, len(running))
            typer.echo(f"error: process {place[0]} of {place[1]} {_in_words(code)}", err=True)
        if code in (LOST, -signal.SIGKILL, -signal.SIGTERM):
            typer.echo("The same command goes on from the results that are written (--out).", err=True)
        return code if code > 0 else 128 - code


@contextlib.contextmanager
def _started(command: Sequence[str], own: dict[str, str], error: IO[bytes] | None) -> Any:
    """A process that is ended when the launcher ends, unless that is killed."""
    quiet: Any = {} if error is None else {"stdout": subprocess.DEVNULL, "stderr": error}
    process: Any = subprocess.Popen(command, env={**os.environ, **own}, stdin=subprocess.DEVNULL, **quiet)
    try:
        yield process
    finally:
        _end([process])


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """The numbers of processes that failed by themselves, the one to look at first; none if all went well."""
    seen: list[int] = []
    deadline = None
    while True:
        codes = [process.poll() for process in running]
        seen += [number for number, code in enumerate(codes) if code and number not in seen]
        if seen and deadline is None:
            deadline = time.monotonic() + GRACE
        if None not in codes or (deadline is not None and time.monotonic() > deadline):
            break
        time.sleep(0.05)

    def turn(number: int) -> int:
        """One that was killed is why others fail; one that found another gone never is."""
        code = codes[number] or 0
        return 0 if code < 0 else 2 if code == LOST else 1

    return sorted(seen, key=lambda number: (turn(number), number))


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


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and (":" not in host or host.startswith("[")) and port.isdecimal() and 0 < int(port) < 2**16


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
