"""Conversion and export killed at many points: the destination is absent or complete, and a second run succeeds."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from checkpoints import write_huggingface

ROOT = pathlib.Path(__file__).parents[2]
POINTS = 5

# Runs work in forks of a process that has imported everything and computed nothing. One that is to die does so at the
# n-th time that Python touches the file system; an audit hook sees that.
PROGRAM = """
import json, os, pathlib, signal, sys
import jax, orbax.checkpoint, numpy
from convert import convert
from convert.huggingface.export import export
from msrnn_jax.checkpoint.identity import fingerprint
from msrnn_jax.checkpoint.load import load
from msrnn_jax.io import folders

make = {"convert": convert, "export": export}[sys.argv[1]]
source, folder, force, points = sys.argv[2], pathlib.Path(sys.argv[3]), sys.argv[4] == "over", int(sys.argv[5])
path = folder / "made"
WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.replace", "shutil.rmtree"}


def in_fork(work):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        code = work()
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr)
        code = 99
    os._exit(code or 0)


def count_events(kill_at):
    seen = [0]
    def hook(event, arguments):
        if event in WATCHED:
            seen[0] += 1
            if seen[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    return seen


def state():
    "What a reader finds: absent, or what complete folder."
    if not path.exists():
        return "absent"
    found = {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    names = {name.name for name in found}
    if sys.argv[1] == "export":
        assert {"config.json", "generation_config.json", "model.safetensors"} <= names, names
        return "complete " + str(len(found[pathlib.Path("model.safetensors")]))
    assert {"config.json", "source.json"} <= names, names
    def check():
        config, params = load(path)
        (folder / "fingerprint").write_text(fingerprint(config, params))
    assert in_fork(check) == 0
    return "complete " + (folder / "fingerprint").read_text()


def first():
    seen = count_events(0)
    make(source, path)
    (folder / "events").write_text(str(seen[0]))


assert in_fork(first) == 0
complete, events = state(), int((folder / "events").read_text())
others = {"events", "fingerprint", "made"}
results = []
for point in range(points):
    kill_at = 1 + point * (events - 1) // (points - 1)
    if not force:
        assert in_fork(lambda: folders.remove(path)) == 0
    def die():
        count_events(kill_at)
        make(source, path, force=force)
    status = in_fork(die)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    found = state()
    left = sorted(file.name for file in folder.iterdir() if file.name not in others)
    if force:
        folders.recover(path)
        assert state() == complete, (kill_at, state())  # never lost
    status = in_fork(lambda: make(source, path, force=path.exists()) and 0)
    after = state()
    tidy = sorted(file.name for file in folder.iterdir()) == sorted(others & set(os.listdir(folder)))
    results.append([kill_at, killed, found, bool(left), status, after == complete, tidy])
print(json.dumps({"events": events, "complete": complete, "results": results}))
"""


def run(tmp_path, work: str, source: pathlib.Path, over: bool) -> dict:
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", PROGRAM, work, str(source), str(folder), "over" if over else "new", str(POINTS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("work", "over"), [("convert", True), ("export", False)], ids=["convert over", "export new"])
def test_killed_anywhere_the_destination_is_absent_or_complete(tmp_path, work, over):
    source = write_huggingface(tmp_path / "source")
    if work == "export":
        from convert import convert

        source = convert(source, tmp_path / "ours")
    found = run(tmp_path, work, source, over)
    for kill_at, killed, state, left, status, same, tidy in found["results"]:
        assert killed, f"event {kill_at} of {found['events']} was not reached"
        assert state in ("absent", found["complete"])
        assert (status, same, tidy) == (0, True, True), (kill_at, left)
    assert any(left for _, _, _, left, *_ in found["results"])  # some were killed in the middle
