"""Code that is in no file, such as that of a notebook or a prompt: it is known by what it was compiled to."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

from msrnn_jax.policies.helpers import file_of

PLAIN = (int, float, complex, str, bytes, type(None), type(...))


def compiled(kinds: Sequence[type]) -> tuple[bytes, list[str]]:
    """What classes, and all in no file that they use, were compiled to, and the names of the modules that they use."""
    parts: list[str] = []
    modules: list[str] = []
    seen: dict[int, Any] = {}
    waiting: list[Any] = list(kinds)
    while waiting:
        one = _unwrapped(waiting.pop(0))
        if isinstance(one, PLAIN):
            parts.append(repr(one))
        elif id(one) not in seen:
            seen[id(one)] = one
            home = one.__name__ if isinstance(one, ModuleType) else _file_module(one)
            if home is not None:
                modules.append(home)
            elif isinstance(one, tuple | list):
                waiting += one
            elif isinstance(one, type):
                parts.append(one.__qualname__)
                waiting += [*one.__bases__, *_written_in(one)]
            elif isinstance(one, FunctionType):
                parts += _spell(one.__code__)
                waiting += _used_by(one)
    return "\n".join(parts).encode("utf-8", "surrogatepass"), modules


def _unwrapped(one: Any) -> Any:
    """The function in a method, a property, `jax.jit`; anything else as it is."""
    for kind, name in ((staticmethod | classmethod, "__func__"), (property, "fget"), (functools.partial, "func")):
        if isinstance(one, kind):
            return _unwrapped(getattr(one, name))
    return one if isinstance(one, type | ModuleType) else inspect.unwrap(one)


def _file_module(one: Any) -> str | None:
    """The module that a class or function is of, if that is one with a file or Python itself."""
    name = getattr(one, "__module__", None)
    if isinstance(name, str) and (name in sys.builtin_module_names or file_of(sys.modules.get(name)) is not None):
        return name
    return None


def _written_in(kind: type) -> Iterator[Any]:
    """Functions and values of a class, but not what Python adds to it."""
    for name, value in vars(kind).items():
        if not name.startswith("__") or isinstance(_unwrapped(value), FunctionType):
            yield value


def _used_by(function: FunctionType) -> Iterator[Any]:
    """Defaults, and what it finds outside: in its module and in the functions around it."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            yield cell.cell_contents
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _names(value)


def _spell(code: CodeType) -> Iterator[str]:
    """Everything in compiled code that says what it does, but not where it stands."""
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_flags}"
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _spell(value)
        else:
            yield repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
