"""Looking things up in a GGUF file's metadata, where every value may be of any type."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..problems import shown


def number(metadata: Mapping[str, Any], key: str, default: float, problems: list[str], smallest: float = 0.0) -> float:
    """A finite number above `smallest`; anything else is added to `problems`, and the default returned."""
    value = metadata.get(key, default)
    if type(value) in (int, float) and smallest < value < math.inf:
        return shortest(value)
    problems.append(f"{key} is {shown(value)}; it must be a number above {smallest:g}")
    return default


def flag(metadata: Mapping[str, Any], key: str, default: bool, problems: list[str]) -> bool:
    """A boolean; anything else is added to `problems`, and the default returned."""
    value = metadata.get(key, default)
    if type(value) is bool:
        return value
    problems.append(f"{key} is {shown(value)}; it must be true or false")
    return default


def text(metadata: Mapping[str, Any], key: str, problems: list[str]) -> str | None:
    """A string, if there is one; anything else is added to `problems`."""
    value = metadata.get(key)
    if value is None or type(value) is str:
        return value
    problems.append(f"{key} is {shown(value)}; it must be text")
    return None


def items(metadata: Mapping[str, Any], key: str, kind: type, problems: list[str]) -> list[Any]:
    """A list of values of one type, empty if there is none; anything else is added to `problems`."""
    values = metadata.get(key, [])
    if type(values) is not list:
        problems.append(f"{key} is {shown(values)}; it must be a list")
        return []
    for place, value in enumerate(values):
        if type(value) is not kind:
            problems.append(f"{key} holds {shown(value)} at {place}; it must hold values of type {kind.__name__} only")
            return []
    return values


def shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05 for 9.999999747378752e-06."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value))) if isinstance(value, float) else float(value)
