"""States side by side."""

import jax
import jax.numpy as jnp

import msrnn_jax as ms


def spread(state: ms.MultiState, batch: int) -> ms.MultiState:
    """As many equal rows."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], batch, axis=0), state)
