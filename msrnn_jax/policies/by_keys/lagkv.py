"""Keys and values beside those of the block that follows."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from msrnn_jax.policies.base import Policy, Score, is_size
from msrnn_jax.policies.scoring import by_heads, by_rows, in_order, widen
from msrnn_jax.state import EMPTY, LayerState


class LagKV(Policy):
    """Keeps, of every block of `lag` tokens, those whose keys and values vary most in the range of the next block's.

    Held tokens but the sinks, in order of position, in blocks of `lag`: with the least and largest of every channel in
    block b + 1, keys of block b are scaled to $(k - min)/(max - min)$; their standard deviation over channels, softmax
    over the block; likewise values; the score is the rank of the sum in its block. The last whole block and what
    comes after it score highest. Liang et al., LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are
    Important, 2025 (arXiv:2504.04704).
    """

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    sinks: int = struct.field(pytree_node=False, default=4, kw_only=True)
    every: int = struct.field(pytree_node=False, default=128, kw_only=True)
    lag: int = struct.field(pytree_node=False, default=128)

    def __post_init__(self):
        super().__post_init__()
        self.require("lag", is_size(self.lag, 2), "an integer of at least 2")

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        counted = by_heads(layer, (layer.positions != EMPTY) & (layer.positions >= self.sinks))  # [K, S]
        positions = by_heads(layer, layer.positions)
        return by_rows(self, jax.vmap(self._score_head)(layer.keys, layer.values, positions, counted))

    def _score_head(
        self, keys: Float[Array, "S H"], values: Float[Array, "S H"], positions: Array, counted: Bool[Array, " S"]
    ) -> Float[Array, " S"]:
        slots = len(positions)
        blocks = slots // self.lag
        if blocks < 2:
            return jnp.ones(slots, widen(keys).dtype)
        order = in_order(positions, counted)[: blocks * self.lag]
        shares = self._shares(keys[order], blocks) + self._shares(values[order], blocks)  # [blocks - 1, lag]
        rank = jnp.argsort(jnp.argsort(shares, axis=1), axis=1).astype(shares.dtype) / self.lag
        whole = counted.sum() // self.lag
        rank = jnp.where(jnp.arange(blocks - 1)[:, None] < whole - 1, rank, 1)
        rank = rank.reshape(-1)
        return jnp.ones(slots, rank.dtype).at[order[: len(rank)]].set(rank)

    def _shares(self, x: Float[Array, "T H"], blocks: int) -> Float[Array, "A W"]:
        x = widen(x).reshape(blocks, self.lag, -1)
        least, largest = x[1:].min(axis=1, keepdims=True), x[1:].max(axis=1, keepdims=True)
        extent = largest - least
        scaled = (x[:-1] - least) / jnp.where(extent == 0, 1, extent)
        return jax.nn.softmax(scaled.std(axis=-1, ddof=1), axis=-1)
