"""The shell lines of the pages do their work, on little data and in a reader's folder."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import checkpoints
import pages
import pytest
import transcripts
from devices import environment
from toy import make_toy

pytestmark = pytest.mark.exhaustive

# What a line is given besides, so that it takes seconds. Of an option that is given twice the last one counts.
SMALL = {
    "experiments.throughput": "--dtype float32 --batch 1 --rows 1 --decode-budget 8 --decode-budgets 8 --early 200 "
    "--late 400 --decode-prompt 12 --new-tokens 3 --prompt-length 24 --prompt-budget 8 --tokens 48 --budget 8 "
    "--chunk 8 --chunks 4 --budgets 8 --policies full --grid-tokens 24 --stretch 6 --long 96 --memory-budgets 8 "
    "--memory-full 16 --turns 1 --slow-turns 1 --no-peers",
    "experiments.language_modeling": "--segment 48 --segments 1 --policy tova --budget 8",
    "experiments.needle": "--length 96 --depth 0.5 --draws 1 --policy tova --budget 16",
    "experiments.first_token": "--turns 1",
    "experiments.device_check": "--batch 2 --tokens 24 --budget 8 --steps 2 --turns 1 --layers 1",
    "experiments.finetune": "--steps 1 --batch 1 --length 32 --segment 16 --chunk 16 --budget 8",
    "experiments.finetune.effect": "--segment 48 --segments 1 --budget 8",
    "msrnn_jax.lm_eval": "--limit 1",
    "perplexity": "--segment 300 --segments 2",
}
# What cannot be run here, or is run elsewhere.
ELSEWHERE = {
    "pip ": "tests of the wheel install it",
    "make ": "CI runs these targets",
    ".venv-compiled/": "`make compiled` runs these, in an environment of its own",
    "mistralai/": "the hub is far; tests/convert/hub has one of its own",
    "--coordinator host0": "it waits for another machine; tests/devices starts two processes",
}
VERIFY = "--verify"  # needs torch


def lines(page: str) -> list[str]:
    """All lines of a page that can be run here."""
    found = [line.partition("  #")[0] for line in pages.shell_lines(page) if line.strip()]
    return [line for line in found if not any(word in line for word in ELSEWHERE)]


def prepare(folder: pathlib.Path, page: str, smollm2: pathlib.Path) -> None:
    """The reader's folder: texts, models, the checkout's pages."""
    transcripts.prepare(folder, pages.PAGES[page], smollm2)
    text = (pages.ROOT / "LICENSE").read_text()
    for name in ("books", "pg19_test"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text(text)
        (folder / name / "b.txt").write_text(text[::-1])
    for number, name in enumerate(("5962", "22424", "15562", "58553")):
        (folder / f"{name}.txt").write_text(text[number:])
    if page == "docs/training.md":  # all of a model is trained
        make_toy(folder / "CKPT")
    else:
        (folder / "CKPT").symlink_to(smollm2)
    if page == "docs/converting.md":
        checkpoints.write_gguf(folder / "model.Q4_K_M.gguf", tokenizer=checkpoints.BYTE_LEVEL)
        run(f"msrnn convert export {smollm2} path/to/folder", folder)


def run(line: str, folder: pathlib.Path) -> None:
    words = line.split()
    sizes = next((SMALL[word] for word in words if word in SMALL), "")
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    around = {
        **environment(8 if "--mesh" in line else 1),
        "PATH": path,
        "PYTHONPATH": str(pages.ROOT),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        ["bash", "-c", f"{line} {sizes}"], cwd=folder, env=around, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, f"$ {line} {sizes}\n{done.stdout}{done.stderr}"


def _free(path: pathlib.Path) -> None:
    """Several lines convert into the same folder."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("page", [page for page in pages.pages_with("sh") if lines(page)])
def test_lines_do_their_work(page, smollm2, tmp_path):
    prepare(tmp_path, page, smollm2)
    for line in lines(page):
        if VERIFY in line and importlib.util.find_spec("torch") is None:
            continue
        if line.startswith("msrnn convert") and "export" not in line:
            _free(tmp_path / next(word for word in line.split() if word.startswith("checkpoints/")))
        run(line, tmp_path)


def test_what_is_not_run_is_on_a_page():
    """No exception for what is no more."""
    everything = "\n".join(line for page in pages.PAGES for line in pages.shell_lines(page))
    assert all(word in everything for word in ELSEWHERE)
