"""Tables and notes for reading, in a terminal and in a file."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from msrnn_jax.text.display import decimals

WIDTH = 140  # of what is no terminal


def with_error(row: Mapping[str, Any], name: str, places: int) -> str:
    """A number of a row with its standard error, which is called `NAME_stderr`."""
    return f"{decimals(row[name], places)} +- {decimals(row[f'{name}_stderr'], places)}"


def say(console: Console, text: str) -> None:
    """Prints a line as it is, however long."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def left_out_note(console: Console) -> Callable[[str], None]:
    """What prints why something was left out."""
    return lambda problem: say(console, f"note: {problem}, and is left out")


def show(*tables: Table) -> None:
    """Prints tables, as wide as the terminal is."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    for table in tables:
        console.print(table)


def last_part(path: str) -> str:
    """The name of a file or folder, whichever system's path it is."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
