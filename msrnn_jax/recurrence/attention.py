"""Attention's products, softmax and mixing, and the dtype they are computed in."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from msrnn_jax.config import at_least_float32
from msrnn_jax.recurrence.products import multiply_rows


def attention_logits(queries: Float[Array, "K *T G H"], keys: Float[Array, "K S H"]) -> Float[Array, "K *T G S"]:
    """Products of queries and keys.

    In at least float32, with full precision for float32 operands, so that the reduced-precision defaults of
    GPU and TPU do not change what is forgotten; the same in `weighted_values`. KV heads come first, so that all tokens
    together are one matrix product for every head, without a transposed copy of the result.
    """
    return _batched("krh,ksh->krs", queries, keys)


def softmax(
    products: Float[Array, "K *T G S"],
    visible: Bool[Array, "#K *T S"],
    head_dim: int,
    bias: Float[Array, "#K *T S"] | None = None,
) -> Float[Array, "K *T G S"]:
    """Attention probabilities over the visible slots, of which there must be one."""
    logits = products * head_dim**-0.5
    if bias is not None:
        logits = logits + bias[..., None, :].astype(logits.dtype)
    return jax.nn.softmax(jnp.where(visible[..., None, :], logits, -jnp.inf), axis=-1)


def weighted_values(probs: Float[Array, "K *T G S"], values: Float[Array, "K S H"]) -> Float[Array, "K *T G H"]:
    """Values averaged by attention probabilities, in at least float32."""
    return _batched("krs,ksh->krh", probs.astype(values.dtype), values)


def _batched(equation: str, left: Float[Array, "K *T G X"], right: Float[Array, "K Y Z"]) -> Float[Array, "K *T G W"]:
    """One matrix product for every KV head."""
    rows = left.reshape(left.shape[0], -1, left.shape[-1])  # [K, T * G, X]
    wide = at_least_float32(left.dtype)
    of = partial(jnp.einsum, equation, precision=lax.Precision.HIGHEST, preferred_element_type=wide)
    product = multiply_rows(of, rows, right)
    return product.reshape(*left.shape[:-1], product.shape[-1])
