"""The arithmetic of a decoder layer, for one token or many: products with weights, norms, attention, mlp."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from msrnn_jax.config import Config
from msrnn_jax.params import LayerParams


def wide(dtype: Any) -> jnp.dtype:
    """float32, or the dtype itself where it is wider: what norms, logits and softmax are computed in."""
    return max(jnp.dtype(dtype), jnp.dtype(jnp.float32), key=lambda kind: kind.itemsize)


def project(equation: str, x: Array, weight: Array, bias: Array | None = None, dtype: Any = None) -> Array:
    """Every product with a weight: `x` contracted with `weight`, accumulated in at least float32.

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
    y = lax.dot_general(x, weight, (axes, ((), ())), preferred_element_type=wide(x.dtype))
    if bias is not None:
        y = y + beside(bias, y)
    return y.astype(x.dtype if dtype is None else dtype)


def beside(weight: Array, x: Array) -> Array:
    """A weight of the last axes of `x`, with as many axes as `x` and its dtype."""
    return weight.astype(x.dtype).reshape((1,) * (x.ndim - weight.ndim) + weight.shape)


def rms_norm(config: Config, x: Float[Array, "*T D"], weight: Float[Array, " D"]) -> Float[Array, "*T D"]:
    """x / sqrt(mean(x^2) + eps) * weight, in at least float32."""
    y = x.astype(wide(x.dtype))
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.norm_eps)
    return y.astype(x.dtype) * beside(weight, x)


def attention_logits(queries: Float[Array, "*T K G H"], keys: Float[Array, "K S H"]) -> Float[Array, "*T K G S"]:
    """Scaled products of queries and keys.

    In at least float32, with full precision for float32 operands, so that the reduced-precision defaults of
    GPU and TPU do not change what is forgotten; the same in `mix`.
    """
    logits = _batched("rh,sh->rs", queries, keys)
    return logits * queries.shape[-1] ** -0.5


def softmax(logits: Float[Array, "*T K G S"], visible: Bool[Array, "*T #K S"]) -> Float[Array, "*T K G S"]:
    """Attention probabilities over the visible slots, of which there must be one."""
    return jax.nn.softmax(jnp.where(visible[..., None, :], logits, -jnp.inf), axis=-1)


def mix(probs: Float[Array, "*T K G S"], values: Float[Array, "K S H"]) -> Float[Array, "*T K G H"]:
    """Values averaged by attention probabilities, in the dtype of the values."""
    return _batched("rs,sh->rh", probs.astype(values.dtype), values).astype(values.dtype)


def _batched(equation: str, rows: Array, slots: Array) -> Array:
    """One matrix product for every KV head, its rows being all tokens and queries of the group."""
    leading = rows.shape[:-3]
    heads_first = jnp.moveaxis(rows, -3, 0)  # [K, *T, G, ...]
    flat = heads_first.reshape(slots.shape[0], -1, rows.shape[-1])
    left, right, result = (f"k{letters}" for letters in equation.replace("->", ",").split(","))
    product = jnp.einsum(
        f"{left},{right}->{result}",
        flat,
        slots,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=wide(rows.dtype),
    )
    product = product.reshape(slots.shape[0], *leading, rows.shape[-2], product.shape[-1])  # [K, *T, G, ...]
    return jnp.moveaxis(product, 0, -3)


def mlp(weights: LayerParams, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
    """down(silu(gate(x)) * up(x)), the middle in at least float32."""
    dtype = wide(x.dtype)
    gate = project("...d,df->...f", x, weights.gate, weights.gate_bias, dtype)
    up = project("...d,df->...f", x, weights.up, weights.up_bias, dtype)
    hidden = (jax.nn.silu(gate) * up).astype(x.dtype)
    return project("...f,fd->...d", hidden, weights.down, weights.down_bias)
