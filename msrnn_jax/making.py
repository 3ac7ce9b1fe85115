"""A folder that appears complete or not at all, and what is left of one whose maker was killed."""

import contextlib
import glob
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Iterator

from filelock import FileLock, Timeout

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
