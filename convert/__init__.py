"""Other people's LLaMA-family checkpoints, turned into ours.

`python -m convert SRC DST` on the command line, `convert(source, destination)` in Python. Nothing here
runs code that comes with a checkpoint: no pickle is read, no module is imported from it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversion import convert

__all__ = ["convert"]


def __getattr__(name: str) -> Any:
    """`convert` at its first use, so that the command line can answer before JAX is imported."""
    if name != "convert":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .conversion import convert

    return convert
