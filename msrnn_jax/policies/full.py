"""Full attention: the unbounded multi-state RNN."""

from typing import ClassVar

from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score
from msrnn_jax.state import LayerState


class Full(Policy):
    """Forgets nothing, so the budget must hold every token.

    A run that would outgrow the budget is refused where the number of tokens seen is known (`extend`,
    `prefill`, `nll`, `generate`); under tracing, and in `step`, the oldest token goes.
    """

    static: ClassVar[bool] = True
    forgets: ClassVar[bool] = False

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        return layer.positions
