"""The arithmetic of a decoder layer, for one token or many: products with weights, norms, attention, mlp."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from msrnn_jax.config import Config
from msrnn_jax.params import LayerParams, LowRank


def wide(dtype: Any) -> jnp.dtype:
    """float32, or the dtype itself where it is wider: what norms, logits and softmax are computed in."""
    return max(jnp.dtype(dtype), jnp.dtype(jnp.float32), key=lambda kind: kind.itemsize)


def project(equation: str, x: Array, weight: Array | LowRank, bias: Array | None = None, dtype: Any = None) -> Array:
    """Every product with a weight: `x` contracted with `weight`, accumulated in at least float32.

    A low-rank adapter beside the weight is applied to `x` by itself, so that the weight is neither copied nor changed.

    Its precision is JAX's default, which on GPU and TPU is below float32 for float32 operands; set
    `jax_default_matmul_precision` to "highest" where the last digits matter.

    Args:
      equation: einsum letters such as "...d,dnh->...nh", each either contracted or in the result, those of
        `x` first.
      dtype: of the result; by default that of `x`.
    """
    inputs, result = equation.replace("...", "").split("->")
    left, right = inputs.split(",")
    summed = [letter for letter in left if letter in right]
    assert result == "".join(letter for letter in left + right if letter not in summed), equation
    # The order of the summed axes is that of x, and so of memory: einsum's own choice copies the weight.
    leading = x.ndim - len(left)
    axes = (tuple(leading + left.index(letter) for letter in summed), tuple(map(right.index, summed)))
    y = _contract(x, weight.weight if isinstance(weight, LowRank) else weight, axes)
    if isinstance(weight, LowRank):
        down, up = weight.adapter.down.astype(x.dtype), weight.adapter.up.astype(x.dtype)
        inner = _contract(x, down, axes).astype(x.dtype)  # [..., R]
        y = y + _contract(inner, up, ((inner.ndim - 1,), (0,)))
    if bias is not None:
        y = y + beside(bias, y)
    return y.astype(x.dtype if dtype is None else dtype)


def _contract(x: Array, weight: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    return lax.dot_general(x, weight, (axes, ((), ())), preferred_element_type=wide(x.dtype))


def beside(weight: Array, x: Array) -> Array:
    """A weight of the last axes of `x`, with as many axes as `x` and its dtype."""
    return weight.astype(x.dtype).reshape((1,) * (x.ndim - weight.ndim) + weight.shape)


def rms_norm(config: Config, x: Float[Array, "*T D"], weight: Float[Array, " D"]) -> Float[Array, "*T D"]:
    """x / sqrt(mean(x^2) + eps) * weight, in at least float32."""
    y = x.astype(wide(x.dtype))
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.norm_eps)
    return y.astype(x.dtype) * beside(weight, x)


def match(queries: Float[Array, "K *T G H"], keys: Float[Array, "K S H"]) -> Float[Array, "K *T G S"]:
    """Products of queries and keys.

    In at least float32, with full precision for float32 operands, so that the reduced-precision defaults of
    GPU and TPU do not change what is forgotten; the same in `mix`. KV heads come first, so that all tokens
    together are one matrix product for every head, without a transposed copy of the result.
    """
    return _batched("krh,ksh->krs", queries, keys)


def softmax(
    products: Float[Array, "K *T G S"], visible: Bool[Array, "#K *T S"], head_dim: int
) -> Float[Array, "K *T G S"]:
    """Attention probabilities over the visible slots, of which there must be one."""
    logits = products * head_dim**-0.5
    return jax.nn.softmax(jnp.where(visible[..., None, :], logits, -jnp.inf), axis=-1)


def mix(probs: Float[Array, "K *T G S"], values: Float[Array, "K S H"]) -> Float[Array, "K *T G H"]:
    """Values averaged by attention probabilities, in at least float32."""
    return _batched("krs,ksh->krh", probs.astype(values.dtype), values)


def _batched(equation: str, left: Float[Array, "K *T G X"], right: Float[Array, "K Y Z"]) -> Float[Array, "K *T G W"]:
    """One matrix product for every KV head."""
    rows = left.reshape(left.shape[0], -1, left.shape[-1])  # [K, T * G, X]
    product = jnp.einsum(
        equation, rows, right, precision=lax.Precision.HIGHEST, preferred_element_type=wide(left.dtype)
    )
    return product.reshape(*left.shape[:-1], product.shape[-1])


def mlp(weights: LayerParams, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
    """down(silu(gate(x)) * up(x)), the middle in at least float32."""
    dtype = wide(x.dtype)
    gate = project("...d,df->...f", x, weights.gate, weights.gate_bias, dtype)
    up = project("...d,df->...f", x, weights.up, weights.up_bias, dtype)
    hidden = (jax.nn.silu(gate) * up).astype(x.dtype)
    return project("...f,fd->...d", hidden, weights.down, weights.down_bias)
