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
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"temperature is {value!r}; it must be a positive number (Greedy() is the limit 0)")

    def __call__(self, logits: Float[Array, " V"], key: Array) -> Int[Array, ""]:
        return jax.random.categorical(key, logits / self.temperature).astype(jnp.int32)


Sampler = Greedy | Temperature
