"""The model that an experiment runs, with what its results say of it."""

import datetime
from typing import Any, NamedTuple

from msrnn_jax.cache import keep_compilations
from msrnn_jax.checkpoint import fingerprint, load
from msrnn_jax.config import Config
from msrnn_jax.params import Params
from msrnn_jax.record import json_hash
from msrnn_jax.tokenizer import Tokenizer, load_tokenizer

DATE = datetime.datetime(2024, 1, 11)  # that chat templates write: results of two days must not differ


class Model(NamedTuple):
    """A checkpoint in memory."""

    config: Config
    params: Params
    tokenizer: Tokenizer
    about: dict[str, Any]  # what every number depends on

    @property
    def context(self) -> int:
        """Tokens of a segment: the paper's 4,096, or what the model was trained with if that is less."""
        return min(4096, self.config.max_length)


def open_model(checkpoint: str, dtype: str | None = None) -> Model:
    """Reads a checkpoint and its tokenizer.

    Raises:
      ValueError: for a checkpoint that cannot be used.
    """
    keep_compilations()
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.date = DATE
    config, params = load(checkpoint, dtype=dtype)
    about = {"model_sha256": fingerprint(params), "config_sha256": _beside(config, tokenizer), "dtype": config.dtype}
    return Model(config, params, tokenizer, about)


def _beside(config: Config, tokenizer: Tokenizer) -> str:
    """A hash of what else of a checkpoint changes numbers: how it computes, reads and writes text, and where it stops.

    Not the dtype, which stands beside it.
    """
    text = [tokenizer.backend.to_str(), tokenizer.bos, tokenizer.stop, tokenizer.template, tokenizer.names]
    return json_hash([{**config.to_dict(), "dtype": None}, text])
