"""How far long work has come, in bytes: a bar on a terminal, nothing elsewhere."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Watch = Callable[[int], None]  # called with the bytes that were done since the last call
Meter = Callable[[str, int], AbstractContextManager[Watch]]  # of what is done, and how many bytes there are


@contextlib.contextmanager
def unseen(task: str, total: int) -> Iterator[Watch]:
    """Shows nothing."""
    del task, total
    yield lambda count: None


@contextlib.contextmanager
def bar(task: str, total: int) -> Iterator[Watch]:
    """A bar on standard error with bytes, speed and the time that is left; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        number = progress.add_task(task, total=total)
        yield lambda count: progress.advance(number, count)
