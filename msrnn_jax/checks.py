"""Checks at the entry points: values are looked at only where they are concrete."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from msrnn_jax.config import DTYPES, Config
from msrnn_jax.policies import Policy
from msrnn_jax.state import LayerState, MultiState

Count = int | np.integer
Budget = Count | Array | np.ndarray | Sequence[Count | Array]  # one number or one per layer

MAX_BUDGET = 2**31 - 2  # positions and slots are int32


def concrete(value: Any) -> np.ndarray | None:
    """The value as numpy, or None under tracing."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def layer_budgets(num_layers: int, budget: Any) -> list[Any]:
    """One budget per layer from an int, one per layer, or a traced scalar or [L] array.

    Raises:
      ValueError: where a concrete budget is not a whole number of at least 1, or the count is wrong.
    """
    if isinstance(budget, Sequence) and not isinstance(budget, str):
        values = list(budget)
    elif np.ndim(budget) == 1:
        values = list(budget)
    elif np.ndim(budget) == 0:
        values = [budget] * num_layers
    else:
        raise ValueError(f"budget has shape {np.shape(budget)}; it must be one number or one per layer")
    if len(values) != num_layers:
        raise ValueError(f"budget has {len(values)} entries; it must be one number or {num_layers}, one per layer")
    for value in values:
        known = concrete(value)
        if known is None and not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise ValueError(f"budget has dtype {jnp.result_type(value)}; it must be an integer")
        if known is not None and (known.ndim or known.dtype.kind not in "iu" or known < 1):
            raise ValueError(f"budget is {known.tolist()!r}; it must be a whole number of at least 1")
        if known is not None and known > MAX_BUDGET:
            raise ValueError(f"budget is {known.tolist()!r}; it must be at most {MAX_BUDGET}")
    return values


def whole(name: str, value: Any, least: int) -> int:
    """A static size given as any integer type.

    Raises:
      ValueError: for another type, or a number below `least`.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    return int(value)


def check_dtype(dtype: Any) -> jnp.dtype:
    """A floating dtype that JAX can hold now.

    Raises:
      ValueError: for another one, naming it and what there is.
    """
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or known.name not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if known.name == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError("dtype is 'float64'; JAX holds it only with jax_enable_x64 set")
    return known


def check_protection(policy: Policy, budgets: Sequence[Any]) -> None:
    """Refuses a policy that protects more than a concrete budget holds."""
    for budget in budgets:
        known = concrete(budget)
        if known is None:
            continue
        recent = int(known) // 2 if policy.recent is None else policy.recent
        if policy.sinks + recent > known:
            raise ValueError(
                f"budget is {int(known)}, but {policy} protects {policy.sinks} sinks and {recent} recent tokens; "
                "sinks + recent must be at most the budget"
            )


def check_state(config: Config, policy: Policy, state: MultiState) -> None:
    """Refuses a state made for another model, scope or shape of statistics (free of charge under `jit`).

    Policies whose statistics look alike cannot be told apart: switching between them in mid-text goes on
    with the numbers of the other.
    """
    if state.mode != "absolute":
        raise ValueError(f"state: positions are {state.mode!r}; only 'absolute' is supported yet")
    if len(state.layers) != config.num_layers:
        raise ValueError(f"state has {len(state.layers)} layers; the config has {config.num_layers}")
    rows = 1 if policy.scope == "layer" else config.num_kv_heads
    for index, layer in enumerate(state.layers):
        check_single(layer)
        heads, slots, width = layer.keys.shape
        if (heads, width) != (config.num_kv_heads, config.head_dim):
            raise ValueError(
                f"state: layer {index} has {heads} KV heads of width {width}; "
                f"the config has {config.num_kv_heads} of width {config.head_dim}"
            )
        if layer.num_rows != rows:
            raise ValueError(
                f"state: layer {index} has {layer.num_rows} rows of slots, but {policy} forgets by {policy.scope}, "
                f"which takes {rows}; a state goes only with the scope it was made for"
            )
        wanted = jax.eval_shape(partial(policy.init, rows, slots))
        if _shapes(wanted) != _shapes(layer.stats):
            raise ValueError(f"state: layer {index} has other statistics than those of {policy}; make a new one")


def check_single(layer: LayerState) -> None:
    """Refuses a batch of states where one is needed."""
    if layer.keys.ndim != 3:
        raise ValueError(f"state: keys have shape {layer.keys.shape}; they must be [K, S, H], so vmap over a batch")


def _shapes(stats: Any) -> Any:
    leaves, tree = jax.tree.flatten(stats)
    return tree, [leaf.shape for leaf in leaves]


def check_room(policy: Policy, state: MultiState, count: Any) -> None:
    """Refuses `count` more tokens (a number or one per row) for a policy that forgets nothing, if known not to fit."""
    if policy.forgets:
        return
    seen, more = concrete(state.t), concrete(count)
    for layer in state.layers:
        budget = concrete(layer.budget)
        if seen is None or more is None or budget is None:
            return
        needed, room = int(np.max(seen + more)), int(np.min(budget))
        if needed > room:
            raise ValueError(f"budget is {room}, but {policy} forgets nothing and must hold {needed} tokens")


def check_tokens(config: Config, name: str, tokens: Any) -> None:
    """Refuses token arrays that are not integers of the vocabulary."""
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {tokens.dtype}; token numbers must be integers")
    known = concrete(tokens)
    if known is not None and known.size:
        low, high = int(known.min()), int(known.max())
        if low < 0 or high >= config.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"{name} holds the token {wrong}; it must be from 0 to {config.vocab_size - 1}")


def check_lengths(name: str, lengths: Any, longest: int) -> None:
    """Refuses lengths outside 1 .. `longest`."""
    known = concrete(lengths)
    if known is not None and known.size and (known.min() < 1 or known.max() > longest):
        wrong = int(known.min() if known.min() < 1 else known.max())
        raise ValueError(f"{name} is {wrong}; it must be from 1 to {longest}, the number of tokens given")
