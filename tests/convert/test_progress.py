"""The bars that long conversions show: bytes on a terminal, nothing in a pipe."""

import os
import pathlib
import pty
import re
import subprocess
import sys

import jax
from checkpoints import write_huggingface

from convert import convert
from convert.huggingface.export import export
from convert.progress import unseen

ROOT = pathlib.Path(__file__).parents[2]


def test_every_byte_is_counted_once(tmp_path):
    """Of the files hashed and of the weights written, each way."""
    counted = []

    class Meter:
        def __init__(self, task, total):
            self.task, self.total, self.seen = task, total, 0

        def __enter__(self):
            counted.append(self)
            return self.watch

        def watch(self, count):
            self.seen += count

        def __exit__(self, *error):
            pass

    source = write_huggingface(tmp_path / "source", dtype="bfloat16", shards=2)
    size = sum(file.stat().st_size for file in source.iterdir())
    ours = convert(source, tmp_path / "ours", dtype="float32", meter=Meter)
    export(ours, tmp_path / "theirs", meter=Meter)
    from msrnn_jax.checkpoint.load import load

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(load(ours)[1]))
    assert [(meter.task, meter.total) for meter in counted] == [
        ("hashing", size),
        ("writing", weights),
        ("writing", weights),
    ]
    assert all(meter.seen == meter.total for meter in counted)
    with unseen("nothing", 0) as watch:
        watch(1)


def test_bars_are_drawn_on_a_terminal(tmp_path):
    source = write_huggingface(tmp_path / "source")
    command = [sys.executable, "-m", "convert", str(source)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    ours, theirs = pty.openpty()
    with subprocess.Popen([*command, str(tmp_path / "two")], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 65536):
                shown += block
        except OSError:  # on Linux, the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"hashing .*\d+\.\d/\d+\.\d KiB", drawn), drawn
    assert re.search(r"writing .*(\d+\.\d)/\1 KiB", drawn), drawn
