"""The multi-state: a fixed number of key/value slots per layer."""

from typing import Any, NamedTuple

import numpy as np
from flax import struct
from jax import Array

from msrnn_jax.config import Config
from msrnn_jax.io.shapes import spell_node

EMPTY = -1  # the position of a free slot
MOST_TOKENS = 2**31 - 1  # that a state can have seen: positions are int32
POSITION_MODES = ("absolute", "cache", "gap")


class LayerState(struct.PyTreeNode):
    """What one layer remembers: an unordered set of slots.

    A slot is held where `positions` is not EMPTY; keys, values and statistics of a free slot are
    leftovers that nobody reads. `#K` is one row where the policy's scope is the layer and K rows where
    every KV head forgets for itself.
    """

    keys: Array  # [K, S, H], rotated to their true position in the mode "absolute" (if the layer is), else not rotated
    values: Array  # [K, S, H]
    positions: Array  # [#K, S] int32, EMPTY where the slot is free
    stats: Any  # the policy's, leaves [#K, S, ...]
    budget: Array  # [] int32, or [K] for one of every KV head: slots held after a cut; traced
    row_stats: Any = None  # the policy's, leaves [#K, ...]
    pinned: Array | None = None  # [] int32: so many tokens of the text are protected, where the policy keeps the prompt
    index: int = struct.field(pytree_node=False, default=0)  # of the layer, where a policy sees it; 0 in a state

    def __repr__(self) -> str:
        return spell_node(self)

    @property
    def row_budgets(self) -> Array:
        """The budget as it goes with [#K, S], [K, 1] where every KV head has its own."""
        return self.budget[:, None] if self.budget.ndim else self.budget

    @property
    def num_rows(self) -> int:
        return self.positions.shape[0]

    @property
    def num_slots(self) -> int:
        return self.positions.shape[1]


class LayerInfo(NamedTuple):
    """What is known of a layer before it has read anything."""

    config: Config
    index: int  # of the layer
    rows: int  # 1, or K where every KV head forgets for itself
    frequencies: np.ndarray  # [H / 2] radians per position by which queries and keys are rotated; 0 where they are not
    rotated: bool  # whether keys are rotated in their slots, and queries as a policy sees them


class MultiState(struct.PyTreeNode):
    """The state of the whole recurrent network."""

    layers: tuple[LayerState, ...]
    t: Array  # [] int32, position of the next token: how many were seen, at most MOST_TOKENS
    mode: str = struct.field(pytree_node=False, default="absolute")  # how positions are rotated

    def __repr__(self) -> str:
        return spell_node(self)


class View(struct.PyTreeNode):
    """What one layer shows a policy right after the newest token's attention.

    Slots that are free have position EMPTY and probability 0; their keys and values hold anything. A token outside a
    sliding window has probability 0 while a prompt is read in the mode "oneshot"; else it is held no more. With the
    rope "yarn" queries are scaled, see `rotary.query_scale`.
    """

    probs: Array  # [K, G, S] attention probabilities of the newest token, at least float32
    positions: Array  # [#K, S] int32
    t: Array  # [] int32, position of the newest token
    token: Array  # [] int32, the newest token
    queries: Array  # [N, H], rotated as the keys are: by the true position in the mode "absolute", else not
    keys: Array  # [K, S, H]
    values: Array  # [K, S, H]
    layer: int = struct.field(pytree_node=False, default=0)  # index of the layer
    hidden: Any = None  # [D], what query, key and value are projected from: the layer's input, normed


class Arrival(struct.PyTreeNode):
    """The newest token as one layer sees it, before it is written into a slot."""

    position: Array  # [] int32
    token: Array  # [] int32
    key: Array  # [K, H], not rotated
    value: Array  # [K, H]
    hidden: Array  # [D], what query, key and value are projected from: the layer's input, normed
    layer: int = struct.field(pytree_node=False, default=0)  # index of the layer


class StepContext(struct.PyTreeNode):
    """The token that all layers are reading, or the T tokens of a chunk."""

    token: Array  # [*T] int32
    position: Array  # [*T] int32, EMPTY for padding, which writes nothing
    seen: Array  # [*T] int32, tokens seen, this one included unless it is padding
    angles: tuple[Array, Array] | None  # see `positions.angles_for`
    mode: str = struct.field(pytree_node=False, default="absolute")  # the state's
    forgetting: bool = struct.field(pytree_node=False, default=True)  # False: slots are held beyond the budget
    hidden: Array | None = None  # [*T, D], the layer's input, normed; set by every layer
    key: Array | None = None  # [*T, K, H], before rotation; set by every layer
