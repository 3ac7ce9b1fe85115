"""A decision that is made once for a whole batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jaxtyping import Bool

Branch = Callable[[Bool[Array, "..."], Any], Any]  # of the mask and arguments, both to results of the same shapes


def where_any(mask: Bool[Array, "..."], some: Branch, none: Branch, given: Any) -> Any:
    """`some(mask, given)` if any of the mask holds, else `none(mask, given)`.

    `lax.cond` under `vmap` runs both branches for every row. Here one decision is made for all rows of a batch; so
    `some` must leave alone what the mask leaves out. No gradient goes through it.
    """

    @custom_vmap
    def decide(mask: Any, given: Any) -> Any:
        return lax.cond(mask.any(), some, none, mask, given)

    @decide.def_vmap
    def _(size: int, batched: Any, mask: Any, given: Any) -> tuple[Any, Any]:
        mask, given = jax.tree.map(
            lambda leaf, has_rows: leaf if has_rows else jnp.broadcast_to(leaf, (size, *jnp.shape(leaf))),
            (mask, given),
            tuple(batched),
        )
        made = where_any(mask, jax.vmap(some), jax.vmap(none), given)
        return made, jax.tree.map(lambda leaf: True, made)

    return decide(mask, lax.stop_gradient(given))
