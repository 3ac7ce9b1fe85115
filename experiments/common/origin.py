"""What every experiment writes: one JSON with its settings, where it ran, and the numbers."""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import platform
import subprocess
from typing import Any

from msrnn_jax.devices.memory import total_memory
from msrnn_jax.io.atomic import check_writable, write_json
from msrnn_jax.io.provenance import provenance
from msrnn_jax.io.units import spell_bytes


def check_out(path: pathlib.Path) -> None:
    """Refuses, before any work, a result path that could not be written after it."""
    if path.suffix != ".json":
        raise ValueError(f"out is {str(path)!r}; it must end in .json")
    for file in (path, path.with_suffix(".png")):
        check_writable("out", file)


def write_result(path: str | pathlib.Path, name: str, settings: Any, numbers: dict[str, Any]) -> None:
    """Writes the result of experiment `name` atomically; `settings` is its frozen dataclass."""
    result = {
        "experiment": name,
        "settings": dataclasses.asdict(settings),
        **provenance(),
        "hardware": hardware(),
        "commit": commit(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **numbers,
    }
    write_json(path, result)


def hardware() -> str:
    """Processor, cores that this process may use, and memory, for reading; an accelerator is JAX's `device`."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux alone
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    room, _ = total_memory()
    return f"{name}, {cores} cores, {spell_bytes(room)}"


def commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it, or `unknown` outside git."""
    folder = pathlib.Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
