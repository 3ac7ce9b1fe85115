"""What a report is made of: sections of tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msrnn_jax.journal import Line

Row = Mapping[str, Any]  # numbers and words by the name of their column


class Column(NamedTuple):
    """How a value of a row is shown; its standard error, where there is one, goes by `NAME_stderr`."""

    name: str
    title: str
    places: int = 0
    factor: float = 1.0  # such as 100 for a share in per cent


class Grid(NamedTuple):
    """A table."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    def cells(self) -> list[list[str]]:
        """Every row as it is read."""
        return [[_cell(row, column) for column in self.columns] for row in self.rows]


def _cell(row: Row, column: Column) -> str:
    value, error = row.get(column.name), row.get(f"{column.name}_stderr")
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and column.factor == 1:
        return f"{value:,}"
    shown = number(value * column.factor, column.places)
    return shown if error is None or error != error else f"{shown} ± {number(error * column.factor, column.places)}"


def number(value: float, places: int) -> str:
    """A number for reading, a dash for none."""
    return "–" if value - value != 0 else f"{value:,.{places}f}".replace("-", "−")


class Picture(NamedTuple):
    """A figure."""

    name: str  # of its file, without .png
    caption: str
    alt: str  # what is in it, for who cannot see it
    png: bytes


class Section(NamedTuple):
    """One experiment in the report."""

    name: str
    title: str
    about: str
    grids: Sequence[Grid]
    pictures: Sequence[Picture]


Lines = Sequence[Line]
