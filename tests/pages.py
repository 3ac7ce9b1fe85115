"""Code blocks of the site's pages and of the README: found, and run or read as a reader would.

`python tests/pages.py docs/recurrence.md` writes what Python prints now over what stands there.
"""

import contextlib
import importlib
import inspect
import io
import os
import pathlib
import re
import shlex
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import transcripts
import typer

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """What stands between two lines of three backticks."""

    language: str
    text: str


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The blocks of a page, or those in one language."""
    found = [Block(*match.groups()) for match in BLOCK.finditer(PAGES[page])]
    return [block for block in found if language in (None, block.language)]


def shell_lines(page: str) -> list[str]:
    """The lines of the `sh` blocks of a page, those that end with a backslash joined to the next."""
    return [line for block in blocks(page, "sh") for line in block.text.replace("\\\n", " ").splitlines()]


def pages_with(language: str) -> list[str]:
    """The pages that have a block in a language."""
    return [page for page in PAGES if blocks(page, language)]


def code(page: str) -> str:
    """All Python of a page."""
    return "".join(block.text for block in blocks(page, "python"))


def run_python(page: str, folder: pathlib.Path) -> dict[str, Any]:
    """Runs the Python blocks of a page one after another in a folder, and returns the names that they leave.

    A `text` block is what the Python block before it prints; numbers may differ as in transcripts.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for said, printed in printed_texts(page, folder, names):
        assert not transcripts.difference(said, printed), f"{page} printed:\n{printed}"
    return names


def printed_texts(page: str, folder: pathlib.Path, names: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every `text` block, and what the Python block before it printed, with JAX as readers have it."""
    printed = ""
    with contextlib.chdir(folder), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for number, block in enumerate(blocks(page)):
            if block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(block.text, f"{page}, block {number}", "exec"), names)
                printed = out.getvalue()
            elif block.language == "text":
                yield block.text, printed


def read_command(line: str) -> None:
    """Has a line of a `sh` block read by the program that it calls; nothing is run.

    Raises:
      ValueError: for a program, target or extra that is not there.
      typer.BadParameter, or another usage error: for arguments that the program refuses.
    """
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    if not words:
        return
    program, *arguments = words
    if os.path.basename(program) == "python" and arguments[:1] == ["-m"]:
        program, *arguments = arguments[1:]
    if program == "msrnn":
        _read(typer.main.get_command(importlib.import_module("msrnn_jax.cli.app").app), arguments)
    elif program == "convert" or program.startswith("experiments."):
        name = "convert.cli" if program == "convert" else program
        if (ROOT / name.replace(".", "/")).is_dir():
            name += ".__main__"
        _read(typer.main.get_command(importlib.import_module(name).app), arguments)
    elif program == "msrnn_jax.lm_eval":
        from msrnn_jax.lm_eval import TASKS, MultiStateLM

        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        known = inspect.signature(MultiStateLM.__init__).parameters
        _require("argument", {part.split("=")[0] for part in given["--model_args"].split(",")}, known)
        _require("task", set(given["--tasks"].split(",")), [path.stem for path in pathlib.Path(TASKS).glob("*.yaml")])
    elif program == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
        _require("target", {word for word in arguments if "=" not in word}, targets)
    elif program == "pip" and arguments[:1] == ["install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = re.fullmatch(r"\.(?:\[(.*)\])?", arguments[-1])
        _require("extra", set((wanted and wanted[1] or "").split(",")) - {""}, extras)
    elif words not in (["python3", "-m", "venv", ".venv"], [".", ".venv/bin/activate"]):
        raise ValueError(f"{line!r} calls a program that no test knows")


def _read(command: Any, arguments: list[str]) -> None:
    """Descends to the command that is called, which reads its arguments."""
    while hasattr(command, "commands"):
        name, *rest = arguments
        if name not in command.commands:  # `convert`, in which `import` may be left out
            _require("command", {"import"}, command.commands)
            name, rest = "import", arguments
        command, arguments = command.commands[name], rest
    command.make_context(command.name, list(arguments))


def _require(what: str, named: set[str], there: Any) -> None:
    for name in named - set(there):
        raise ValueError(f"{what} {name!r} is not there")


def main(names: list[str]) -> None:
    """Writes what the Python blocks of pages print now into their `text` blocks."""
    for page in names:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            transcripts.prepare(folder, "", ROOT / transcripts.CHECKPOINT)
            texts = [printed for _, printed in printed_texts(page, folder, {"__name__": "__main__"})]
        first, *others = re.split(r"(?<=^```text\n).*?(?=^```$)", PAGES[page], flags=re.M | re.S)
        (ROOT / page).write_text(first + "".join(map("".join, zip(texts, others, strict=True))))


if __name__ == "__main__":
    main(sys.argv[1:])
