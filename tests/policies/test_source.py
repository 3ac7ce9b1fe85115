"""Results belong to code: what of a user's a policy is made of, and what is none of it."""

import pathlib
import py_compile
import sys
import zipfile

import pytest

import msrnn_jax as ms
from msrnn_jax.policies.source import source_hash

ROOT = pathlib.Path(__file__).parents[2]
POLICY = "import msrnn_jax as ms\n{imports}\nclass Own(ms.Policy):\n    def score(self, layer, t):\n        {inside}\n"
POLICY += "        return layer.positions\n"


def write(folder: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def own(imports: str = "", inside: str = "pass") -> str:
    return POLICY.format(imports=imports, inside=inside)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder on Python's path, of whose modules nothing is left behind."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_hash_without_helpers_is_that_of_the_files_of_its_classes(here):
    """So that results which are there already keep their identity."""
    write(here, {"alone.py": own("import math, numpy, jax.numpy, flax.struct, jaxtyping")})
    write(here, {"base.py": own(), "mine.py": "from base import Own\nclass Mine(Own): pass\n"})
    write(here, {"pkg/__init__.py": "x = 1\n", "pkg/mod.py": own()})
    assert source_hash(ms.parse_policy(f"{here / 'alone.py'}:Own")) == "58423b1c8a091b3c"
    assert source_hash(ms.parse_policy("alone:Own")) == "58423b1c8a091b3c"
    assert source_hash(ms.parse_policy("mine:Mine")) == "b14a585412c0ac91"
    assert source_hash(ms.parse_policy("pkg.mod:Own")) == "e9f3fbf5dbd8586d"
    assert source_hash(ms.TOVA()) is None


USED = {
    "import": own("import helper"),
    "as": own("import numpy, helper as h"),
    "from": own("from helper import f"),
    "star": own("from helper import *"),
    "inside a function": own(inside="import helper"),
    "by name": own("import importlib", 'importlib.import_module("helper")'),
    "by dunder": own(inside='__import__("helper")'),
    "if it is there": own("try:\n    import helper\nexcept ImportError:\n    helper = None"),
}


@pytest.mark.parametrize("text", USED.values(), ids=USED)
def test_a_helper_counts_however_it_is_imported(text, here):
    write(here, {"p.py": text, "helper.py": "f = 1\n"})
    policy = ms.parse_policy(f"{here / 'p.py'}:Own")
    code = source_hash(policy)
    write(here, {"unused.py": "x = 1\n"})
    assert code == source_hash(policy)
    write(here, {"helper.py": "f = 2\n"})
    assert code != source_hash(policy)


FILES = {
    "pkg/__init__.py": "from pkg.parts import helper\n",
    "pkg/sub/__init__.py": "",
    "pkg/middle.py": "from .parts import helper\n",
    "pkg/circle.py": "import pkg.back\n",
    "pkg/back.py": "import pkg.circle\nfrom pkg.parts.helper import f\n",
    "pkg/parts/__init__.py": "",
    "pkg/parts/helper.py": "f = 1\n",
    "alone/__init__.py": "",
    "alone/helper.py": "f = 1\n",
    "alone/jax.py": "f = 1\n",
    "space/inner/deep.py": "x = 1\n",
    "space/inner/near.py": "def lazily():\n    from . import deep\n",
}
PACKAGES = {
    "relative": ("from ..parts import helper", "pkg/parts/helper.py"),
    "absolute": ("import pkg.parts.helper", "pkg/parts/helper.py"),
    "the package itself": ("from .. import parts", "pkg/__init__.py"),
    "a helper's helper": ("from pkg import middle", "pkg/parts/helper.py"),
    "in a circle": ("from pkg import circle", "pkg/parts/helper.py"),
    "through the package": ("import pkg", "pkg/parts/helper.py"),
    "star": ("from alone import *", "alone/helper.py"),
    "called like a library": ("import alone.jax", "alone/jax.py"),
    "namespace": ("import space.inner.deep", "space/inner/deep.py"),
    "relative in a namespace": ("from space.inner import near", "space/inner/deep.py"),
}


@pytest.mark.parametrize("place", ["imports", "inside"])
@pytest.mark.parametrize(("statement", "edited"), PACKAGES.values(), ids=PACKAGES)
def test_helpers_in_packages_count(statement, edited, place, here):
    if "*" in statement:
        place = "imports"  # Python has no such import inside a function
    write(here, {**FILES, "pkg/sub/mod.py": own(**{place: statement})})
    policy = ms.parse_policy("pkg.sub.mod:Own")
    before = set(sys.modules)
    code = source_hash(policy)
    assert set(sys.modules) == before, "it was run"
    write(here, {edited: FILES[edited] + "# edited\n"})
    assert code != source_hash(policy)


def test_what_is_installed_is_not_the_users(here, monkeypatch):
    """But for that to which only a .pth leads, as of an editable installation."""
    installed, theirs = here / "lib" / "site-packages", here / "elsewhere"
    write(installed, {"installed.py": "x = 1\n"})
    write(theirs, {"editable.py": "import deeper\n", "deeper.py": "x = 1\n"})
    monkeypatch.syspath_prepend(installed)
    monkeypatch.syspath_prepend(theirs)  # as a .pth does
    write(here, {"p.py": own("import installed, editable, typing, jax, msrnn_jax.model.llama")})
    policy = ms.parse_policy(f"{here / 'p.py'}:Own")
    code = source_hash(policy)
    write(installed, {"installed.py": "x = 2\n"})
    assert code == source_hash(policy)
    write(theirs, {"deeper.py": "x = 2\n"})
    assert code != source_hash(policy)


def test_helpers_that_are_no_plain_source_count(here, monkeypatch):
    """Compiled, in an archive, empty, broken, and not there."""
    monkeypatch.syspath_prepend(here / "archive.zip")
    imports = "import archived, compiled, empty\ndef never(): import none, broken, fakes.none"
    write(here, {"p.py": own(imports), "empty.py": "", "broken.py": "no Python (\n"})
    codes = []
    for archived, source in (("x = 1", "x = 1"), ("x = 2", "x = 1"), ("x = 2", "x = 2")):
        with zipfile.ZipFile(here / "archive.zip", "w") as archive:
            archive.writestr("archived.py", archived)
        write(here, {"source.py": source})
        py_compile.compile(str(here / "source.py"), str(here / "compiled.pyc"), doraise=True)
        sys.path_importer_cache.clear()  # which knows the archive as it was
        codes.append(source_hash(ms.parse_policy(f"{here / 'p.py'}:Own")))
    assert len(set(codes)) == 3


def test_a_policy_may_be_in_an_archive(here, monkeypatch):
    monkeypatch.syspath_prepend(here / "archive.zip")
    with zipfile.ZipFile(here / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", own("import helper"))
    write(here, {"helper.py": "x = 1\n"})
    policy = ms.parse_policy("zipped:Own")
    code = source_hash(policy)
    write(here, {"helper.py": "x = 2\n"})
    assert code != source_hash(policy)
