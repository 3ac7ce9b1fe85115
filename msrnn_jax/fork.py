"""One state, many futures."""

from typing import TypeVar

import jax
import jax.numpy as jnp

from msrnn_jax.checks import Count, whole

Tree = TypeVar("Tree")


def fork(state: Tree, count: Count) -> Tree:
    """Equal states side by side, to be continued in different ways by `vmap`.

    Args:
      state: a `MultiState`, or any tree of arrays.
      count: how many, from 1; static.

    Returns:
      The same tree with leaves [count, ...].
    """
    count = whole("count", count, 1)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), state)
