"""Products of one bfloat16 row, which are taken twice on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msrnn_jax.model.layers import multiply
from msrnn_jax.recurrence.attention import attention_logits

SIZES = (64, 96)  # of a row and of what comes of it
BATCHES = [((), ()), ((1,), ()), ((3,), ()), ((2, 3), ()), ((3,), (3,)), ((), (3,))]  # of rows, of matrices


def numbers(shape, seed):
    """Small whole numbers, of which sums are exact."""
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, shape), jnp.bfloat16)


def over_batches(of, rows, matrices):
    """`of` under one `vmap` for every axis of a batch."""
    for axis in reversed(range(max(len(rows), len(matrices)))):
        of = jax.vmap(of, (0 if axis < len(rows) else None, 0 if axis < len(matrices) else None))
    return jax.jit(of)


@pytest.mark.parametrize(("rows", "matrices"), BATCHES, ids=str)
def test_products_of_rows_are_those_of_numpy(rows, matrices):
    x, weight = numbers((*rows, SIZES[0]), 0), numbers((*matrices, *SIZES), 1)
    wide = np.asarray(x, np.float64)[..., None, :] @ np.asarray(weight, np.float64)
    found = over_batches(multiply, rows, matrices)(x, weight)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, wide[..., 0, :])
    query, keys = x[..., None, None, :], jnp.swapaxes(weight, -1, -2)[..., None, :, :]  # of one KV head
    np.testing.assert_array_equal(over_batches(attention_logits, rows, matrices)(query, keys)[..., 0, 0, :], found)


@pytest.mark.parametrize(("rows", "matrices"), BATCHES, ids=str)
def test_gradients_are_those_of_the_product(rows, matrices):
    x, weight = numbers((*rows, SIZES[0]), 0), numbers((*matrices, *SIZES), 1)
    of = over_batches(multiply, rows, matrices)
    towards = numbers(of(x, weight).shape, 2).astype(jnp.float32)

    def plain(x, weight):
        x, weight = x.astype(jnp.float32), weight.astype(jnp.float32)
        return (x[..., None, :] @ weight)[..., 0, :]

    found, wanted = (
        jax.jit(jax.grad(lambda *args, of=of: (of(*args) * towards).sum(), argnums=(0, 1)))(x, weight)
        for of in (of, plain)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(*(np.asarray(leaf, np.float32) for leaf in (ours, theirs)), rtol=2**-7)


@pytest.mark.optimised
@pytest.mark.parametrize("rows", [rows for rows, matrices in BATCHES if not matrices], ids=str)
def test_no_matrix_is_widened(rows):
    """XLA for CPU would keep a float32 copy of it."""
    x, weight = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((*rows, 512), (512, 512)))
    made = over_batches(multiply, rows, ()).lower(x, weight).compile()
    assert made.memory_analysis().temp_size_in_bytes < 2 * 512 * 512 and "f32[512,512]" not in made.as_text()
    if 3 in rows:  # rows of a batch are not doubled
        assert f"[{np.prod(rows)},512]" in made.as_text() and f"[{2 * np.prod(rows)},512]" not in made.as_text()
