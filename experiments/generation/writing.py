"""Stories of several prompts at once, each with draws of its own, the same under every policy."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

import msrnn_jax as ms
from experiments.generation.prompts import Prompt
from experiments.model import Model
from msrnn_jax.extend import CHUNK
from msrnn_jax.policies import Policy
from msrnn_jax.sampling import Sampler

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
