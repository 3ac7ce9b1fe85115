"""What a reader of somebody's format returns: a checkpoint found and checked, its weights still in its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from msrnn_jax.config import Config

from .checkpoint_files import TokenizerFacts
from .tensors import Stored


class Source(NamedTuple):
    """A checkpoint of which only headers and small files have been read."""

    config: Config  # its dtype is the one to convert to
    names: Mapping[str, str]  # of stored tensors, by field of `Params` and `LayerParams`
    stored: Mapping[str, Stored]  # all tensors, by stored name
    facts: TokenizerFacts
    files: Mapping[str, Path]  # all that was read, by name relative to the source
