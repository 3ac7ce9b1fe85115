"""Policies written as text: `tova:sinks=4`, `my.module:MyPolicy:alpha=0.5`, `path/to/file.py:MyPolicy`."""

import contextlib
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import operator
import os
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

from msrnn_jax.io.errors import first_line, typed_line
from msrnn_jax.policies.base import Policy, option_fields, policy_name
from msrnn_jax.policies.by_attention.a2sf import A2SF
from msrnn_jax.policies.by_attention.keyformer import Keyformer
from msrnn_jax.policies.by_attention.roco import RoCo
from msrnn_jax.policies.by_keys.cur import CUR
from msrnn_jax.policies.by_keys.keydiff import KeyDiff
from msrnn_jax.policies.by_keys.knorm import Knorm
from msrnn_jax.policies.by_keys.lagkv import LagKV
from msrnn_jax.policies.by_keys.learned import Learned
from msrnn_jax.policies.by_queries.expected import ExpectedAttention
from msrnn_jax.policies.by_queries.gkv import GKV
from msrnn_jax.policies.by_queries.morphkv import MorphKV
from msrnn_jax.policies.by_queries.rkv import RKV
from msrnn_jax.policies.by_queries.snapkv import SnapKV
from msrnn_jax.policies.by_queries.snapkvd import SnapKVD
from msrnn_jax.policies.by_queries.triattention import TriAttention
from msrnn_jax.policies.full import Full
from msrnn_jax.policies.h2o import H2O
from msrnn_jax.policies.random import Random
from msrnn_jax.policies.tova import TOVA
from msrnn_jax.policies.window import Window

OURS = (
    (Full, Window, Random, TOVA, H2O)
    + (A2SF, RoCo, Keyformer)
    + (SnapKV, SnapKVD, RKV, GKV, MorphKV, ExpectedAttention, TriAttention)
    + (Knorm, KeyDiff, CUR, LagKV, Learned)
)
POLICIES: dict[str, type[Policy]] = {policy_name(policy): policy for policy in OURS}
OPTIONS = {"adakv": "tova:scope=head,adaptive=0.2", "pyramidkv": "tova:pyramid=20"}  # methods that share budgets out
WHERE_MODULES_ARE = (
    "; a file may import what Python finds, and modules of the current folder; "
    "one that imports by dots is given as package.module:Class"
)


def parse_policy(text: str) -> Policy:
    """Reads a policy from text, the inverse of `str(policy)`.

    Args:
      text: a name, then options after a colon: `h2o:scope=layer,recent=128` (`recent=half` for half the
        budget). A policy of your own is `module:Class` or `path/to/file.py:Class`, options after that. A module is
        looked for in the current folder first, then where Python looks. A file or module runs once in a process:
        what is changed in it later is not seen.

    Raises:
      ValueError: for an unknown name, option or value, naming it and what there is.
    """
    text = text.strip()
    name, rest = _split(text)
    if name in POLICIES:
        policy, options = POLICIES[name], rest
    elif rest:
        class_name, _, options = rest.partition(":")
        policy = _load(name, class_name)
    elif name.endswith(".py"):
        raise ValueError(f"policy {text!r} names no class; it must be {name}:Class{_there_is(_load_file(name))}")
    else:
        raise unknown(text, ", or module:Class, or file.py:Class")
    try:
        return policy(**_parse_options(text, policy, options))
    except ValueError:
        raise
    except TypeError as error:  # a required field of somebody's own policy
        raise ValueError(f"policy {text!r}: {first_line(error)}") from None
    except Exception as error:
        raise ValueError(f"policy {text!r} cannot be made: {typed_line(error)}") from error


def _split(text: str) -> tuple[str, str]:
    """A policy's name and what follows its colon."""
    name, _, rest = text.partition(":")
    if "/" not in name or name.endswith(".py"):
        return name, rest
    path, found, rest = text.partition(".py:")  # a folder may have a colon in its name
    if not found and not text.endswith(".py"):
        raise ValueError(f"policy {text!r}: {name!r} is no Python file; it must be path/to/file.py:Class")
    return (f"{path}.py", rest) if found else (text, "")


