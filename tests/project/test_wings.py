"""The house: which wing may import which, how many modules a folder has, and that the wheel takes them all."""

import ast
import pathlib
import re
import tomllib
from collections.abc import Iterator

import pytest

import msrnn_jax as ms

ROOT = pathlib.Path(__file__).parents[2]
FACE = ("public", "__main__", *ms.__all__)  # one wing with the package itself, which shows what the others make
# The one import that runs upwards: `msrnn convert` is a command like the others.
COMMAND = ("msrnn_jax.cli.app", "msrnn_jax.convert.cli")


def floors() -> dict[str, int]:
    """The floor of every wing, the lowest first, as CONTRIBUTING.md pictures them."""
    picture = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    rows = [re.findall(r"[\w.]+", line) for line in picture.strip().splitlines()]
    return {wing: floor for floor, row in enumerate(reversed(rows)) for wing in row}


def wing_of(module: str) -> str:
    """All of convert is one wing; of the library and the experiments every folder is, and every file beside them."""
    module = re.sub(r"^msrnn_jax\.convert\b", "convert", module)  # its name in the wheel
    first, *below = module.split(".")
    if first == "msrnn_jax" and (not below or below[0] in FACE):
        return "msrnn_jax"
    return below[0] if first == "msrnn_jax" else first if first == "convert" else ".".join([first, *below[:1]])


def modules(package: str) -> Iterator[tuple[str, pathlib.Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imports(module: str, path: pathlib.Path, source: str) -> Iterator[str]:
    """The full names of everything of ours that a module imports, also within functions."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in ("msrnn_jax", "convert", "experiments"))


def upwards(module: str, path: pathlib.Path, source: str) -> list[str]:
    known, mine = floors(), wing_of(module)
    return [
        f"{module} imports {name}"
        for name in imports(module, path, source)
        if wing_of(name) != mine and known.get(wing_of(name), len(known)) >= known[mine]
        if not (module == COMMAND[0] and name.startswith(COMMAND[1]))
    ]


@pytest.mark.parametrize("package", ["msrnn_jax", "convert", "experiments"])
def test_a_wing_imports_only_wings_below_it(package):
    found = [line for name, path in modules(package) for line in upwards(name, path, path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("msrnn_jax.recurrence.slots", "from msrnn_jax.model.llama import step"),
        ("msrnn_jax.io.files", "def read():\n    import msrnn_jax.config"),
        ("msrnn_jax.text.tokens", "import msrnn_jax as ms"),
        ("msrnn_jax.cli.info", "from convert import convert"),
        ("convert.gguf.reader", "from experiments.common import study"),
        ("experiments.common.study", "from experiments.needle.fields import check"),
        ("experiments.needle.report", "from ..retention import maps"),
    ],
)
def test_an_import_upwards_is_seen(module, source):
    assert upwards(module, pathlib.Path("module.py"), source)


def test_folders_and_the_root_stay_small():
    counts: dict[pathlib.Path, int] = {}
    for package in ("msrnn_jax", "convert"):
        for name, path in modules(package):
            if path.name != "__init__.py" or name == "msrnn_jax":
                counts[path.parent] = counts.get(path.parent, 0) + 1
    assert counts.pop(ROOT / "msrnn_jax") <= 8
    assert max(counts.values()) <= 15, counts


def test_the_wheel_has_every_folder():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [
        name for package in ("msrnn_jax", "convert") for name, path in modules(package) if path.stem == "__init__"
    ]
    assert sorted(listed) == sorted(name.replace("convert", "msrnn_jax.convert", 1) for name in folders)
