"""The tests of a tree, run in copies of it that hold a fault, and what is known of them from one run to the next."""

import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import coverage
from mutant_sites import Mutant, statement

MEMORY = 8 * 2**30  # bytes that a process may allocate, since a fault may ask for any number
PATIENCE = 60, 5  # a test file takes too long at so many seconds of a processor, and so many times what is usual
IDLE = 10  # and at so many times that by the clock, which on a busy machine says little
NO_TESTS = 5  # pytest's status where every test is left out, as those that are exhaustive
COVERAGE = """[run]
parallel = true
patch = subprocess, _exit
data_file = {folder}/lines
source = {sources}
disable_warnings = no-data-collected, module-not-measured, module-not-imported, module-not-python
"""
# Most programs do not change with a fault, and half of the time goes into compiling them.
KEEP = """import sys

def pytest_configure():
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_compilation_cache", True)
"""


class Covered(NamedTuple):
    """What a test file does without a fault."""

    passed: bool  # but for the tests in `failing`
    failing: list[str]
    cpu: float  # seconds of a processor: a clock would count what else the machine does
    lines: dict[str, set[int]]  # by path


class Run(NamedTuple):
    """Of a test file."""

    status: int | None  # None: it took too long
    cpu: float
    failed: list[str]  # pytest's lines
    note: str  # the first of them, else the last line


