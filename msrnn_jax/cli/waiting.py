"""What a terminal shows while nothing can be shown yet."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on stderr, if that is a terminal."""
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def after_waiting(items: Iterable[Item], what: str) -> Iterator[Item]:
    """The same items, with a spinner until the first is there."""
    iterator = iter(items)
    with waiting(what):
        first = next(iterator, None)
    if first is not None:
        yield first
        yield from iterator
