"""Rotary positions: frequencies, and rotation as exact at any position as at 0."""

import functools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from msrnn_jax.config import Config, Rope, at_least_float32

Angles = tuple[Array, Array]  # cosine and sine
TWO_PI = Fraction("6.283185307179586476925286766559005768394338798750211641949889")


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per position of each rotated pair: [H / 2] float64, theta ** (-2 i / H) before scaling."""
    frequency = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)  # [H / 2]
    if rope.kind == "linear":
        return frequency / rope.factor
    if rope.kind == "yarn":
        low, high = (_pair_that_turns(rope, head_dim, times) for times in (rope.beta_fast, rope.beta_slow))
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = (np.arange(head_dim // 2) - low) / (high - low if high != low else 0.001)
        divided = np.clip(ramp, 0.0, 1.0)
        return divided * frequency / rope.factor + (1 - divided) * frequency
    if rope.kind == "llama3":
        turns = rope.original_length * frequency / (2 * math.pi)  # full rotations within the original length
        blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)  # 0: slow, divided; 1: fast, unchanged
        return blend * frequency + (1 - blend) * frequency / rope.factor
    return frequency


def _pair_that_turns(rope: Rope, head_dim: int, times: float) -> float:
    """The number of the pair, not whole, that would turn so many times within the original length."""
    return head_dim * math.log(rope.original_length / (2 * math.pi * times)) / (2 * math.log(rope.theta))


def query_scale(rope: Rope) -> float:
    """What products of rotated queries and keys are multiplied by: "yarn" lengthens both by its factor."""
    if rope.kind != "yarn":
        return 1.0
    factor = rope.attention_factor
    return (0.1 * math.log(max(rope.factor, 1.0)) + 1.0 if factor is None else factor) ** 2


def rotation(
    config: Config, position: Int[Array, "*T"] | Float[Array, "*T"]
) -> tuple[Float[Array, "*T R"], Float[Array, "*T R"]]:
    """Cosine and sine of the R = H / 2 angles by which a query or key at `position` is rotated.

    As exact at 2**31 as at 0. A float32 product of position and frequency would be off by 0.004 radians at position
    100,000 and by anything at 2**24; so whole positions are multiplied as integers, in parts of a turn.
    """
    dtype, shape = at_least_float32(config.dtype), (1,) * position.ndim + (config.head_dim // 2,)
    distance = jnp.abs(position)[..., None]
    bits = 8 * dtype.itemsize
    word, signed = (jnp.dtype(f"{kind}{bits}") for kind in ("uint", "int"))
    whole = distance.astype(word)
    high, low = (jnp.asarray(part, word).reshape(shape) for part in _turns(config.rope, config.head_dim, bits))
    turns = whole * high + _high_word(whole, low)  # whole turns overflow, which is what makes it exact
    angle = lax.bitcast_convert_type(turns, signed).astype(dtype) * (2 * math.pi / 2**bits)  # -pi .. pi
    if jnp.issubdtype(position.dtype, jnp.floating):
        frequency = jnp.asarray(inverse_frequencies(config.rope, config.head_dim), dtype).reshape(shape)
        angle = angle + (distance - whole.astype(distance.dtype)).astype(dtype) * frequency
    sign = jnp.sign(position)[..., None].astype(dtype)
    cos, sin = jnp.cos(angle), sign * jnp.sin(angle)
    return lax.platform_dependent(cos, sin, cpu=_apart, default=lambda cos, sin: (cos, sin))


def _apart(cos: Array, sin: Array) -> Angles:
    """The same numbers, not fused with what uses them.

    XLA for CPU fuses a cosine into whatever uses it, to be computed again for every head of every layer, and an
    optimization_barrier does not keep it from that. A product it does not fuse, and this one is exact.
    """
    both = jnp.stack([cos, sin])
    cos, sin = jnp.matmul(both, jnp.eye(both.shape[-1], dtype=both.dtype), precision=lax.Precision.HIGHEST)
    return cos, sin


@functools.lru_cache(maxsize=64)
def _turns(rope: Rope, head_dim: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Turns per position of each rotated pair modulo 1, in two words: units of 2**-bits, and of 2**-(2 bits)."""
    unit = 4**bits
    turns = [round(Fraction(value) * unit / TWO_PI) % unit for value in inverse_frequencies(rope, head_dim).tolist()]
    high, low = zip(*(divmod(value, 2**bits) for value in turns), strict=True)
    return np.array(high, f"uint{bits}"), np.array(low, f"uint{bits}")


def _high_word(a: Array, b: Array) -> Array:
    """The upper half of the product of two unsigned integers, of twice their width, multiplied half by half."""
    half = 4 * a.dtype.itemsize
    mask = jnp.asarray(2**half - 1, a.dtype)
    shift = jnp.asarray(half, a.dtype)
    middle = (a >> shift) * (b & mask) + (((a & mask) * (b & mask)) >> shift)
    other = (middle & mask) + (a & mask) * (b >> shift)
    return (a >> shift) * (b >> shift) + (middle >> shift) + (other >> shift)


def rotate(
    x: Float[Array, "*T heads H"], cos: Float[Array, "*#T #heads R"], sin: Float[Array, "*#T #heads R"]
) -> Float[Array, "*T heads H"]:
    """Rotates the pairs (x[i], x[i + H / 2]), the half-split convention of Hugging Face."""
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