class Journal:
    """JSON lines that survive a kill, of which the last one may be torn."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.lock = path, threading.Lock()
        written = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        self.rows = [json.loads(line) for line in written]
        path.write_bytes(b"".join(line + b"\n" for line in written))

    def add(self, row: dict) -> None:
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            self.rows.append(row)


class Copy:
    """A copy of the tree, in which one test file runs at a time."""

    def __init__(self, root: Path, folder: Path, names: list[str], results: Path):
        self.tree, self.folder = folder / "tree", folder
        self.running: int | None = None
        self.stopped, self.writes = False, 0
        for name in names:
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, self.tree / name)
        subprocess.run(["git", "init", "--quiet", str(self.tree)], check=True)
        downloads = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msrnn_jax"
        if downloads.exists():  # a fault must not spoil them
            shutil.copytree(downloads, folder / "cache" / "msrnn_jax")
        (folder / "beside").mkdir(parents=True)
        (folder / "beside" / "keep_compilations.py").write_text(KEEP)
        # The package is installed from the tree, and the module that finds it there has a twin that finds the copy.
        for place in map(Path, filter(None, sys.path)):
            for finder in place.glob("__editable__*_finder.py"):
                text = finder.read_text(encoding="utf-8").replace(str(root), str(self.tree))
                (folder / "beside" / finder.name).write_text(text, encoding="utf-8")
        of_a_test = "PYTEST_XDIST", "PYTEST_CURRENT"  # that has started this
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(of_a_test)} | {
            "PYTHONPATH": str(folder / "beside"),
            "TMPDIR": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(results / "compiled"),
            "PYTHONDONTWRITEBYTECODE": "",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def write(self, name: str, source: str) -> None:
        """At a time of its own, since Python takes a file of the same size and time for what it has compiled."""
        self.writes += 1
        (self.tree / name).write_text(source, encoding="utf-8")
        os.utime(self.tree / name, (self.writes, self.writes))

    def test(self, name: str, *options: str, tracer: tuple[str, ...] = (), most: float | None = None) -> Run:
        """Runs a test file.

        Args:
          tracer: of Python, what runs pytest.
          most: seconds of a processor that it may take; `IDLE` times as many by the clock.
        """
        if self.stopped:
            sys.exit()
        pytest = "-m pytest -q -p no:cacheprovider -p keep_compilations".split()
        with (self.folder / "output").open("w+b") as output:
            process = subprocess.Popen(
                [sys.executable, *tracer, *pytest, f"--basetemp={self.folder / 'tmp'}", *options, name],
                cwd=self.tree,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.running = process.pid
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY, MEMORY))
            if most is not None:
                resource.prlimit(process.pid, resource.RLIMIT_CPU, (int(most), int(most) + 60))
            late = threading.Event()
            timer = threading.Timer(IDLE * most if most else threading.TIMEOUT_MAX, lambda: (late.set(), self.kill()))
            timer.start()
            _, ended, usage = os.wait4(process.pid, 0)
            process.returncode = status = os.waitstatus_to_exitcode(ended)
            timer.cancel()
            self.kill()  # what it has started and left
            if self.stopped:  # it did not end by itself
                sys.exit()
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
        cpu = round(usage.ru_utime + usage.ru_stime, 1)
        failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
        note = (failed or lines[-1:] or [""])[0][:300]
        in_time = not late.is_set() and status != -signal.SIGXCPU
        return Run(status if in_time else None, cpu, failed, note)

    def kill(self) -> None:
        """Ends what runs here, and what that has started."""
        if self.running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running, signal.SIGKILL)

    def stop(self) -> None:
        """Ends what runs here, and lets nothing count that it said."""
        self.stopped = True
        self.kill()


class Measurement:
    """The tests of a tree, and what is known of them."""

    def __init__(self, root: Path, packages: list[str], results: Path):
        self.root, self.packages = root, packages
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        self.names = sorted({name for name in listed if name and (root / name).is_file()})
        self.tests = [name for name in self.names if name.startswith("tests/") and Path(name).name.startswith("test_")]
        code = [name for name in self.names if name.endswith((".py", ".toml")) and name not in self.tests]
        shared = _digest(root, [name for name in code if not name.startswith("tests/mutant")])
        self.keys = {test: f"{shared}-{_digest(root, [test])}" for test in self.tests}
        self.coverage = Journal(results / "coverage.jsonl")
        self.runs = Journal(results / "runs.jsonl")
        self.covered: dict[str, Covered] = {}

    def cover(self, test: str, copy: Copy) -> None:
        """Learns which lines a test file executes, here and in processes that it starts."""
        known = [row for row in self.coverage.rows if row["test"] == test and row["key"] == self.keys[test]]
        if not known:
            folder = copy.folder / "coverage"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            sources = ", ".join(str(copy.tree / package) for package in self.packages)
            (folder / "settings").write_text(COVERAGE.format(folder=folder, sources=sources))
            tracer = "-m", "coverage", "run", f"--rcfile={folder / 'settings'}"
            run = copy.test(test, tracer=tracer)
            if run.status not in (0, NO_TESTS):  # it may fail because it is watched
                run = copy.test(test)
            failing = [line.split(" - ")[0].split(" ", 1)[1] for line in run.failed]
            lines = defaultdict(set)
            for part in folder.glob("lines.*"):
                data = coverage.CoverageData(str(part))
                data.read()
                for file in data.measured_files():
                    lines[Path(file).relative_to(copy.tree).as_posix()].update(data.lines(file) or ())
            if run.status == NO_TESTS:
                lines.clear()  # of the import alone
            found = {path: sorted(numbers) for path, numbers in sorted(lines.items())}
            row = {"key": self.keys[test], "test": test, "passed": run.status in (0, 1, NO_TESTS), "failing": failing}
            row |= {"cpu": run.cpu, "note": run.note, "lines": found}
            self.coverage.add(row)
            known = [row]
            print(f"{test}: {run.note}", flush=True)
        row = known[-1]
        lines = {path: set(numbers) for path, numbers in row["lines"].items()}
        self.covered[test] = Covered(row["passed"], row["failing"], row["cpu"], lines)

    def order(self, mutant: Mutant) -> list[str]:
        """Test files that execute the line, first those that are quick, or are called like its file."""
        path = mutant.site.path
        lines = set(statement((self.root / path).read_text(encoding="utf-8"), mutant.site.line))
        found = [test for test, run in self.covered.items() if run.passed and run.lines.get(path, set()) & lines]
        return sorted(found, key=lambda test: self.covered[test].cpu / (1 + 2 * len(_words(test) & _words(path))))

    def judge(self, mutant: Mutant, copy: Copy, most: float) -> dict:
        """Runs test files until one fails, or `most` seconds of a processor are gone; what ran in the past counts."""
        before = {(row["test"], row["key"]): row for row in self.runs.rows if row["mutant"] == mutant.name}
        tests = self.order(mutant)
        verdict, by, spent = ("survived" if tests else "not covered"), "", 0.0
        copy.write(mutant.site.path, mutant.source)
        for test in sorted(tests, key=lambda test: (test, self.keys[test]) not in before):
            row = before.get((test, self.keys[test]))
            if row is None:
                if spent >= most:
                    verdict = "undecided"
                    break
                usual = self.covered[test]
                without = (f"--deselect={name}" for name in usual.failing)
                run = copy.test(test, "-x", *without, most=PATIENCE[0] + PATIENCE[1] * usual.cpu)
                result = {None: "timeout", 0: "passed", NO_TESTS: "passed"}.get(run.status, "failed")
                row = {"mutant": mutant.name, "test": test, "key": self.keys[test], "result": result}
                row |= {"status": run.status, "cpu": run.cpu, "note": run.note}
                self.runs.add(row)
            spent += row["cpu"]
            if row["result"] != "passed":
                verdict, by = {"failed": "killed"}.get(row["result"], "timeout"), row["note"] or test
                break
        copy.write(mutant.site.path, (self.root / mutant.site.path).read_text(encoding="utf-8"))
        print(f"{verdict:<11} {spent:5.0f} s  {mutant}\n  {by}", flush=True)
        return {"verdict": verdict, "by": by, "cpu": round(spent, 1), "tests": len(tests)}


def _words(path: str) -> set[str]:
    return set(re.findall("[a-z0-9]+", path.removesuffix(".py")))


def _digest(root: Path, names: list[str]) -> str:
    whole = hashlib.sha256()
    for name in names:
        whole.update(name.encode() + b"\0" + hashlib.sha256((root / name).read_bytes()).digest())
    return whole.hexdigest()[:12]
