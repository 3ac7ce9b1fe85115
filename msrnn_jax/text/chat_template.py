"""Chat templates, rendered apart from this process: they are somebody's programs, which may be wrong or never end."""

import atexit
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

PROGRAM = pathlib.Path(__file__).with_name("template_program.py")
SECONDS = 2  # of computing that a template may take
PATIENCE = 60  # seconds by the clock, on a machine that is busy, or cannot count what a process computes


def render(template: str, variables: Mapping[str, Any], date: datetime.datetime | None = None) -> str:
    """The text that a template makes.

    As in transformers there are `{% break %}` and `{% continue %}`, `{% generation %}` blocks (which mark an
    assistant's words, and here are those words), a `tojson` that does not escape for HTML, `strftime_now(format)` and
    `raise_exception(message)`; and the template sees no objects, only what JSON can say.

    It runs in jinja2's sandbox, in a process of its own that serves all templates, since nothing else stops a program
    that computes for ever or fills the memory.

    Args:
      date: what `strftime_now` takes for now; None: the clock.

    Raises:
      ValueError: the template refuses, fails in any way, or takes too much time or memory.
    """
    when = None if date is None else date.isoformat()
    request = {"template": template, "variables": dict(variables), "date": when, "seconds": SECONDS}
    try:
        line = json.dumps(request, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"messages hold what a chat template cannot be shown: {error}") from error
    answer = _RENDERERS.setdefault(os.getpid(), _Renderer()).ask(line)  # a fork must not talk to its parent's
    if "error" in answer:
        raise ValueError(f"chat template: {answer['error']}")
    return answer["text"]


class _Renderer:
    """The process, started at the first request, and anew where it has ended."""

    def __init__(self):
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: str) -> dict[str, str]:
        with self.lock:
            process = self.process = self.process or _start()
            assert process.stdin is not None and process.stdout is not None
            timer = threading.Timer(PATIENCE, process.kill)
            timer.start()
            answer = b""
            try:
                process.stdin.write(request.encode() + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                pass
            finally:
                timer.cancel()
                if not answer.endswith(b"\n"):  # it has ended, or ctrl-C came, and nobody will wait for its answer
                    code = self.stop()
            return json.loads(answer) if answer.endswith(b"\n") else {"error": _why(code)}

    def stop(self) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.kill()
        with process:  # closes its pipes
            return process.wait()


_RENDERERS: dict[int, _Renderer] = {}  # by the process that they are for


@atexit.register
def _stop() -> None:
    if os.getpid() in _RENDERERS:
        _RENDERERS[os.getpid()].stop()


def _start() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],  # its folder holds names of the standard library
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # ctrl-C in a terminal is not meant for it
        )
    except OSError as error:
        raise ValueError(f"chat template: the process to run it in cannot be started: {error}") from error


def _why(code: int) -> str:
    if code == -getattr(signal, "SIGXCPU", 0):
        return f"it was stopped after {SECONDS} s of computing; a template must end by itself"
    return f"it was stopped: it takes more than {PATIENCE} s or more memory than there is (code {code})"


def _plain(value: Any) -> Any:
    """As transformers: what is neither text, number, list nor mapping is shown by the name of its type."""
    return dict(value) if isinstance(value, Mapping) else f"<{type(value).__name__}>"
