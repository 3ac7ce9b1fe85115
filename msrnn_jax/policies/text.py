"""Policies written as text: `tova:sinks=4`, `my.module:MyPolicy:alpha=0.5`, `path/to/file.py:MyPolicy`."""

import dataclasses
import functools
import importlib
import importlib.util
import pathlib
import sys
from typing import Any

from msrnn_jax.policies.base import Policy, name_of, option_fields
from msrnn_jax.policies.full import Full
from msrnn_jax.policies.h2o import H2O
from msrnn_jax.policies.random import Random
from msrnn_jax.policies.tova import TOVA
from msrnn_jax.policies.window import Window

POLICIES: dict[str, type[Policy]] = {name_of(policy): policy for policy in (Full, Random, Window, H2O, TOVA)}


def parse_policy(text: str) -> Policy:
    """Reads a policy from text, the inverse of `str(policy)`.

    Args:
      text: a name, then options after a colon: `h2o:scope=layer,recent=128` (`recent=half` for half the
        budget). A policy of your own is `module:Class` or `path/to/file.py:Class`, options after that.

    Raises:
      ValueError: for an unknown name, option or value, naming it and what there is.
    """
    name, _, rest = text.strip().partition(":")
    if name in POLICIES:
        policy, options = POLICIES[name], rest
    elif rest:
        class_name, _, options = rest.partition(":")
        policy = _load(name, class_name)
    else:
        raise ValueError(
            f"policy {text!r} is unknown; it must be one of {', '.join(POLICIES)}, or module:Class, or file.py:Class"
        )
    try:
        return policy(**_parse_options(text, policy, options))
    except TypeError as error:  # a required field of somebody's own policy
        raise ValueError(f"policy {text!r}: {error}") from None


def _parse_options(text: str, policy: type[Policy], options: str) -> dict[str, Any]:
    fields = option_fields(policy)
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, equals, value = (part.strip() for part in option.partition("="))
        if name not in fields or not equals:
            known = ", ".join(f"{known}=" for known in fields)
            raise ValueError(f"policy {text!r}: option {option!r} is unknown; it must be one of {known}")
        if name in values:
            raise ValueError(f"policy {text!r}: option {name!r} is given twice")
        values[name] = _parse_value(text, name, value, fields[name])
    return values


def _parse_value(text: str, name: str, value: str, field: dataclasses.Field) -> Any:
    if name == "recent" and value == "half":
        return None
    kind = int if name == "recent" else type(field.default)
    if kind is bool:
        kind = {"True": True, "False": False}.__getitem__
    elif field.default is dataclasses.MISSING or kind not in (int, float, str):
        kind = float  # an array option or one without a default: a number is all that text can give
    try:
        return kind(value)
    except (ValueError, KeyError):
        expected = {int: "an integer", float: "a number"}.get(kind, "True or False")  # pyright: ignore
        raise ValueError(f"policy {text!r}: {name} is {value!r}; it must be {expected}") from None


def _load(module_name: str, class_name: str) -> type[Policy]:
    module = _load_file(module_name) if module_name.endswith(".py") else _import(module_name)
    policy = getattr(module, class_name, None)
    if not (isinstance(policy, type) and issubclass(policy, Policy)):
        raise ValueError(f"policy {module_name}:{class_name}: {class_name!r} is not a Policy in {module_name}")
    if policy.score is Policy.score:
        raise ValueError(f"policy {module_name}:{class_name}: it does not define score(layer, t)")
    return policy


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module may fail in any way
        raise ValueError(
            f"policy {name!r} is neither one of {', '.join(POLICIES)} nor a module that imports: "
            f"{type(error).__name__}: {error}"
        ) from error


@functools.cache  # one class per file, so that equal texts give equal policies and nothing is traced twice
def _load_file(path: str) -> Any:
    if not pathlib.Path(path).is_file():
        raise ValueError(f"policy file {path!r} does not exist")
    spec = importlib.util.spec_from_file_location(path, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[path]
        raise ValueError(f"policy file {path!r} does not run: {type(error).__name__}: {error}") from error
    return module
