"""A gate that was trained to know what can be forgotten."""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.policies.base import Policy, Score, Stats
from msrnn_jax.policies.by_keys.gate import read_gate
from msrnn_jax.state import Arrival, LayerState


class Learned(Policy):
    r"""Forgets the token that has faded most, at a rate that a network gave it when it came.

    Its score is $(t - p_j) \log \beta_j$ with $\log \beta_j = \log \sigma(w^\top \tanh(W [k_j; v_j] + b) + c)$, with
    weights of their own for every layer and KV head and the key before rotation. The idea is that of Bui et al.,
    TRIM-KV, 2025 (arXiv:2512.03324). Without a file all tokens fade alike, and the oldest goes.

    Attributes:
      gate: path of a file of weights; `learned:PATH` is enough.
      ageing: False, which the file says: scores are $\log \beta_j$, whatever the age.
      soft: tokens fade out of attention too: the score is added to their logits. For training.
    """

    named_by: ClassVar[str] = "gate"

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)
    gate: str = struct.field(pytree_node=False, default="")
    ageing: bool = struct.field(pytree_node=False, default=True)
    soft: bool = struct.field(pytree_node=False, default=False)
    weights: Any = struct.field(default=None, compare=False, repr=False)  # a Gate, read from the file where it is None

    def __post_init__(self):
        super().__post_init__()
        self.require("gate", "," not in self.gate, "a path without a comma")
        if self.gate and self.weights is None:
            weights, ageing = read_gate(self.gate)
            object.__setattr__(self, "weights", weights)
            object.__setattr__(self, "ageing", ageing)

    @property
    def files(self) -> tuple[str, ...]:
        return (self.gate,) if self.gate else ()

    @property
    def static(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return not self.ageing

    @property
    def biases(self) -> bool:
        return self.soft

    def init(self, rows: int, slots: int) -> Stats:
        return jnp.zeros((rows, slots))

    def init_token(self, arrival: Arrival) -> Stats:
        rows = arrival.key.shape[0] if self.scope == "head" else 1
        if self.weights is None:
            return jnp.full((rows,), -1.0)
        log_beta = self.weights.log_beta(arrival)
        return log_beta if self.scope == "head" else log_beta.mean()[None]

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        return self._faded(layer, t)

    def bias(self, layer: LayerState, t: Int[Array, ""]) -> Float[Array, "#K S"]:
        faded = self._faded(layer, t - 1)
        stays = layer.positions >= t - 1
        return jnp.where(stays | self.protected(layer, t) if self.protects else stays, jnp.zeros_like(faded), faded)

    def _faded(self, layer: LayerState, now: Int[Array, ""]) -> Float[Array, "#K S"]:
        """The logarithm of what is left of every token for a query at the position `now`."""
        return (now - layer.positions).astype(layer.stats.dtype) * layer.stats if self.ageing else layer.stats
