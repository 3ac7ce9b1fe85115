"""The kernel over a chunk, compiled for TPU v5e and H100 with every built-in policy, at the shapes users have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import msrnn_jax as ms
from experiments.compiled.targets import described, target_devices
from msrnn_jax.recurrence.kernel import Kernel, step_through
from msrnn_jax.recurrence.kernel_choice import why_not
from msrnn_jax.state import LayerState, StepContext

pytestmark = pytest.mark.optimised

CHUNK = 128
SHAPES = [(32, 1, 128), (8, 4, 64), (8, 8, 128)]  # KV heads, query heads for each, width of a head
PLATFORMS = {"v5e": "tpu", "h100": "cuda"}
CALLS = {"v5e": "tpu_custom_call", "h100": "__gpu$xla.gpu.triton"}


def compiled(target, policy, shape, budget, *, batch=1, window=None):
    """The text of a program that steps over a chunk of every row."""
    heads, group, width = shape
    rows, slots = (1 if policy.scope == "layer" else heads), budget + 1 + CHUNK
    made = Kernel(policy, 3, window, "absolute", width, PLATFORMS[target])
    stats = jax.eval_shape(lambda: policy.init(rows, slots))

    def run(products, positions, stats, limit, tokens):
        cache = jnp.zeros((heads, slots, width), jnp.bfloat16)
        layer = LayerState(cache, cache, positions, stats, limit)
        context = StepContext(tokens, tokens, tokens + 1, None, hidden=jnp.zeros((CHUNK, width)))
        assert why_not(made, layer, products, jax.ShapeDtypeStruct((width,), jnp.float32)) is None
        positions, stats, visible = step_through(made, layer, context, products)
        return positions, stats, visible.sum(axis=-1)

    place = NamedSharding(Mesh(np.array([target_devices(target)[0]]), ("x",)), PartitionSpec())

    def given(shape, dtype):
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=place)

    args = (
        given((heads, CHUNK, group, slots), jnp.float32),
        given((rows, slots), jnp.int32),
        jax.tree.map(lambda leaf: given(leaf.shape, leaf.dtype), stats),
        given((), jnp.int32),
        given((CHUNK,), jnp.int32),
    )
    with described(target):
        return jax.jit(jax.vmap(run)).lower(*args).compile().as_text()


@pytest.mark.parametrize("target", PLATFORMS)
@pytest.mark.parametrize("policy", tiny.POLICIES, ids=str)
def test_every_policy_is_one_kernel(policy, target):
    for shape in SHAPES[:2]:
        assert compiled(target, policy, shape, 64, batch=2, window=512).count(CALLS[target]) == 1


@pytest.mark.parametrize("target", PLATFORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("budget", [512, 4096])
def test_every_shape_is_one_kernel(budget, shape, target):
    for policy in (ms.TOVA(), ms.H2O()):
        assert compiled(target, policy, shape, budget).count(CALLS[target]) == 1
