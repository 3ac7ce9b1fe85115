"""docs/accelerators.md: its blocks run, and what it names is there."""

import pathlib
import re
import tomllib

import pages
import pytest
from devices import on_devices
from pages import ROOT
from toy import make_toy

NAME = "docs/accelerators.md"
PAGE = pages.PAGES[NAME]


@pytest.mark.exhaustive
def test_its_blocks_run_on_several_devices(tmp_path: pathlib.Path) -> None:
    make_toy(tmp_path / "checkpoints" / "smollm2-135m")
    here = "import os\nos.chdir(sys.argv[1])\nos.environ['MSRNN_CACHE'] = os.getcwd()\n"
    end = "print(mesh.size, logits.shape, len(logits.sharding.device_set), pathlib.Path(folder).is_dir())"
    printed = on_devices(f"{here}{pages.code(NAME)}\nimport pathlib\n{end}", tmp_path, quick=True)
    assert printed.split(" ", 1)[0] == "8" and printed.endswith("8 True\n") and "(16, 40, " in printed


def test_what_it_names_is_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"pip install '\.\[(.*?)\]'", PAGE)
    assert {"cuda", "tpu"} <= set(named) and all(name in extras for names in named for name in names.split(","))
    for extra, what in re.findall(r"^pip install '\.\[(\w+)\]'  # (\S+?):", PAGE, re.M):
        assert extras[extra] == [what]
    for path in re.findall(r"`((?:msrnn_jax|tests|docs)/[\w/]+\.\w+)`", PAGE):
        assert (ROOT / path).is_file(), path
