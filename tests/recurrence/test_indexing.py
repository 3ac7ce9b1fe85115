"""Gathers, scatters and rotations: right, differentiable, and in the compiled program what they are meant to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.params import abstract_params
from msrnn_jax.recurrence.indexing import take_rows, take_slots, write_slots

pytestmark = pytest.mark.optimised

NARROW = ["bfloat16", "float16", "float8_e4m3fn"]
CACHE = jax.random.normal(jax.random.key(0), (3, 5, 4))  # [K, S, H]
ROW = jax.random.normal(jax.random.key(1), (3, 4))
SLOTS = jnp.asarray([4, 0, 2], jnp.int32)
SOURCE = jnp.asarray([[0, 4], [1, 1], [3, 2]], jnp.int32)


@pytest.mark.parametrize("dtype", [*NARROW, "float32", "int32"])
def test_moves_move(dtype):
    cache, row = np.array(CACHE.astype(dtype)), np.array(ROW.astype(dtype))
    np.testing.assert_array_equal(take_rows(jnp.asarray(cache[0]), SOURCE), cache[0][np.asarray(SOURCE)])
    np.testing.assert_array_equal(
        take_slots(jnp.asarray(cache), SOURCE), np.stack([k[s] for k, s in zip(cache, SOURCE, strict=True)])
    )
    after = write_slots((jnp.asarray(cache), jnp.asarray(row)), SLOTS)
    for head, slot in enumerate([4, 0, 2]):
        cache[head, slot] = row[head]
    np.testing.assert_array_equal(after, cache)
    assert after.dtype == dtype


def test_one_slot_and_one_source_serve_all_heads():
    after = write_slots((CACHE, ROW), SLOTS[:1])
    np.testing.assert_array_equal(after, CACHE.at[:, 4].set(ROW))
    np.testing.assert_array_equal(take_slots(CACHE, SOURCE[:1]), CACHE[:, jnp.asarray([0, 4])])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_moves_are_differentiable(dtype):
    def loss(cache, row, table):
        cache = take_slots(write_slots((cache, row), SLOTS), SOURCE)
        return jnp.sum(cache.astype(jnp.float32) ** 2) + jnp.sum(take_rows(table, SLOTS).astype(jnp.float32))

    def plain(cache, row, table):
        cache = cache.at[jnp.arange(3), SLOTS].set(row)
        cache = jnp.take_along_axis(cache, SOURCE[..., None], axis=1)
        return jnp.sum(cache.astype(jnp.float32) ** 2) + jnp.sum(table[SLOTS].astype(jnp.float32))

    leaves = tuple(leaf.astype(dtype) for leaf in (CACHE, ROW, CACHE[0]))
    batched = [jnp.stack([leaf, 2 * leaf]) for leaf in leaves]
    gradients = (jax.jit(jax.vmap(jax.grad(of, (0, 1, 2))))(*batched) for of in (loss, plain))
    for found, wanted in zip(*gradients, strict=True):
        np.testing.assert_array_equal(found, wanted)


def _program(dtype: str, batch: int = 2) -> str:
    config, policy = tiny.CONFIG.replace(dtype=dtype), ms.TOVA()
    states = jax.eval_shape(
        jax.vmap(lambda budget: ms.init_state(config, policy, budget, slots=9)), jnp.ones(batch, int)
    )
    step = jax.jit(jax.vmap(lambda params, state, token: ms.step(config, policy, params, state, token), (None, 0, 0)))
    return step.lower(abstract_params(config), states, jnp.zeros(batch, jnp.int32)).compile().as_text() or ""


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA compiles for CPU")
def test_a_bfloat16_step_makes_no_float32_copy_of_embedding_or_cache():
    """It is read and written once per token, so the copies would cost more than everything else."""
    config = tiny.CONFIG
    program = _program("bfloat16")
    assert f"bf16[{config.vocab_size},{config.model_dim}]" in program and "bf16[2,3,9,10]" in program
    assert f"f32[{config.vocab_size},{config.model_dim}]" not in program
    assert "f32[2,3,9,10]" not in program


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA compiles for CPU")
def test_cosines_are_computed_once_for_all_layers():
    assert _program("float32").count(" cosine(") == 1
