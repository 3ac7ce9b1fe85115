"""A folder that appears complete or not at all: where it may, whether there is room, and what killed makers leave."""

import contextlib
import os
import pathlib
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from filelock import FileLock, Timeout

from msrnn_jax.io.atomic import folder_above, try_folder
from msrnn_jax.io.units import spell_bytes

NEW, OLD, LOCK = "new", "old", ".lock"


class FolderKind(NamedTuple):
    """What may be replaced by its like."""

    name: str  # for errors
    fits: Callable[[pathlib.Path], bool]  # whether a folder is one
    check_path: Callable[[pathlib.Path], None] = lambda path: None  # refuses where it cannot be written


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path, kind: FolderKind, overwrite: bool) -> Iterator[pathlib.Path]:
    """A temporary folder beside `path` that becomes it at the end, replacing what is there, or leaves no trace.

    Missing parents are made.

    Killed at any moment, the process leaves `path` absent or complete, and a hidden folder beside it that the next
    call of `recover` or `atomic_folder` for the same path removes. The lock tells it from one whose maker is alive.

    Raises:
      ValueError: as `check_destination`, before and, since others may write there meanwhile, after.
    """
    check_and_recover(path, kind, overwrite)
    work = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    lock = work.with_name(work.name + LOCK)
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock):
            try:
                (work / NEW).mkdir(parents=True)
                yield work / NEW
                check_destination(path, kind, overwrite)
                if os.path.lexists(path):
                    path.rename(work / OLD)
                (work / NEW).rename(path)
            finally:
                _clear(work, path)
    finally:
        if not work.exists():  # by it the next one finds what an interrupted clearing left
            lock.unlink(missing_ok=True)


def check_and_recover(path: pathlib.Path, kind: FolderKind, overwrite: bool) -> None:
    """`recover`, then `check_destination`: what is there to be looked at before long work for `path` begins."""
    recover(path)
    check_destination(path, kind, overwrite)


def recover(path: pathlib.Path) -> None:
    """Clears what killed makers of `path` left.

    If one died between moving the old folder away and moving the new one in, the old one is put back.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(LOCK)}")  # of no longer name, such as NAME.2
    if not path.parent.is_dir():
        return
    for lock in path.parent.iterdir():
        if not ours.fullmatch(lock.name):
            continue
        with contextlib.suppress(Timeout, OSError):
            with FileLock(lock, timeout=0):
                _clear(lock.with_name(lock.name.removesuffix(LOCK)), path)
            lock.unlink(missing_ok=True)


def _clear(work: pathlib.Path, path: pathlib.Path) -> None:
    """Removes a maker's folder; the old one in it goes back first, unless the new one has taken its place."""
    if os.path.lexists(work / OLD) and not os.path.lexists(path):
        (work / OLD).rename(path)
    remove(work)


def remove(folder: pathlib.Path) -> None:
    """Removes a folder, also while threads of a failed save still write into it."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def check_destination(path: pathlib.Path, kind: FolderKind, overwrite: bool) -> None:
    """Refuses to write over anything but one of a kind or an empty folder, and that unless asked to."""
    parent = folder_above(path)
    try:
        try_folder(parent)
    except OSError:
        raise ValueError(f"{str(path)!r} cannot be made: {str(parent)!r} is no folder that can be written to") from None
    kind.check_path(path.absolute())
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise ValueError(f"{str(path)!r} exists already; choose another path or overwrite it (--force, overwrite=True)")
    if path.is_symlink() or not path.is_dir() or not (kind.fits(path) or not any(path.iterdir())):
        raise ValueError(f"{str(path)!r} exists and is no {kind.name}, so it is not replaced")


def check_space(path: pathlib.Path, needed: int) -> None:
    """Refuses to begin what the disk of `path` has no room for.

    Args:
      needed: bytes, before compression.
    """
    folder = path.absolute() if path.is_dir() else folder_above(path)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{str(path)!r} needs {spell_bytes(needed)}, but {spell_bytes(free)} are free on its disk")
