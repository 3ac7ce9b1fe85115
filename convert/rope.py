"""Rope settings as Hugging Face configs spell them, old and new."""

from collections.abc import Mapping
from typing import Any

from msrnn_jax.config import Rope

# What each kind needs beside its name and theta, and what it is called here.
SETTINGS = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_length",
    },
}


def read_rope(fields: Mapping[str, Any], problems: list[str]) -> Rope:
    """The rope settings of a config, in either spelling.

    New: `rope_parameters: {rope_theta, rope_type, ...}`. Old: `rope_theta` and `rope_scaling: {type, ...}`,
    which is null where nothing is scaled. Both may stand in one file if they agree. What is wrong is
    added to `problems`, and the result is then a default that only serves to go on checking.
    """
    spelled = [key for key in ("rope_parameters", "rope_scaling") if fields.get(key) is not None]
    inner = [fields[key].get("rope_theta") for key in spelled if isinstance(fields[key], Mapping)]
    theta = next((value for value in (fields.get("rope_theta"), *inner) if value is not None), None)
    before = len(problems)
    ropes = [_read_spelling(key, fields[key], theta, problems) for key in spelled]
    if not ropes:
        ropes = [_make_rope({} if theta is None else {"theta": theta}, "rope_theta", problems)]
    if len(problems) > before:
        return Rope()
    if ropes[0] != ropes[-1]:
        problems.append(f"rope_parameters and rope_scaling contradict each other: {ropes[0]} and {ropes[-1]}")
    return ropes[0]


def _read_spelling(key: str, settings: Any, theta: Any, problems: list[str]) -> Rope:
    if not isinstance(settings, Mapping):
        problems.append(f"{key} is {settings!r}; it must be an object")
        return Rope()
    kinds = [settings[name] for name in ("rope_type", "type") if settings.get(name) is not None] or ["default"]
    if kinds[0] != kinds[-1]:
        problems.append(f"{key}: rope_type {kinds[0]!r} and type {kinds[-1]!r} contradict each other")
    kind = kinds[0]
    if not isinstance(kind, str) or kind not in SETTINGS:
        problems.append(f"{key}: rope_type {kind!r} (must be one of {', '.join(SETTINGS)})")
        return Rope()
    if settings.get("rope_theta") not in (None, theta):
        problems.append(f"rope_theta {theta!r} and {key}: rope_theta {settings['rope_theta']!r} contradict each other")
    if settings.get("partial_rotary_factor") not in (None, 1):
        problems.append(f"{key}: partial_rotary_factor {settings['partial_rotary_factor']!r} (must be 1)")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *SETTINGS[kind]}
    problems += [
        f"{key}: unknown key {name!r} = {value!r} (rope_type {kind!r})"
        for name, value in settings.items()
        if name not in known
    ]
    missing = [name for name in SETTINGS[kind] if settings.get(name) is None]
    problems += [f"{key}: missing key {name!r} (rope_type {kind!r})" for name in missing]
    values = {ours: settings[name] for name, ours in SETTINGS[kind].items() if name not in missing}
    return _make_rope({"kind": kind, **({} if theta is None else {"theta": theta}), **values}, key, problems)


def _make_rope(values: dict[str, Any], key: str, problems: list[str]) -> Rope:
    floats: dict[str, Any] = {
        name: float(value) if type(value) is int and name != "original_length" else value
        for name, value in values.items()
    }
    try:
        return Rope(**floats)
    except ValueError as error:
        problems.append(f"{key}: {error}")
        return Rope()
