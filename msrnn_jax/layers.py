"""The arithmetic of a decoder layer: products with weights, norms, rotation, attention, mlp."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from msrnn_jax.config import Config, Rope
from msrnn_jax.params import LayerParams


def wide(dtype: Any) -> jnp.dtype:
    """float32, or the dtype itself where it is wider: what norms, logits and softmax are computed in."""
    return max(jnp.dtype(dtype), jnp.dtype(jnp.float32), key=lambda kind: kind.itemsize)


def project(equation: str, x: Array, weight: Array, bias: Array | None = None, dtype: Any = None) -> Array:
    """Every product with a weight: `x` contracted with `weight`, accumulated in at least float32.

    Its precision is JAX's default, which on GPU and TPU is below float32 for float32 operands; set
    `jax_default_matmul_precision` to "highest" where the last digits matter.

    Args:
      equation: einsum letters such as "d,dnh->nh", each either contracted or in the result, those of `x`
        first.
      dtype: of the result; by default that of `x`.
    """
    inputs, result = equation.split("->")
    left, right = inputs.split(",")
    summed = [letter for letter in left if letter in right]
    assert result == "".join(letter for letter in left + right if letter not in summed), equation
    # The order of the summed axes is that of x, and so of memory: einsum's own choice copies the weight.
    axes = (tuple(map(left.index, summed)), tuple(map(right.index, summed)))
    y = lax.dot_general(x, weight, (axes, ((), ())), preferred_element_type=wide(x.dtype))
    if bias is not None:
        y = y + bias.astype(y.dtype)
    return y.astype(x.dtype if dtype is None else dtype)


def rms_norm(config: Config, x: Float[Array, " D"], weight: Float[Array, " D"]) -> Float[Array, " D"]:
    """x / sqrt(mean(x^2) + eps) * weight, in at least float32."""
    y = x.astype(wide(x.dtype))
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.norm_eps)
    return y.astype(x.dtype) * weight


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per position of each rotated pair: [H / 2] float64, theta ** (-2 i / H) before scaling."""
    frequency = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)  # [H / 2]
    if rope.kind == "linear":
        return frequency / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_length * frequency / (2 * math.pi)  # full rotations within the original length
        blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)  # 0: slow, divided; 1: fast, unchanged
        return blend * frequency + (1 - blend) * frequency / rope.factor
    return frequency


def rotation(config: Config, position: Int[Array, ""]) -> tuple[Float[Array, " R"], Float[Array, " R"]]:
    """Cosine and sine of the R = H / 2 angles by which a query or key at `position` is rotated."""
    frequency = jnp.asarray(inverse_frequencies(config.rope, config.head_dim), wide(config.dtype))
    angle = position.astype(frequency.dtype) * frequency
    # Without the barrier XLA computes sine and cosine again for every element that every layer rotates.
    return lax.optimization_barrier((jnp.cos(angle), jnp.sin(angle)))


def rotate(x: Float[Array, "heads H"], cos: Float[Array, " R"], sin: Float[Array, " R"]) -> Float[Array, "heads H"]:
    """Rotates the pairs (x[i], x[i + H / 2]), the half-split convention of Hugging Face."""
    cos, sin = cos[None], sin[None]  # [1, H / 2]
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(
    queries: Float[Array, "K G H"],
    keys: Float[Array, "K S H"],
    values: Float[Array, "K S H"],
    visible: Bool[Array, "#K S"],
) -> tuple[Float[Array, "K G H"], Float[Array, "K G S"]]:
    """Softmax attention of one token over the visible slots, and its probabilities.

    Logits and softmax are in at least float32, with full precision for float32 operands, so that the
    reduced-precision defaults of GPU and TPU do not change what is forgotten. At least one slot must be visible.
    """
    dtype = wide(queries.dtype)
    logits = jnp.einsum(
        "kgh,ksh->kgs", queries, keys, precision=lax.Precision.HIGHEST, preferred_element_type=dtype
    )  # [K, G, S]
    logits = logits * queries.shape[-1] ** -0.5
    probs = jax.nn.softmax(jnp.where(visible[:, None], logits, -jnp.inf), axis=-1)
    mixed = jnp.einsum(
        "kgs,ksh->kgh",
        probs.astype(values.dtype),
        values,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )
    return mixed.astype(queries.dtype), probs


def mlp(weights: LayerParams, x: Float[Array, " D"]) -> Float[Array, " D"]:
    """down(silu(gate(x)) * up(x))."""
    gate = project("d,df->f", x, weights.gate, weights.gate_bias)
    up = project("d,df->f", x, weights.up, weights.up_bias)
    return project("f,fd->d", jax.nn.silu(gate) * up, weights.down, weights.down_bias)
