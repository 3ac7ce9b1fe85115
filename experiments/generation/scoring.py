"""What is said of a story: how the full model would have foreseen it, and how much it repeats itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

import msrnn_jax as ms
from experiments.model import Model
from msrnn_jax.evaluate import losses_of
from msrnn_jax.extend import read
from msrnn_jax.llama import unembed
from msrnn_jax.params import Params
from msrnn_jax.slots import init_state


def foreseen(model: Model, prompt: Int[np.ndarray, " P"], story: Int[np.ndarray, " M"], room: int) -> dict[str, float]:
    """Reads a prompt and its story with full attention, whatever the policy that wrote it.

    Args:
      room: tokens that both are padded to, at least as many as they have.

    Returns:
      Sums over the story's tokens: `nats`, -log p of each, and `agreement`, of how many nothing else was likelier.
    """
    text = np.zeros(room + 1, np.int32)
    length = len(prompt) + len(story)
    text[:length] = np.concatenate([prompt, story])
    kept = _read(model.config, model.params, jnp.asarray(text), jnp.asarray(length - 1, jnp.int32))
    mine = slice(len(prompt) - 1, length - 1)  # the story's first token is foreseen by the prompt's last
    return {name: float(np.asarray(leaf)[mine].sum(dtype=np.float64)) for name, leaf in kept.items()}


@jax.jit
def _read(config: ms.Config, params: Params, text: Int[Array, " T"], length: Int[Array, ""]) -> dict[str, Array]:
    empty = init_state(config, ms.Full(), text.shape[0] - 1)
    beside = {"targets": text[1:]}
    return read(config, ms.Full(), params, empty, text[:-1], beside, length, reader=_read_both)[2]


def _read_both(config: ms.Config, params: Params, x: Float[Array, "C D"], beside: dict[str, Any]) -> dict[str, Array]:
    logits, targets = unembed(config, params, x), beside["targets"]
    likeliest = jnp.argmax(logits, axis=-1) == targets
    known = ~jnp.isnan(jnp.max(logits, axis=-1))
    return {"nats": losses_of(logits, targets), "agreement": jnp.where(known, likeliest.astype(jnp.float32), jnp.nan)}


def distinct(story: Int[np.ndarray, " M"], size: int) -> float | None:
    """The share of a story's n-grams that are different ones (Li et al., 2016, arXiv:1510.03055), of tokens.

    Args:
      size: n.

    Returns:
      None for a story that has fewer than n tokens.
    """
    grams = list(zip(*(story[start:].tolist() for start in range(size)), strict=False))
    return len(set(grams)) / len(grams) if grams else None


def same_until(first: Int[np.ndarray, " M"], second: Int[np.ndarray, " N"]) -> int:
    """How many tokens two stories begin with alike."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size
