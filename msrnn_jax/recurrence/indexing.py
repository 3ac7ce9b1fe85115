"""Reading and writing rows of arrays by number, narrow floats as the bits they are."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int

Move = Callable[[Any, Any], Array]  # arrays of one dtype and indices, to an array of elements of the arrays


def as_bits(move: Move) -> Move:
    """The same function, on CPU for arrays of bfloat16 and other narrow floats done on their bits.

    XLA for CPU gathers and scatters no narrow floats: it makes the whole array float32 first, an embedding or a
    cache, and back again. XLA for TPU does, and would copy the whole array to see its bits. Derivatives are those of
    `move`, which must be linear in its arrays.
    """

    @jax.custom_jvp
    def on_bits(arrays: Any, indices: Any) -> Array:
        dtype = _dtype(arrays)
        bits = jnp.dtype(f"uint{8 * dtype.itemsize}")
        arrays = jax.tree.map(lambda leaf: lax.bitcast_convert_type(leaf, bits), arrays)
        return lax.bitcast_convert_type(move(arrays, indices), dtype)

    @on_bits.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        return on_bits(*primals), move(tangents[0], primals[1])

    @functools.wraps(move)
    def moved(arrays: Any, indices: Any) -> Array:
        dtype = _dtype(arrays)
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize >= 4:
            return move(arrays, indices)
        return lax.platform_dependent(arrays, indices, cpu=on_bits, default=move)

    return moved


def _dtype(arrays: Any) -> jnp.dtype:
    (dtype,) = {leaf.dtype for leaf in jax.tree.leaves(arrays)}
    return dtype


def expand_like(x: Array, leaf: Array) -> Array:
    """An array over the first axes of a leaf, with as many axes as the leaf."""
    return x.reshape(x.shape + (1,) * (leaf.ndim - x.ndim))


@as_bits
def take_rows(table: Array, index: Int[Array, "*T"]) -> Array:
    """table[index]: [*T, ...] from [V, ...]."""
    return jnp.asarray(table)[index]


@as_bits
def take_slots(leaf: Array, source: Int[Array, "#K S"]) -> Array:
    """For every row the slots named by `source`, which must exist: [K, S, ...] from [K, M, ...]."""
    return jnp.take_along_axis(leaf, expand_like(source, leaf), axis=1, mode="promise_in_bounds")


@as_bits
def write_slots(arrays: tuple[Array, Array], slots: Int[Array, "#K *T"]) -> Array:
    """Leaves [K, S, ...] with rows [K, *T, ...] of the same dtype in the slots named; what has none is left out.

    An indexed write for one shared slot too: a slice update, the other spelling, makes XLA copy the whole cache under
    `vmap` over a batch of one. Head by head under `vmap`, and not by an index of heads: so a cache whose heads are
    shared out among devices is written where it is.
    """
    leaf, rows = arrays
    slots = jnp.broadcast_to(slots, leaf.shape[:1] + slots.shape[1:])
    return jax.vmap(lambda own, place, new: own.at[place].set(new, unique_indices=True, mode="drop"))(leaf, slots, rows)
