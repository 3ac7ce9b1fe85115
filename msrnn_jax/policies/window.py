"""Sliding windows, with and without attention sinks."""

from typing import ClassVar

from jax import Array
from jaxtyping import Int

from msrnn_jax.policies.base import Policy, Score
from msrnn_jax.state import LayerState


class Window(Policy):
    """Forgets the oldest token; with `sinks=i`, the oldest but the first i (Window+i).

    Its score is $p_j$. Xiao et al., Efficient Streaming Language Models with Attention Sinks, 2023 (arXiv:2309.17453);
    Han et al., LM-Infinite, 2023 (arXiv:2308.16137).
    """

    static: ClassVar[bool] = True

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        del t
        return layer.positions
