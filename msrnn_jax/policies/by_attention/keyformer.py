"""Accumulated attention with noise, so that what was passed over has a chance."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.policies.base import Policy, Score, Stats, is_size
from msrnn_jax.policies.random import hash32, word32
from msrnn_jax.state import EMPTY, LayerState, View

PRIMES = (0x9E3779B1, 0x85EBCA77, 0x27D4EB2F)


class Keyformer(Policy):
    r"""Keeps the tokens with the largest sum of attention, with Gumbel noise added before each softmax.

    $A_j \leftarrow A_j + \sum_g \mathrm{softmax}_j((l_{g,j} + \gamma)/\tau)$ with logits l and noise γ, a hash of
    seed, layer, head, time and position; τ rises from `start` to `end` over `horizon` tokens. Adnan et al., Keyformer:
    KV Cache Reduction through Key Tokens Selection for Efficient Generative Inference, 2024 (arXiv:2403.09054). Their
    horizon is the length of the answer, which nobody knows here.
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    recent: int | float | None = struct.field(pytree_node=False, default=0.3, kw_only=True)
    start: float = struct.field(pytree_node=False, default=1.0)
    end: float = struct.field(pytree_node=False, default=2.0)
    horizon: int = struct.field(pytree_node=False, default=2048)
    seed: int = struct.field(pytree_node=False, default=0)

    def __post_init__(self):
        super().__post_init__()
        for name in ("start", "end"):
            self.require(name, getattr(self, name) > 0, "above 0")
        self.require("horizon", is_size(self.horizon, 1), "an integer above 0")
        self.require("seed", is_size(self.seed), "an integer of at least 0")

    def init(self, rows: int, slots: int) -> Stats:
        return jnp.zeros((rows, slots))

    def observe(self, stats: Stats, view: View) -> Stats:
        passed = jnp.minimum(view.t.astype(view.probs.dtype) / self.horizon, 1)
        temperature = self.start + (self.end - self.start) * passed
        logits = jnp.log(view.probs) + self._noise(view)  # up to a number that softmax leaves out
        held = (view.positions != EMPTY)[:, None]
        shares = jax.nn.softmax(jnp.where(held, logits / temperature, -jnp.inf), axis=-1)
        mass = shares.sum(axis=1) if self.scope == "head" else shares.sum(axis=(0, 1))[None]
        return stats + mass.astype(stats.dtype)

    def _noise(self, view: View) -> Float[Array, "K G S"]:
        heads, group, _ = view.probs.shape
        head = jnp.arange(heads * group, dtype=jnp.uint32).reshape(heads, group, 1)
        numbers = (view.positions.astype(jnp.uint32)[:, None], head, view.t.astype(jnp.uint32))
        bits = sum(number * word32(prime) for number, prime in zip(numbers, PRIMES, strict=True))
        bits = hash32(bits + word32(view.layer * 0x165667B1 + self.seed * 0xC2B2AE3D))
        uniform = (bits.astype(view.probs.dtype) + 0.5) / 2.0**32
        return -jnp.log(-jnp.log(jnp.minimum(uniform, 1 - 2.0**-24)))

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        return layer.stats
