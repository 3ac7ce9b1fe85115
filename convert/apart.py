"""Whether what is read would be replaced by what is written."""

import os
from pathlib import Path


def check_apart(source: Path, destination: Path) -> None:
    """Refuses a source that is the destination, or lies in it."""
    if not source.exists():
        return
    theirs, ours = (Path(os.path.realpath(path)) for path in (source, destination))
    if theirs == ours:
        raise ValueError(f"the source and the destination are the same: {source}")
    if theirs.is_relative_to(ours):
        raise ValueError(f"the source {source} lies inside the destination {destination}, which would be replaced")
