"""The code that a policy is made of, with the user's own modules that it imports, as a hash."""

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import pkgutil
import sys
import sysconfig
import warnings
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

from msrnn_jax.io.provenance import PACKAGES
from msrnn_jax.policies.base import Policy
from msrnn_jax.policies.registry import POLICIES

LIBRARIES = (*PACKAGES, "builtins")  # whose versions stand in the results
INSTALLED = {"site-packages", "dist-packages"}


class Helper(NamedTuple):
    """The file of a module."""

    file: str
    content: bytes


def helpers_of(modules: Iterable[ModuleType]) -> dict[str, Helper]:
    """What modules import, and what that imports, as far as it is the user's own, by name.

    Not the user's is what is installed: the standard library, `site-packages`, `LIBRARIES`. A package that is
    installed as editable is the user's. Imports inside functions count, too, and so does what stands above a module
    of a package. A name that is put together at run time is not seen, and what is not written in Python is not looked
    into.

    Args:
      modules: those that import, which do not count by themselves.
    """
    found: dict[str, Helper] = {}
    seen: set[str] = set()
    waiting: list[str] = []
    for module in modules:
        itself = file_of(module)
        if itself is not None and not _is_installed(itself.file):
            waiting += _imports(itself.content, getattr(module, "__package__", None) or "")
    while waiting:
        name = waiting.pop()
        if name in seen or name.split(".")[0] in (*LIBRARIES, "__main__"):
            continue
        seen.add(name)
        above, _, last = name.rpartition(".")
        if above:
            waiting.append(above)
        if last == "*":
            waiting += _inside(above)
            continue
        spec = _spec(name)
        if spec is None or not spec.has_location or spec.origin is None or _is_installed(spec.origin):
            continue  # a namespace, what is built in, or no module at all
        helper = _read(spec.loader, spec.origin)
        if helper is not None:
            found[name] = helper
            waiting += _imports(helper.content, spec.parent or "")
    return found


def file_of(module: ModuleType | None) -> Helper | None:
    """The file that a module was made of; None for what was typed in or is there no more."""
    file = getattr(module, "__file__", None)
    return None if file is None else _read(getattr(module, "__loader__", None), file)


def _read(loader: Any, file: str) -> Helper | None:
    try:  # a loader finds what is inside of an archive
        return Helper(file, loader.get_data(file) if hasattr(loader, "get_data") else pathlib.Path(file).read_bytes())
    except OSError:
        return None


@functools.lru_cache(maxsize=256)
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Full names of all that is imported, and perhaps of what is imported from it: `from a import b` names both."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Python has given them when it ran this
            nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):  # it is compiled, or will not run
        return ()
    names: list[str] = []
    for node in nodes:
        match node:
            case ast.Import():
                names += [alias.name for alias in node.names]
            case ast.ImportFrom():
                base = "." * node.level + (node.module or "")
                separator = "." if node.module else ""
                names += [base, *(f"{base}{separator}{alias.name}" for alias in node.names)]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names.append(name)
    return tuple(dict.fromkeys(filter(None, (_absolute(name, package) for name in names))))


def _absolute(name: str, package: str) -> str:
    """The full name of a module; nothing for what is none."""
    with contextlib.suppress(ImportError):  # a relative name above all packages
        name = importlib.util.resolve_name(name, package)
    return name if all(part.isidentifier() or part == "*" for part in name.split(".")) else ""


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is, or would be found; `importlib.util.find_spec` would run the packages above it."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        spec, file = getattr(loaded, "__spec__", None), getattr(loaded, "__file__", None)
        return spec or (importlib.util.spec_from_file_location(name, file) if file else None)
    above, _, last = name.rpartition(".")
    places = _places(above) if above else None
    if places == []:
        return None
    finds = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    try:
        return next(filter(None, (find(name, places) for find in finds if find)), None)
    except KeyError:  # a namespace in another that is not imported yet, which Python would ask where it is
        spec = ModuleSpec(name, None)
        spec.submodule_search_locations = [os.path.join(place, last) for place in places or sys.path]
        return spec


def _places(package: str) -> list[str]:
    """The folders of a package; none for what is no package."""
    spec = _spec(package)
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _inside(package: str) -> list[str]:
    """What `from package import *` may import, if that is the user's."""
    spec = _spec(package)
    if spec is None or spec.origin is None or _is_installed(spec.origin):
        return []
    return [f"{package}.{module.name}" for module in pkgutil.iter_modules(_places(package))]


def _is_installed(file: str) -> bool:
    place = pathlib.Path(os.path.realpath(file))
    return not INSTALLED.isdisjoint(place.parts) or place.is_relative_to(_standard_library())


@functools.cache
def _standard_library() -> str:
    return os.path.realpath(sysconfig.get_path("stdlib"))


def source_hash(policy: Policy) -> str | None:
    """Hash of the code that a user's own policy is made of, and of its `files`; None for the library's without any.

    That is the files in which it and the classes under it are written, and all modules of the user's that these
    import, see `helpers_of`. What was defined in no file (a notebook, a prompt) is not seen, nor are files that a
    policy reads as data beside its `files`.
    """
    digest = hashlib.sha256()
    for path in policy.files:
        digest.update(pathlib.Path(path).read_bytes())
    if type(policy) in POLICIES.values():
        return digest.hexdigest()[:16] if policy.files else None
    kinds = [kind for kind in type(policy).__mro__ if kind.__module__.split(".")[0] not in LIBRARIES]
    modules = [sys.modules.get(name) for name in dict.fromkeys(kind.__module__ for kind in kinds)]
    files = list(dict.fromkeys(filter(None, map(file_of, modules))))
    for file in files:
        digest.update(file.content)
    roots = {os.path.realpath(file.file) for file in files}
    for name, helper in sorted(helpers_of(filter(None, modules)).items()):
        if os.path.realpath(helper.file) not in roots:
            digest.update(f"\0{name}\0{hashlib.sha256(helper.content).hexdigest()}".encode())
    return digest.hexdigest()[:16]
