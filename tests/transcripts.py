"""Console transcripts in Markdown: run again, compared, and written anew by `python tests/transcripts.py docs/*.md`."""

import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"(?<![0-9A-Za-z_.])(\d[\d,]*(?:\.\d+)?)(?![0-9A-Za-z_])")
CHECKPOINT = pathlib.Path("checkpoints", "smollm2-135m")
TOLERANCE = 0.03  # of numbers: another CPU rounds otherwise, and now and then another token is forgotten


class Exchange(NamedTuple):
    """A command and what it printed, errors included."""

    command: str
    output: str


def exchanges(text: str) -> Iterator[Exchange]:
    """All of a page: a command is a line after `$ `, continued while lines end with a backslash."""
    for block in BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            lines = part.split("\n")
            last = next(index for index, line in enumerate(lines) if not line.endswith("\\"))
            yield Exchange("\n".join(lines[: last + 1]), "\n".join(lines[last + 1 :]))


def run(command: str, folder: pathlib.Path) -> str:
    """What a command prints in a folder, as in a pipe of 100 columns."""
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return "".join(f"{line.rstrip()}\n" for line in result.stdout.splitlines())


def prepare(folder: pathlib.Path, page: str, checkpoint: pathlib.Path) -> None:
    """What a reader has in the checkout that the transcripts use, with a checkpoint unless the page converts one."""
    if not any(f"convert smollm2-135m {CHECKPOINT}" in exchange.command for exchange in exchanges(page)):
        (folder / CHECKPOINT).parent.mkdir()
        (folder / CHECKPOINT).symlink_to(checkpoint)
    for name in ("LICENSE", "docs"):
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)


def difference(expected: str, actual: str) -> str:
    """The first pair of lines that differ, or nothing. `...` stands for anything, up to the end of its line or, alone
    on one, for any lines; numbers may differ by TOLERANCE."""
    wanted, found = expected.splitlines(), actual.splitlines()
    if "..." in wanted:
        place = wanted.index("...")
        tail = len(wanted) - place - 1
        return difference("\n".join(wanted[:place]), "\n".join(found[:place])) or difference(
            "\n".join(wanted[place + 1 :]), "\n".join(found[max(place, len(found) - tail) :])
        )
    for ours, theirs in itertools.zip_longest(wanted, found):
        if ours is None or theirs is None or not _alike(ours, theirs):
            return f"expected: {ours}\nprinted:  {theirs}"
    return ""


def _alike(expected: str, actual: str) -> bool:
    expected, actual = (re.sub(r"[ ─━]+", " ", line) for line in (expected, actual))  # columns are as wide as numbers
    pattern, numbers, end = "", [], 0
    for match in re.finditer(rf"{NUMBER.pattern}|\.\.\.", expected):
        pattern += re.escape(expected[end : match.start()])
        if match.group() == "...":
            pattern += ".*"
        else:
            pattern += r"(\d[\d,]*(?:\.\d+)?)"
            numbers.append(match.group())
        end = match.end()
    found = re.fullmatch(pattern + re.escape(expected[end:]), actual)
    if found is None:
        return False
    values = ((float(text.replace(",", "")) for text in pair) for pair in zip(numbers, found.groups(), strict=True))
    return all(abs(ours - theirs) <= TOLERANCE * max(abs(ours), abs(theirs)) for ours, theirs in values)


def main(pages: list[str]) -> None:
    """Writes what the commands of pages print now over what stands there; lines of `...` alone have to be put back."""
    for page in pages:
        path = pathlib.Path(page)
        with tempfile.TemporaryDirectory() as name:
            folder, text = pathlib.Path(name), path.read_text()
            prepare(folder, text, ROOT / CHECKPOINT)

            def renew(match: re.Match, folder: pathlib.Path = folder) -> str:
                block = ""
                for command, _ in exchanges(match.group()):
                    block += f"$ {command}\n{run(command, folder)}"
                    print(block.rpartition("$ ")[2], flush=True)
                return f"```console\n{block}```"

            path.write_text(BLOCK.sub(renew, text))


if __name__ == "__main__":
    main(sys.argv[1:])
