"""Samplers: frozen values that choose the next token from logits, alone or one after another."""

import dataclasses
import math
from collections.abc import Callable
from functools import reduce
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, UInt32


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Chooses a token from logits; compared by value, and static to `jit`.

    A sampler of your own is a frozen dataclass with a `warp`, registered with `jax.tree_util.register_static`.
    """

    random: ClassVar[bool] = True  # whether it needs a key

    def warp(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        """The logits of the distribution drawn from; -inf where a token is ruled out, which not all may be."""
        raise NotImplementedError(f"{type(self).__name__} must define warp(logits)")

    def __call__(self, logits: Float[Array, " V"], key: Array) -> Int[Array, ""]:
        """A token drawn from softmax(warp(logits))."""
        logits = self.warp(logits)
        return jax.random.categorical(key, logits - logits.max()).astype(jnp.int32)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Greedy(Sampler):
    """The most likely token; of equal ones the first."""

    random: ClassVar[bool] = False

    def warp(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        tokens = jnp.arange(logits.shape[0], dtype=jnp.int32)
        return jnp.where(tokens == _first_best(logits), logits, -jnp.inf)

    def __call__(self, logits: Float[Array, " V"], key: Array) -> Int[Array, ""]:
        del key
        return _first_best(logits)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Temperature(Sampler):
    """A draw from softmax(logits / temperature)."""

    temperature: float = 1.0

    def __post_init__(self):
        _check("temperature", self.temperature, 1e-6, 1e6, " (Greedy() is the limit)")

    def warp(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        return (logits - logits.max()) / self.temperature


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TopK(Sampler):
    """The k most likely tokens, and those as likely as the last of them (Fan et al., 2018, arXiv:1805.04833)."""

    k: int = 50

    def __post_init__(self):
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k is {self.k!r}; it must be a whole number of at least 1")

    def warp(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        return _keep_top(logits, lambda kept: kept.sum(dtype=jnp.int32) >= min(self.k, logits.shape[0]))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TopP(Sampler):
    """The most likely tokens, as few as have a probability of p together, and those as likely as the last of them.

    Nucleus sampling (Holtzman et al., 2020, arXiv:1904.09751).
    """

    p: float = 1.0

    def __post_init__(self):
        _check("p", self.p, 1e-6, 1.0)

    def warp(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        if self.p == 1:  # rounding may leave the sum of all below 1
            return logits
        probs = jax.nn.softmax(logits)
        return _keep_top(logits, lambda kept: jnp.sum(probs, where=kept) >= self.p)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MinP(Sampler):
    """The tokens at least p times as likely as the most likely one (Nguyen et al., 2024, arXiv:2407.01082)."""

    p: float = 0.0

    def __post_init__(self):
        _check("p", self.p, 0.0, 1.0)

    def warp(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        least = math.log(self.p) if self.p else -math.inf
        return jnp.where(logits - logits.max() >= least, logits, -jnp.inf)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Chain(Sampler):
    """Samplers one after another, each warping what the one before has left: `Chain((Temperature(0.8), TopP(0.9)))`."""

    samplers: tuple[Sampler, ...] = ()

    def __post_init__(self):
        if not isinstance(self.samplers, tuple) or not all(isinstance(each, Sampler) for each in self.samplers):
            raise ValueError(f"samplers is {self.samplers!r}; it must be a tuple of samplers")

    @property
    def random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(sampler.random for sampler in self.samplers)

    def warp(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        return reduce(lambda left, sampler: sampler.warp(left), self.samplers, logits)


def make_sampler(
    temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Sampler:
    """The sampler of the usual options, in the usual order: temperature, then top-k, top-p and min-p.

    Args:
      temperature: 0 is greedy, and then nothing else may be given.

    Raises:
      ValueError: for an option out of its range.
    """
    filters = [(TopK, top_k, "top_k"), (TopP, top_p, "top_p"), (MinP, min_p, "min_p")]
    given = [(kind, value, name) for kind, value, name in filters if value is not None]
    if temperature == 0:
        if given:
            raise ValueError(f"{given[0][2]} is {given[0][1]}, but temperature 0 draws nothing; give a temperature too")
        return Greedy()
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be at least 0")
    chain = [Temperature(temperature)]
    for kind, value, name in given:
        try:
            chain.append(kind(value))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return chain[0] if len(chain) == 1 else Chain(tuple(chain))


def _first_best(logits: Float[Array, " V"]) -> Int[Array, ""]:
    return jnp.argmax(logits).astype(jnp.int32)


def _keep_top(logits: Float[Array, " V"], enough: Callable[[Bool[Array, " V"]], Array]) -> Float[Array, " V"]:
    """Rules out all but the fewest most likely tokens that are `enough`; of equally likely ones all stay or none.

    Finds the highest threshold by bisection over the 2^32 float32 numbers, which is exact and, unlike sorting a
    vocabulary, fast everywhere.
    """
    order = _ordered(logits.astype(jnp.float32))

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        least, most = bounds  # `least` is enough, `most` is not known to be
        middle = most - (most - least) // 2
        good = enough(order >= middle)
        return jnp.where(good, middle, least), jnp.where(good, most, middle - 1)

    bounds = jnp.zeros((), jnp.uint32), jnp.full((), 2**32 - 1, jnp.uint32)
    threshold, _ = lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(order >= threshold, logits, -jnp.inf)


def _ordered(values: Float[Array, " V"]) -> UInt32[Array, " V"]:
    """Whole numbers in the same order as the floats."""
    values = jnp.where(values == 0, 0.0, values)  # -0.0 is 0.0; XLA leaves `values + 0.0` out
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(2**31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _check(name: str, value: Any, least: float, most: float, note: str = "") -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be a number from {least:g} to {most:g}{note}")
