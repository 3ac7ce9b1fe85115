"""Stories of several prompts at once, each with draws of its own, the same under every policy."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

import msrnn_jax as ms
from experiments.common.model import Model
from experiments.generation.prompts import Prompt
from msrnn_jax.evaluation.losses import losses_of
from msrnn_jax.generation.sampling import Sampler
from msrnn_jax.model.extend import CHUNK, scan_chunks
from msrnn_jax.model.llama import unembed
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.slots import init_state

Story = Int[np.ndarray, " M"]  # its tokens, a stop token included


class Shape(NamedTuple):
    """What programs are compiled for: the same for all stories of a run."""

    rows: int  # stories that are written at once
    width: int  # tokens that prompts are padded to
    new: int  # tokens that the longest story may have

    @property
    def room(self) -> int:
        """Tokens of a prompt and its story, at most, in whole chunks."""
        return -(-(self.width + self.new) // CHUNK) * CHUNK


class Manner(NamedTuple):
    """How stories are written."""

    shape: Shape
    context: int  # tokens of a prompt and its story, at most
    sampler: Sampler
    seed: int
    mode: str  # in which prompts are read


def shape_of(prompts: Sequence[Prompt], rows: int, new: int, context: int) -> Shape:
    """The shape that all prompts fit into.

    Args:
      new: tokens of a story, at most; 0: as many as the context has room for.
    """
    lengths = [len(prompt.tokens) for prompt in prompts]
    return Shape(min(rows, len(prompts)), -(-max(lengths) // CHUNK) * CHUNK, new or context - min(lengths))


def write_stories(
    model: Model, policy: Policy, budget: int | None, prompts: Sequence[Prompt], manner: Manner
) -> list[Story]:
    """Writes a story for every prompt, until a stop token, or as long as it may be.

    What a row draws depends on the seed and its prompt alone, so two policies write the same until one of them has
    forgotten something that matters.

    Args:
      budget: None: room for everything.
      prompts: at most as many as the shape has rows; the last one is repeated until there are so many, so that every
        batch runs through the same program.
    """
    shape = manner.shape
    rows = [*prompts, *[prompts[-1]] * (shape.rows - len(prompts))]
    padded = np.zeros((shape.rows, shape.width), np.int32)
    for row, prompt in zip(padded, rows, strict=True):
        row[: len(prompt.tokens)] = prompt.tokens
    tokens, lengths, _ = ms.generate(
        model.config,
        policy,
        model.params,
        model.rows(jnp.asarray(padded)),
        [len(prompt.tokens) for prompt in rows],
        budget=shape.room if budget is None else budget,
        max_new_tokens=shape.new,
        sampler=manner.sampler,
        key=jnp.stack([_key(manner.seed, prompt) for prompt in rows]),
        stop=model.tokenizer.stop,
        mode=manner.mode,
    )
    limits = [manner.context - len(prompt.tokens) for prompt in rows]
    counts = np.minimum(np.asarray(lengths), limits)
    stories = [row[:count] for row, count in zip(np.asarray(tokens), counts, strict=True)]
    return stories[: len(prompts)]


def _key(seed: int, prompt: Prompt) -> jax.Array:
    """Of the seed and what the prompt is, wherever it stands among others."""
    key = jax.random.key(seed)
    for part in (prompt.sha256[:8], prompt.sha256[8:]):
        key = jax.random.fold_in(key, int(part, 16))
    return key


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
    return scan_chunks(config, ms.Full(), params, empty, text[:-1], beside, length, reader=_read_both)[2]


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
