"""Samplers: frozen values that choose the next token from logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most likely token; of equal ones the first."""

    random = False

    def __call__(self, logits: Float[Array, " V"], key: Array) -> Int[Array, ""]:
        del key
        return jnp.argmax(logits).astype(jnp.int32)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Temperature:
    """A draw from softmax(logits / temperature)."""

    temperature: float = 1.0

    random = True

    def __post_init__(self):
        value = self.temperature
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 1e-6:
            raise ValueError(f"temperature is {value!r}; it must be a number of at least 1e-6 (Greedy() is the limit)")

    def __call__(self, logits: Float[Array, " V"], key: Array) -> Int[Array, ""]:
        return jax.random.categorical(key, (logits - logits.max()) / self.temperature).astype(jnp.int32)


Sampler = Greedy | Temperature
