"""The arithmetic of a decoder layer, for one token or many: products with weights, norms, attention, mlp."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from msrnn_jax.config import Config, at_least_float32
from msrnn_jax.params import LayerParams, LowRank
from msrnn_jax.recurrence.products import multiply_rows


def project(
    x: Float[Array, "*T I"], weight: Array | LowRank, bias: Array | None = None, dtype: Any = None
) -> Float[Array, "*T O"]:
    """Every product with a weight [I, O], accumulated in at least float32.

    A low-rank adapter beside the weight is applied to `x` by itself, so that the weight is neither copied nor changed.

    Its precision is JAX's default, which on GPU and TPU is below float32 for float32 operands; set
    `jax_default_matmul_precision` to "highest" where the last digits matter.

    Args:
      dtype: of the result; by default that of `x`.
    """
    y = multiply(x, weight.weight if isinstance(weight, LowRank) else weight)
    if isinstance(weight, LowRank):
        down, up = weight.adapter.down.astype(x.dtype), weight.adapter.up.astype(x.dtype)
        y = y + multiply(multiply(x, down).astype(x.dtype), up)
    if bias is not None:
        y = y + beside(bias, y)
    return y.astype(x.dtype if dtype is None else dtype)


def multiply(x: Float[Array, "*T I"], weight: Array, side: int = 0) -> Float[Array, "*T O"]:
    """The product with a matrix whose axis `side` is summed over, in at least float32."""
    wide = at_least_float32(x.dtype)
    of = partial(lax.dot_general, dimension_numbers=(((1,), (side,)), ((), ())), preferred_element_type=wide)
    product = multiply_rows(of, x.reshape(-1, x.shape[-1]), weight)
    return product.reshape(*x.shape[:-1], product.shape[-1])


def beside(weight: Array, x: Array) -> Array:
    """A weight of the last axes of `x`, with as many axes as `x` and its dtype."""
    return weight.astype(x.dtype).reshape((1,) * (x.ndim - weight.ndim) + weight.shape)


def rms_norm(config: Config, x: Float[Array, "*T D"], weight: Float[Array, " D"]) -> Float[Array, "*T D"]:
    """x / sqrt(mean(x^2) + eps) * weight, in at least float32."""
    y = x.astype(at_least_float32(x.dtype))
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.norm_eps)
    return y.astype(x.dtype) * beside(weight, x)


def mlp(weights: LayerParams, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
    """down(silu(gate(x)) * up(x)), the middle in at least float32."""
    dtype = at_least_float32(x.dtype)
    gate = project(x, weights.gate, weights.gate_bias, dtype)
    up = project(x, weights.up, weights.up_bias, dtype)
    hidden = (jax.nn.silu(gate) * up).astype(x.dtype)
    return project(hidden, weights.down, weights.down_bias)
