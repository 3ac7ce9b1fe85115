"""What every experiment writes: one JSON with its settings, where it ran, and the numbers."""

import dataclasses
import datetime
import os
import pathlib
import subprocess
from typing import Any

from msrnn_jax.record import provenance, write_json


def check_out(path: pathlib.Path) -> None:
    """Refuses, before any work, a result path that could not be written after it."""
    if path.suffix != ".json":
        raise ValueError(f"out is {str(path)!r}; it must end in .json")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    picture = path.with_suffix(".png")
    if path.is_dir() or picture.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"out is {str(path)!r}; it and its .png must be files in a folder that can be written to")


def write_result(path: str | pathlib.Path, name: str, settings: Any, numbers: dict[str, Any]) -> None:
    """Writes the result of experiment `name` atomically; `settings` is its frozen dataclass."""
    result = {
        "experiment": name,
        "settings": dataclasses.asdict(settings),
        **provenance(),
        "commit": commit(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **numbers,
    }
    write_json(path, result)


def commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it, or `unknown` outside git."""
    folder = pathlib.Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
