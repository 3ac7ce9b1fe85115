"""What every line of every result file must hold, so that whoever reads one can rely on it."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.generation.verdict import CHOICES
from experiments.retention.maps import fits, is_map
from msrnn_jax.journal import Line

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


def _is_list(value: Any, kind: Callable[[Any], bool]) -> bool:
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
TASK = Kind("squality or qasper", lambda value: value in ("squality", "qasper"))
ORDER = Kind("after or before", lambda value: value in ("after", "before"))
CHOICE = Kind("a choice", lambda value: value in CHOICES)
SERIES = Kind("a list of numbers", lambda value: _is_list(value, MAYBE.holds))
SIZES = Kind("a list of whole numbers from 1 on", lambda value: _is_list(value, SIZE.holds))
LIVES = Kind(
    "counts and steps by tag",
    lambda value: (
        isinstance(value, dict)
        and all(_is_list(pair, is_number) and len(pair) == 2 and pair[0] > 0 for pair in value.values())
    ),
)

_ABOUT = {**dict.fromkeys(NAMED, TEXT), "mesh?": NAME}
HEADER = {**_ABOUT, "settings": OBJECT, "planned": TEXTS}
RESULT = {**_ABOUT, "setting": OBJECT, "document": TEXT, "sha256": TEXT, "seconds": NUMBER, "failed?": TRUE}
_STATE = {"setting.policy": TEXT, "setting.budget": SIZE}
FIELDS: dict[str, dict[str, Kind]] = {  # a name that ends in ? may be left out
    "language_modeling": {
        **_STATE,
        **{"setting.segment": SIZE, "tokens": SIZE},
        **dict.fromkeys(("nats", "full_nats", "kl", "agreement"), MAYBE),
    },
    "understanding": {
        **_STATE,
        **{"setting.task": TASK, "setting.mode": MODE, "setting.context": SIZE, "score": MAYBE},
        **{"reference_nats": MAYBE, "reference_tokens": SIZE, "generated_tokens": COUNT},
        **dict.fromkeys(("rouge1?", "rouge2?", "rougeL?"), MAYBE),
    },
    "generation": {
        **_STATE,
        **{"setting.max_new_tokens": SIZE, "tokens": COUNT, "ended": SHARE, "nats": MAYBE, "agreement": MAYBE},
        **{"same_until": MAYBE, **dict.fromkeys((f"distinct_{size}" for size in range(1, 5)), MAYBE)},
    },
    "generation_judge": {**_STATE, "setting.first": TEXT, "choice": CHOICE},
    "retention": {
        **_STATE,
        **{"setting.segment": SIZE, "recent": MAYBE, "recent_end": MAYBE, "life": MAYBE, "lost": MAYBE},
        **{"first": SERIES, "first_held": SERIES, "tags": LIVES, "joined": LIVES},
    },
    "needle": {
        **_STATE,
        **{"setting.order": ORDER, "setting.length": SIZE, "setting.depth": NUMBER, "setting.mode": MODE},
        **dict.fromkeys(("correct", "choice", "answer_nats", "held_any", "held_all", "held_question"), SHARE),
    },
    "extrapolation": {
        **_STATE,
        **{"setting.positions": TEXT, "setting.context": SIZE, "nats": SERIES, "tokens": SIZES},
    },
}
MAPS = {"map": TEXT, "shape": SIZES}  # of lines of retention that are no numbers but the record itself


def check_lines(path: pathlib.Path, name: str, lines: Sequence[Line]) -> None:
    """Refuses the file of an experiment with a line that is no run or result of it.

    Raises:
      ValueError: naming the line, the field, what it is and what it must be.
    """
    for number, line in enumerate(lines, 1):
        where = f"results {str(path)!r}, line {number}"
        if line["kind"] == f"{name} run":
            check_fields(where, line, HEADER)
            continue
        check_fields(where, line, RESULT)
        if not is_map(line):
            check_fields(where, line, FIELDS.get(name, {}))
            if name == "extrapolation" and len(line["nats"]) != len(line["tokens"]):
                raise ValueError(f"{where}: 'nats' has {len(line['nats'])} numbers and 'tokens' {len(line['tokens'])}")
            continue
        check_fields(where, line, MAPS)
        if not fits(line):
            raise ValueError(f"{where}: 'map' is no record of shape {line['shape']}")


def check_fields(where: str, line: Mapping[str, Any], fields: Mapping[str, Kind]) -> None:
    """Refuses an object whose fields are of other kinds."""
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
