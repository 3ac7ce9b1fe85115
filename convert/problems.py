"""How refusals are worded: every problem of a checkpoint at once, one line each."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

SHOWN = 20  # of one sort; a wrong layer count alone makes hundreds
VALUE = 80  # characters of a value
WIDTH = 300  # characters of a line; a damaged file may hold names and values of any length
LARGEST = sys.float_info.max  # JSON has integers beyond it, which are no floats


def refuse(source: Path | str, problems: Sequence[str]) -> None:
    """Raises a `ValueError` that lists the problems; with none, does nothing."""
    if problems:
        raise ValueError("\n  ".join([f"{source} cannot be converted:", *map(cut, problems)]))


def cut(line: str) -> str:
    """A line with its middle left out where it is too long: it says first what is wrong, and last what must be."""
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 103]}...{line[-100:]}"


def shown(value: Any) -> str:
    """A value as errors show it: short, whatever a damaged file holds."""
    if isinstance(value, str | list):
        text = repr(value[:VALUE])
        whole = len(value) <= VALUE and len(text) <= VALUE
    else:
        text = repr(value)
        whole = len(text) <= VALUE
    return text if whole else f"{text[: VALUE - 3]}..."


def shorten(problems: Iterable[str], noun: str) -> list[str]:
    """The first problems of one sort, and how many more there are."""
    lines = list(problems)
    if len(lines) <= SHOWN:
        return lines
    return [*lines[:SHOWN], f"and {len(lines) - SHOWN} more {noun}"]


@contextlib.contextmanager
def tokenizer_errors(name: str) -> Iterator[None]:
    """Turns what the `tokenizers` library raises into a `ValueError` about a file or key of this name.

    It raises plain `Exception`s, and panics of Rust that are not even that.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ValueError(f"{name} is not a tokenizer: {cut(str(error))}") from error


def is_count(value: Any) -> TypeGuard[int]:
    """Whether this is a positive integer (a JSON true is none) that programs can count to."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63
