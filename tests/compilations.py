"""Counts what XLA compiles."""

import contextlib
from collections.abc import Callable, Iterator

import jax

_compiled: list[str] = []


def _listen(event: str, duration: float, *, fun_name: str = "", **details: object) -> None:
    del duration, details
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def count(function: Callable | None = None) -> Iterator[Callable[[], int]]:
    """`with count() as compiled:` then `compiled()` counts what was compiled inside, of one function or of all."""
    before = len(_compiled)
    yield lambda: sum(function is None or name == f"jit({function.__name__})" for name in _compiled[before:])
