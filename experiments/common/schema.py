"""What every line of every result file must hold, so that whoever reads one can rely on it."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from msrnn_jax.io.journal import Line

MODEL = ("model_sha256", "config_sha256", "dtype")  # see `Model.about`
NAMED = ("experiment", *MODEL, "environment")
IDENTITY = (*NAMED, "mesh")  # null for one device
LARGEST = 1e300  # beyond it nothing is measured, and sums overflow


class Kind(NamedTuple):
    """What a value must be."""

    name: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether it is finite, and of a size that can be reckoned with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**53


def is_list(value: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(kind, value))


TEXT = Kind("a text", lambda value: isinstance(value, str))
NAME = Kind("a text or null", lambda value: value is None or isinstance(value, str))
TRUE = Kind("true", lambda value: value is True)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(map(TEXT.holds, value)))
NUMBER = Kind("a number", is_number)
MAYBE = Kind("a number or null", lambda value: value is None or is_number(value))
SHARE = Kind("true, false, a number or null", lambda value: isinstance(value, bool) or MAYBE.holds(value))
COUNT = Kind("a whole number from 0 on", _is_count)
SIZE = Kind("a whole number from 1 on", lambda value: _is_count(value, 1))
MODE = Kind("stepwise, oneshot or null", lambda value: value in ("stepwise", "oneshot", None))
SERIES = Kind("a list of numbers", lambda value: is_list(value, MAYBE.holds))
SIZES = Kind("a list of whole numbers from 1 on", lambda value: is_list(value, SIZE.holds))
_ABOUT = {**dict.fromkeys(NAMED, TEXT), "mesh?": NAME}
HEADER = {**_ABOUT, "settings": OBJECT, "planned": TEXTS}
RESULT = {**_ABOUT, "setting": OBJECT, "document": TEXT, "sha256": TEXT, "seconds": NUMBER, "failed?": TRUE}
STATE = {"setting.policy": TEXT, "setting.budget": SIZE}  # what a result of one policy at one budget must say

Check = Callable[[str, Line], None]  # refuses a result, of which the text says where it stands


def check_lines(path: pathlib.Path, name: str, lines: Sequence[Line], check: Check | None = None) -> None:
    """Refuses the file of an experiment with a line that is no run or result of it.

    Args:
      check: the experiment's own, of its results.

    Raises:
      ValueError: naming the line, the field, what it is and what it must be.
    """
    for number, line in enumerate(lines, 1):
        where = f"results {str(path)!r}, line {number}"
        if line["kind"] == f"{name} run":
            check_fields(where, line, HEADER)
            continue
        check_fields(where, line, RESULT)
        if check is not None:
            check(where, line)


def check_fields(where: str, line: Mapping[str, Any], fields: Mapping[str, Kind]) -> None:
    """Refuses an object whose fields are of other kinds; a name that ends in ? may be left out."""
    for field, kind in fields.items():
        *above, name = field.removesuffix("?").split(".")
        owner = line[above[0]] if above else line
        if name not in owner:
            if field.endswith("?"):
                continue
            raise ValueError(f"{where}: {field!r} is missing; it must be {kind.name}")
        if not kind.holds(owner[name]):
            raise ValueError(f"{where}: {field.removesuffix('?')!r} is {_brief(owner[name])}; it must be {kind.name}")


def _brief(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        return json.dumps(value)[:60]
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"


def is_map(line: Line) -> bool:
    """Whether a line holds a record and not numbers."""
    return line["setting"].get("record") == "map"
