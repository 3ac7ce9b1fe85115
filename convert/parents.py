"""Missing folders on the way to what is written."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def parents(path: Path) -> Iterator[None]:
    """Makes the missing parents of a path, and removes them again if what follows fails."""
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:  # the innermost is first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
