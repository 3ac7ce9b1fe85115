"""One bad document of many: what is wrong with it is told, and the rest is read."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

Note = Callable[[str], None]  # what is told of a problem, for instance `refuse`

T = TypeVar("T")


def refuse(problem: str) -> NoReturn:
    """Leaves nothing out.

    Raises:
      ValueError: the problem.
    """
    raise ValueError(problem) from None


@contextlib.contextmanager
def left_out(unreadable: Note) -> Iterator[None]:
    """Tells of what cannot be read in the block, and goes on behind it."""
    try:
        yield
    except ValueError as error:
        unreadable(str(error))


def what_remains(read: Callable[[Note], Iterable[T]], unreadable: Note) -> list[T]:
    """All that can be read.

    Args:
      read: reads, and tells the one it is given of what it leaves out.
      unreadable: is told of that, too.

    Raises:
      ValueError: with the first problem, where nothing remains.
    """
    problems: list[str] = []

    def told(problem: str) -> None:
        problems.append(problem)
        unreadable(problem)

    found = list(read(told))
    if not found:
        raise ValueError(": ".join(["there is nothing to read", *problems[:1]]))
    return found
