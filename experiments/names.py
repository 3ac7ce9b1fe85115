"""Names of files without the folders that they are in."""

import re


def last_part(path: str) -> str:
    """The name of a file or folder, whichever system's path it is."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
