"""A folder that appears complete or not at all: where it may, whether there is room, and what killed makers leave."""

import contextlib
import glob
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator

from filelock import FileLock, Timeout

from msrnn_jax.record import folder_above, try_folder
from msrnn_jax.sizes import spell_bytes

NEW, OLD, LOCK = "new", "old", ".lock"


@contextlib.contextmanager
def making(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `path` that becomes it at the end, replacing what is there, or leaves no trace.

    Killed at any moment, the process leaves `path` absent or complete, and a hidden folder beside it that the next
    call of `recover` or `making` for the same path removes. The lock tells it from one whose maker is alive.
    """
    recover(path)
    work = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    lock = work.with_name(work.name + LOCK)
    try:
        with FileLock(lock):
            try:
                (work / NEW).mkdir(parents=True)
                yield work / NEW
                _put(work, path)
            finally:
                remove(work)
    finally:
        lock.unlink(missing_ok=True)


def recover(path: pathlib.Path) -> None:
    """Clears what killed makers of `path` left.

    If one died between moving the old folder away and moving the new one in, the old one is put back.
    """
    for lock in path.parent.glob(f".{glob.escape(path.name)}.*{LOCK}"):
        work = lock.with_name(lock.name.removesuffix(LOCK))
        with contextlib.suppress(Timeout, OSError):
            with FileLock(lock, timeout=0):
                if (work / OLD).exists() and not os.path.lexists(path):
                    (work / OLD).rename(path)
                remove(work)
            lock.unlink(missing_ok=True)


def remove(folder: pathlib.Path) -> None:
    """Removes a folder, also while threads of a failed save still write into it."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _put(work: pathlib.Path, path: pathlib.Path) -> None:
    if os.path.lexists(path):
        path.rename(work / OLD)
    try:
        (work / NEW).rename(path)
    except BaseException:
        if (work / OLD).exists():
            (work / OLD).rename(path)
        raise


def check_destination(path: pathlib.Path, overwrite: bool, is_ours: Callable[[pathlib.Path], bool], what: str) -> None:
    """Refuses to write over anything but what `is_ours` or an empty folder, and that unless asked to.

    Args:
      what: such a folder is called in errors.
    """
    parent = folder_above(path)
    try:
        try_folder(parent)
    except OSError:
        raise ValueError(f"{str(path)!r} cannot be made: {str(parent)!r} is no folder that can be written to") from None
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise ValueError(f"{str(path)!r} exists already; choose another path or overwrite it (--force, overwrite=True)")
    if path.is_symlink() or not path.is_dir() or not (is_ours(path) or not any(path.iterdir())):
        raise ValueError(f"{str(path)!r} exists and is no {what}, so it is not replaced")


def check_space(path: pathlib.Path, needed: int) -> None:
    """Refuses to begin what the disk of `path` has no room for.

    Args:
      needed: bytes, before compression.
    """
    folder = path.absolute() if path.is_dir() else folder_above(path)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{str(path)!r} needs {spell_bytes(needed)}, but {spell_bytes(free)} are free on its disk")
