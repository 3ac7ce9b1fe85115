"""Other people's LLaMA-family checkpoints, turned into ours.

`python -m convert SRC DST` on the command line, `convert(source, destination)` in Python. Nothing here
runs code that comes with a checkpoint: no pickle is read, no module is imported from it.
"""

from .conversion import convert

__all__ = ["convert"]
