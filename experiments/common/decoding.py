"""Text that goes on from states, each row by itself."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

import msrnn_jax as ms
from experiments.common.model import Model
from msrnn_jax.generation.decoding import decode, make_rules, start_decoding
from msrnn_jax.policies import Policy
from msrnn_jax.state import MultiState


def continue_greedily(
    model: Model, policy: Policy, states: MultiState, logits: Float[jax.Array, "B V"], count: int
) -> list[list[int]]:
    """The likeliest next tokens of every row, up to a token that ends a text, that one included.

    Args:
      states: [B, ...], after what is continued.
      logits: of the first token that is written.
      count: tokens of a row, at most.
    """
    keys = jax.random.split(jax.random.key(0), logits.shape[0])  # never drawn from
    draft, rules = start_decoding(states, logits), make_rules(keys, model.tokenizer.stop, count)
    tokens, draft = decode(model.config, policy, model.params, draft, rules, count, ms.Greedy(), count=count)
    return [row[:length].tolist() for row, length in zip(np.asarray(tokens), np.asarray(draft.lengths), strict=True)]


def stops(model: Model, tokens: Sequence[int]) -> bool:
    """Whether the last of them ends a text."""
    return bool(tokens) and tokens[-1] in model.tokenizer.stop
