"""LLaMA as a Flax RNN cell: modules that own the weights, around the same pure functions."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.config import Config
from msrnn_jax.model.llama import context_of, decoder_layer, run_blocks, unembed
from msrnn_jax.params import LayerParams, Params, is_low_rank, param_axes
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import Budget, Slots, as_tokens, check_state
from msrnn_jax.recurrence.slots import init_state, share_out
from msrnn_jax.state import LayerState, MultiState, StepContext

# What the axes are called in sharding rules.
SHARDING_NAMES = {"V": "vocab", "D": "embed", "NH": "heads", "KH": "kv_heads", "H": "head_dim", "F": "mlp"}


def _param(value: Array | None, axes: str | None) -> Any:
    if value is None or axes is None:
        return None
    return nnx.Param(value, out_sharding=tuple(SHARDING_NAMES[axis] for axis in axes.split()), eager_sharding=False)


class DecoderLayer(nnx.Module):
    """One decoder layer that owns its weights; calling it is `decoder_layer` applied to them."""

    def __init__(self, config: Config, weights: LayerParams, index: int):
        self.config = config
        self.index = index
        axes = param_axes(config).layers[index]
        self.names = tuple(vars(weights))
        for name in self.names:
            if is_low_rank(getattr(weights, name)):
                raise ValueError(f"params.layers[{index}].{name} has an adapter, which a cell does not take; merge it")
            setattr(self, name, nnx.data(_param(getattr(weights, name), getattr(axes, name))))

    @property
    def params(self) -> LayerParams:
        """The weights as the plain pytree, not copied."""
        return LayerParams(**{name: _value(getattr(self, name)) for name in self.names})

    def __call__(
        self, policy: Policy, layer: LayerState, x: Float[Array, "*T D"], context: StepContext
    ) -> tuple[LayerState, Array]:
        return decoder_layer(self.config, self.params, policy, layer, x, context, index=self.index)


class MultiStateCell(nnx.RNNCellBase):
    """A LLaMA whose carry is a `MultiState`: `nnx.RNN(cell)(tokens)` runs it over [T] or [B, T] tokens.

    `nnx.state(cell, nnx.Param)` holds every weight, so optimizers, LoRA and quantisation reach them all. The arrays of
    a policy are in it, too, but their gradient is exactly 0 (see `Policy`): an optimizer can only let them decay.

    Args:
      params: the weights, without adapters; they are not copied.
      budget, slots, positions: as in `init_state`, for carries that the cell makes itself.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        params: Params,
        budget: Budget,
        *,
        slots: Slots | None = None,
        positions: str = "absolute",
    ):
        shared = share_out(policy, config.num_layers, budget)
        budgets = tuple(tuple(value.tolist()) if value.ndim else int(value) for value in map(np.asarray, shared))
        jax.eval_shape(lambda: init_state(config, policy, budgets, slots=slots, positions=positions))  # refuse here
        self.config = config
        self._policy = nnx.data(jax.tree.map(nnx.Param, policy))  # its arrays, if it has any, are Params, too
        self.budget = budgets
        self.slots = tuple(slots) if isinstance(slots, Sequence | np.ndarray) else slots
        self.positions = positions
        axes = param_axes(config)
        self.embedding = _param(params.embedding, axes.embedding)  # pyright: ignore[reportArgumentType]
        self.layers = nnx.List([DecoderLayer(config, weights, index) for index, weights in enumerate(params.layers)])
        self.final_norm = _param(params.final_norm, axes.final_norm)  # pyright: ignore[reportArgumentType]
        self.unembedding = nnx.data(_param(params.unembedding, axes.unembedding))  # pyright: ignore

    @property
    def params(self) -> Params:
        """The weights as the plain pytree, not copied."""
        return self._outer().replace(layers=tuple(layer.params for layer in self.layers))

    def _outer(self) -> Params:
        """The weights outside the layers, which may be modules of somebody else by now."""
        return Params(
            embedding=_value(self.embedding),
            layers=(),
            final_norm=_value(self.final_norm),
            unembedding=_value(self.unembedding),
        )

    @property
    def policy(self) -> Policy:
        """The policy, with its arrays as they are now."""
        return jax.tree.map(_value, self._policy, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input are features. It has none, since it is a token, a scalar."""
        return 0

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> MultiState:
        """An empty state, with the leading axes of a batch of tokens of `input_shape`."""
        del rngs, carry_init
        state = init_state(self.config, self.policy, self.budget, slots=self.slots, positions=self.positions)
        return jax.tree.map(lambda leaf: jax.numpy.broadcast_to(leaf, (*input_shape, *leaf.shape)), state)

    def __call__(self, carry: MultiState, inputs: Int[Array, "..."]) -> tuple[MultiState, Float[Array, "... V"]]:
        """One step: the next state and the logits [..., V], for one token or a batch of any shape.

        Raises:
          ValueError: for a token outside the vocabulary where it is not traced, as it is inside `nnx.RNN`.
        """
        inputs = as_tokens(self.config, "inputs", inputs)

        def one(state: MultiState, token: Array) -> tuple[MultiState, Array]:
            check_state(self.config, self.policy, state)
            outer = self._outer()
            context = context_of(self.config, state, token)
            state, x = run_blocks(self.policy, outer.embedding, list(self.layers), state, context)
            return state, unembed(self.config, outer, x)

        for _ in range(inputs.ndim):
            one = jax.vmap(one)
        return one(carry, inputs)


def _value(param: Any) -> Any:
    return None if param is None else param[...]
