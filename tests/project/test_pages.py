"""Every code block of the site and the README is run or read; test_docs.py runs the transcripts."""

import ast
import importlib
import pathlib
import re
import runpy

import pages
import pytest
import transcripts
import typer
from pages import PAGES, ROOT

import msrnn_jax as ms
import msrnn_jax.convert  # pyright: ignore[reportMissingImports], see pyproject.toml
import msrnn_jax.lm_eval
import msrnn_jax.policies

# Pages whose Python is run by a file of their own, which looks at what it leaves.
OWN_FILES = {
    "README.md": "project/test_readme.py",
    "docs/accelerators.md": "project/test_accelerators_page.py",
    "docs/own_policy.md": "policies/test_own_policy.py",
    "docs/state.md": "project/test_state_page.py",
}
LANGUAGES = {"python", "sh", "console", "text", "bibtex"}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_one_that_some_test_knows(page):
    before = ""
    for language, text in pages.blocks(page):
        assert language in LANGUAGES or language.startswith("{"), f"{language}: {text}"
        assert language != "text" or before == "python", f"nothing printed this: {text}"
        before = language


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", [page for page in pages.pages_with("python") if page not in OWN_FILES])
def test_python_blocks_run_one_after_another(page, smollm2, tmp_path):
    transcripts.prepare(tmp_path, "", smollm2)
    pages.run_python(page, tmp_path)


def test_the_other_python_blocks_are_run_by_files_of_their_own():
    for page, file in OWN_FILES.items():
        strings = {node.value for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text())) if _is_text(node)}
        assert page in strings and pages.blocks(page, "python")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("page", pages.pages_with("sh"))
def test_shell_blocks_are_read_by_the_programs_they_call(page):
    for line in pages.shell_lines(page):
        pages.read_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "msrnn perplexity checkpoint --budgets 3",
        "msrnn lru checkpoint",
        "python -m convert",
        "python -m experiments.throughput checkpoint --sections decode",
        "python -m experiments.nothing",
        "make nothing",
        "pip install '.[nothing]'",
        "ls",
    ],
)
def test_what_no_program_understands_is_found(line):
    with pytest.raises((ValueError, ImportError, typer.BadParameter.__base__)):
        pages.read_command(line)


def test_the_table_of_rules_has_the_policies_of_the_paper():
    """A row for every policy of the paper, each saying the text that makes it; policies.md lists all."""
    rows = re.findall(r"^\| `(\w+\(.*?\))` \| `(.*?)` \|", PAGES["docs/rules.md"], re.M)
    for code, text in rows:
        assert ms.parse_policy(text) == eval(code.replace("=i", "=4"), {**vars(ms)})
    assert {text.split(":")[0] for _, text in rows} == {"full", "window", "random", "h2o", "tova"}


DOCUMENTED = re.findall(r"^\.\. (?:autoclass|autofunction|py:data):: (\S+)", "".join(PAGES.values()), re.M)


def test_every_public_name_stands_in_the_reference_once():
    public = {f"msrnn_jax.{name}" for name in ms.__all__}
    for package in (msrnn_jax.policies, msrnn_jax.lm_eval, msrnn_jax.convert):
        public |= {f"{package.__name__}.{name}" for name in package.__all__ if not hasattr(ms, name)}
    assert public <= set(DOCUMENTED)
    assert len(DOCUMENTED) == len(set(DOCUMENTED))


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_the_reference_names_is_there_and_says_what_it_is(name):
    module, _, last = name.rpartition(".")
    thing = getattr(importlib.import_module(module), last)
    assert not callable(thing) or thing.__doc__


def test_drawings_are_those_of_their_script():
    drawings = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "pictures").glob("*.svg")}
    assert files == {name: draw().svg() for name, draw in drawings["DRAWINGS"].items()}
    assert all(f"pictures/{name}.svg" in "".join(PAGES.values()) for name in files)


def test_pictures_say_what_they_show():
    assert not [page for page, text in PAGES.items() if "![](" in text]


def test_pictures_are_small():
    pictures = [path for path in pathlib.Path(ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg")]
    assert pictures and not [path for path in pictures if path.stat().st_size > 200_000]
