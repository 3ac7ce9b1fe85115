"""Counts what XLA compiles."""

import contextlib
from collections.abc import Callable, Iterator

import jax

_compiled: list[str] = []


def _listen(event: str, duration: float, **details: object) -> None:
    del duration, details
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def count() -> Iterator[Callable[[], int]]:
    """`with count() as compiled:` then `compiled()` is the number of programs compiled inside."""
    before = len(_compiled)
    yield lambda: len(_compiled) - before
