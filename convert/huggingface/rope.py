"""Rope settings as Hugging Face configs spell them, old and new."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from msrnn_jax.config import Rope

from ..problems import LARGEST, is_count

# What each kind may have beside its name and theta, and what it is called here.
SETTINGS = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_length",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
    },
}
MSCALE = ("mscale", "mscale_all_dim")  # of "yarn", which make an attention factor together
OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "truncate", *MSCALE)  # and a null is as good as nothing

# Why a kind cannot be taken.
REASONS = {
    "dynamic": "its frequencies change as the text grows, and keys in a state were rotated by the earlier ones",
    "longrope": "its frequencies depend on how long the whole text is, which a state does not know beforehand",
    "proportional": "it rotates a part of every head",
    "mrope": "it is for images",
}


def read_rope(fields: Mapping[str, Any], problems: list[str], default_theta: float, max_length: Any) -> Rope:
    """The rope settings of a config, in either spelling.

    New: `rope_parameters: {rope_theta, rope_type, ...}`. Old: `rope_theta` and `rope_scaling: {type, ...}`,
    which is null where nothing is scaled. Both may stand in one file if they agree. What is wrong is
    added to `problems`, and the result is then a default that only serves to go on checking.

    Args:
      default_theta: where the config names none.
      max_length: the original length, where a kind needs one and the config leaves it out.
    """
    spelled = [key for key in ("rope_parameters", "rope_scaling") if fields.get(key) is not None]
    inner = [fields[key].get("rope_theta") for key in spelled if isinstance(fields[key], Mapping)]
    stated = [value for value in (fields.get("rope_theta"), *inner) if value is not None]
    theta = stated[0] if stated else default_theta
    before = len(problems)
    if "rope_theta" in fields and not stated:
        problems.append("rope_theta is null; it must be a number")
    ropes = [_read_spelling(key, fields[key], theta, max_length, problems) for key in spelled]
    if not ropes:
        ropes = [_make_rope({"theta": theta}, "rope_theta", problems)]
    if len(problems) > before:
        return Rope()
    if ropes[0] != ropes[-1]:
        problems.append(f"rope_parameters and rope_scaling contradict each other: {ropes[0]} and {ropes[-1]}")
    return ropes[0]


def _read_spelling(key: str, settings: Any, theta: Any, max_length: Any, problems: list[str]) -> Rope:
    if not isinstance(settings, Mapping):
        problems.append(f"{key} is {settings!r}; it must be an object")
        return Rope()
    if settings.get("rope_type", "") is None:
        problems.append(f"{key}: rope_type is null")
        return Rope()
    kinds = [settings[name] for name in ("rope_type", "type") if settings.get(name) is not None] or ["default"]
    if kinds[0] != kinds[-1]:
        problems.append(f"{key}: rope_type {kinds[0]!r} and type {kinds[-1]!r} contradict each other")
    kind = kinds[0]
    if not isinstance(kind, str) or kind not in SETTINGS:
        reason = f": {REASONS[kind]}" if isinstance(kind, str) and kind in REASONS else ""
        problems.append(f"{key}: rope_type {kind!r} (must be one of {', '.join(SETTINGS)}){reason}")
        return Rope()
    may_be_null = {*OPTIONAL, *(["factor"] if kind == "yarn" else []), *(["type"] if "rope_type" in settings else [])}
    nulls = {name for name, value in settings.items() if value is None} - may_be_null
    problems += [f"{key}: {name} is null" for name in sorted(nulls)]
    if settings.get("rope_theta") not in (None, theta):
        problems.append(f"rope_theta {theta!r} and {key}: rope_theta {settings['rope_theta']!r} contradict each other")
    if settings.get("partial_rotary_factor") not in (None, 1):
        problems.append(f"{key}: partial_rotary_factor {settings['partial_rotary_factor']!r} (must be 1)")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *SETTINGS[kind]}
    known |= set(MSCALE) if kind == "yarn" else set()
    problems += [
        f"{key}: unknown key {name!r} = {value!r} (rope_type {kind!r})"
        for name, value in settings.items()
        if name not in known
    ]
    given = {name: settings[name] for name in settings if name in known and settings[name] is not None}
    if "original_max_position_embeddings" in SETTINGS[kind]:  # as transformers does
        given.setdefault("original_max_position_embeddings", max_length)
    if kind == "yarn":
        given = _complete_yarn(key, settings, given, max_length, problems)
    missing = [name for name in SETTINGS[kind] if name not in (*given, *OPTIONAL, *nulls)]
    problems += [f"{key}: missing key {name!r} (rope_type {kind!r})" for name in missing]
    values = {ours: given[name] for name, ours in SETTINGS[kind].items() if name in given}
    return _make_rope({"kind": kind, "theta": theta, **values}, key, problems)


def _complete_yarn(
    key: str, settings: Mapping[str, Any], given: dict[str, Any], max_length: Any, problems: list[str]
) -> dict[str, Any]:
    """What transformers makes of absent, null and zero settings."""
    given = {name: value for name, value in given.items() if value != 0 or name not in ("beta_fast", "beta_slow")}
    if settings.get("truncate", True) is None:
        problems.append(f"{key}: truncate is None; it must be true or false")
    original = given["original_max_position_embeddings"]
    if "factor" in settings and "factor" not in given and is_count(original) and is_count(max_length):
        given["factor"] = max_length / original
    scales = [given.get(name, 0) for name in MSCALE]
    for name, value in zip(MSCALE, scales, strict=True):
        if not _is_number(value):
            problems.append(f"{key}: {name} is {value!r}; it must be a number")
            return given
    factor = given.get("factor")
    if "attention_factor" not in given and all(scales) and _is_number(factor) and factor > 1:
        one, other = (0.1 * scale * math.log(factor) + 1 for scale in scales)
        given["attention_factor"] = one / other if other else math.inf
    return given


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) <= LARGEST


def _make_rope(values: dict[str, Any], key: str, problems: list[str]) -> Rope:
    floats: dict[str, Any] = {
        name: float(value) if type(value) is int and _is_number(value) and name != "original_length" else value
        for name, value in values.items()
    }
    try:
        return Rope(**floats)
    except ValueError as error:
        problems.append(f"{key}: {error}")
        return Rope()
