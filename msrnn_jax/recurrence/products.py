"""Products of rows with a matrix, of one row in a way that suits XLA for CPU."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jaxtyping import Float

Product = Callable[[Float[Array, "*B R X"], Array], Float[Array, "*B R O"]]  # linear in each


def multiply_rows(product: Product, rows: Float[Array, "*B R X"], matrix: Array) -> Float[Array, "*B R O"]:
    """`product(rows, matrix)`, on CPU a single row of bfloat16 as two equal ones.

    For one row XLA for CPU widens the whole matrix to float32, in memory of its own, and takes ten times as long as for
    two. The rows of a batch under `vmap` are rows of one product with a matrix that they share.
    """
    if rows.shape[-2] > 1 or rows.dtype != jnp.bfloat16:
        return product(rows, matrix)
    return lax.platform_dependent(rows, matrix, cpu=_as_two(product), default=product)


def _as_two(product: Product) -> Product:
    def two(rows: Array, matrix: Array) -> Array:
        return product(jnp.concatenate([rows, rows], axis=-2), matrix)[..., :1, :]

    alone = custom_vmap(two)

    @alone.def_vmap
    def _(size: int, batched: Sequence[bool], rows: Array, matrix: Array) -> tuple[Array, bool]:
        of = product if size > 1 and not batched[1] else two
        return jax.vmap(of, [0 if one else None for one in batched])(rows, matrix), True

    @jax.custom_jvp
    def multiplied(rows: Array, matrix: Array) -> Array:
        return alone(rows, matrix)

    @multiplied.defjvp
    def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        (rows, matrix), (moved, turned) = primals, tangents
        return multiplied(rows, matrix), product(moved, matrix) + product(rows, turned)

    return multiplied