def unknown(text: str, others: str = "") -> ValueError:
    """The error for what names no policy."""
    if text.split(":")[0] in OPTIONS:
        written = OPTIONS[text.split(":")[0]]
        return ValueError(f"policy {text!r} is an option of every policy; it must be written as in {written}")
    return ValueError(f"policy {text!r} is unknown; it must be one of {', '.join(POLICIES)}{others}")


def _parse_options(text: str, policy: type[Policy], options: str) -> dict[str, Any]:
    fields = option_fields(policy)
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, equals, value = (part.strip() for part in option.partition("="))
        if policy.named_by and not equals:
            name, equals, value = policy.named_by, "=", name
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
    kind = type(field.default)
    if name == "recent":
        kind = _number
    elif kind is bool:
        kind = {"True": True, "False": False}.__getitem__
    elif field.default is None:
        kind = _none_or_number
    elif field.default is dataclasses.MISSING or kind not in (int, float, str):
        kind = float  # an array option or one without a default: a number is all that text can give
    try:
        return kind(value)
    except (ValueError, KeyError):
        expected = {
            int: "an integer",
            float: "a number",
            _number: "an integer, a share or half",
            _none_or_number: "a number or None",
        }
        expected = expected.get(kind, "True or False")  # pyright: ignore
        raise ValueError(f"policy {text!r}: {name} is {value!r}; it must be {expected}") from None


def _none_or_number(value: str) -> int | float | None:
    return None if value == "None" else _number(value)


def _number(value: str) -> int | float:
    try:
        return int(value)
    except ValueError:
        return float(value)


def _load(module_name: str, class_name: str) -> type[Policy]:
    module = _load_file(module_name) if module_name.endswith(".py") else _import(module_name)
    try:
        policy = operator.attrgetter(class_name)(module)  # Outer.Inner, too
    except AttributeError:
        policy = None
    if not (isinstance(policy, type) and issubclass(policy, Policy)):
        raise ValueError(
            f"policy {module_name}:{class_name}: {class_name!r} is not a Policy in {module_name}{_there_is(module)}"
        )
    if policy.score is Policy.score:
        raise ValueError(f"policy {module_name}:{class_name}: it does not define score(layer, t)")
    return policy


def _there_is(module: types.ModuleType) -> str:
    """The policies that a module defines, as the end of a sentence."""
    found = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Policy) and value.__module__ == module.__name__
    ]
    return f"; there is {', '.join(found)}" if found else ""


def _import(name: str) -> types.ModuleType:
    try:
        with _from_here():
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module may fail in any way
        raise ValueError(
            f"policy {name!r} is neither one of {', '.join(POLICIES)} nor a module that imports: {typed_line(error)}"
        ) from error


@contextlib.contextmanager
def _from_here() -> Iterator[None]:
    """Lets modules of the current folder be found; Python's path is afterwards what it was."""
    importlib.invalidate_caches()  # a file just written is found
    here = os.getcwd()  # an installed script has its own folder on the path instead
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _load_file(path: str) -> types.ModuleType:
    try:
        file = pathlib.Path(path).expanduser().resolve()
        there, is_file = file.exists(), file.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # no home folder, a loop of links, a name too long
        raise ValueError(f"policy file {path!r} cannot be found: {first_line(error)}") from error
    if not is_file:
        raise ValueError(f"policy file {path!r} " + ("is not a file" if there else "does not exist"))
    return _run_file(path, str(file))


def _run_file(path: str, file: str) -> types.ModuleType:
    # One class per file, so that equal texts give equal policies and nothing is traced twice.
    if file in sys.modules:
        return sys.modules[file]
    loader = importlib.machinery.SourceFileLoader(file, file)
    spec = _Alone(file, loader, origin=file)
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[file] = module  # dataclasses look their module up here
    try:
        with _from_here():
            loader.exec_module(module)
    except BaseException as error:
        del sys.modules[file]
        if not isinstance(error, Exception | SystemExit):
            raise
        where = WHERE_MODULES_ARE if isinstance(error, ImportError) else ""
        raise ValueError(f"policy file {path!r} does not run: {typed_line(error)}{where}") from error
    return module


class _Alone(importlib.machinery.ModuleSpec):
    """A module of no package, though its name, a path, has dots."""

    @property
    def parent(self) -> str:
        return ""
