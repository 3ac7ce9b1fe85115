"""What a reader of somebody's format returns: a checkpoint found and checked, its weights still in its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from msrnn_jax.config import Config

from .tensors import Stored


class TokenizerFacts(NamedTuple):
    """What a source says about its tokenizer."""

    tokenizer: str | None  # JSON of the `tokenizers` library
    bos_token_id: int | None
    eos_token_ids: list[int]  # all that end a text
    names: Mapping[str, str]  # what chat templates write for `bos_token`, `unk_token` and the like
    chat_template: str | None


class Source(NamedTuple):
    """A checkpoint of which only headers and small files have been read."""

    config: Config  # its dtype is the one to convert to
    names: Mapping[str, str]  # of stored tensors, by field of `Params` and `LayerParams`
    stored: Mapping[str, Stored]  # all tensors, by stored name
    facts: TokenizerFacts
    files: Mapping[str, Path]  # all that was read, by name relative to the source
