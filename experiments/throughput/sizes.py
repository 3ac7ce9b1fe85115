"""Bytes by arithmetic: of weights, of a row's state, of what a step needs besides, and how many rows fit."""

from typing import Any

import jax
import jax.numpy as jnp

import msrnn_jax as ms
from msrnn_jax.layers import wide

GIB = 2**30


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, in a tree."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def state_bytes(config: ms.Config, policy: ms.Policy, budget: int, **settings: Any) -> int:
    """Bytes of one multi-state, never made; `settings` are those of `init_state`."""
    return tree_bytes(jax.eval_shape(lambda: ms.init_state(config, policy, budget, **settings)))


def working_bytes(config: ms.Config, policy: ms.Policy, budget: int) -> int:
    """What a step needs for one row beside its state, at most.

    Logits and the residual stream; for one layer at a time either the row's attention over its slots (products,
    mask, probabilities, and as much again for what the policy makes of them) or the MLP's middle; and positions
    and statistics of all layers once more, since unlike keys and values they are not written in place.
    """
    state = jax.eval_shape(lambda: ms.init_state(config, policy, budget))
    again = sum(tree_bytes((layer.positions, layer.stats)) for layer in state.layers)
    attention = 4 * config.num_heads * (budget + 1)
    middle = 3 * config.mlp_dim
    return again + wide(config.dtype).itemsize * (config.vocab_size + config.model_dim + max(attention, middle))


def largest_batch(memory: int, weights: int, row: int) -> int:
    """How many rows of so many bytes fit beside the weights."""
    return max(0, (memory - weights) // row)
