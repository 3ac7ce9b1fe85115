"""How commands open a checkpoint."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msrnn_jax.conversation import Model


def open_model(checkpoint: str, dtype: str | None = None) -> "Model":
    """Config, weights and tokenizer of a checkpoint; what is compiled for them from now on is kept for next time."""
    from msrnn_jax.cache import keep_compilations
    from msrnn_jax.checkpoint import load
    from msrnn_jax.conversation import Model
    from msrnn_jax.tokenizer import load_tokenizer

    keep_compilations()
    tokenizer = load_tokenizer(checkpoint)
    config, params = load(checkpoint, dtype=dtype)
    return Model(config, params, tokenizer)
