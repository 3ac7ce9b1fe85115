"""Arrays that a policy reads from a file."""

import functools
import os

import numpy as np


def read_arrays(kind: str, path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file, and the text that is kept with them.

    Args:
      kind: what the file is, for errors.

    Raises:
      ValueError: where it cannot be read.
    """
    try:
        about = os.stat(path)
        return _load(path, about.st_mtime_ns, about.st_size)
    except Exception as error:  # safetensors raises its own
        raise ValueError(f"{kind} {path!r} cannot be read: {error}") from None


@functools.lru_cache(maxsize=8)
def _load(path: str, changed: int, size: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import safetensors

    del changed, size
    with safetensors.safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
