"""Checks at the entry points: values are looked at only where they are concrete."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Int

from msrnn_jax.config import DTYPES, Config
from msrnn_jax.params import MATRICES, Params, abstract_params, is_low_rank, without_adapters
from msrnn_jax.policies import Policy
from msrnn_jax.policies.budgets import rows_for
from msrnn_jax.recurrence.rotary import inverse_frequencies
from msrnn_jax.recurrence.sliding_window import check_windows, most_held
from msrnn_jax.state import MOST_TOKENS, POSITION_MODES, LayerInfo, LayerState, MultiState
from msrnn_jax.text.tokens import check_tokens

Count = int | np.integer
Budget = Count | Array | np.ndarray | Sequence[Any]  # one number, one per layer, or one per layer and KV head
Slots = Count | np.ndarray | Sequence[Count]  # the same, static
MAX_BUDGET = 2**31 - 2  # positions and slots are int32


def concrete(value: Any) -> np.ndarray | None:
    """The value as numpy, or None under tracing."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def layer_budgets(num_layers: int, budget: Any) -> list[Any]:
    """One budget per layer from an int, one per layer, or a traced scalar or [L] array.

    A layer's may be an array [K], one for every KV head.

    Raises:
      ValueError: where a concrete budget is not a whole number of at least 1, or the count is wrong.
    """
    if isinstance(budget, Sequence) and not isinstance(budget, str):
        values = list(budget)
    elif np.ndim(budget) in (1, 2):
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
        for entry in [1] if known is None else known.reshape(-1).tolist():  # Python numbers, of any size
            if type(entry) is not int or entry < 1:
                raise ValueError(f"budget is {entry!r}; it must be a whole number of at least 1")
            if entry > MAX_BUDGET:
                raise ValueError(f"budget is {entry!r}; it must be at most {MAX_BUDGET}")
    return values


def check_int(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A static size given as any integer type.

    Raises:
      ValueError: for another type, or a number outside `least` .. `most`.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    if most is not None and value > most:
        raise ValueError(f"{name} is {value!r}; it must be at most {most}")
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
    """Refuses a policy that protects more than a concrete budget holds, in the row of a batch that holds least."""
    for budget in budgets:
        known = concrete(budget)
        if known is None:
            continue
        least = int(known.min())
        recent = policy.recent_of(least)
        if policy.sinks + recent > least:
            raise ValueError(
                f"budget is {least}, but {policy} protects {policy.sinks} sinks and {recent} recent tokens; "
                "sinks + recent must be at most the budget"
            )


def check_state(config: Config, policy: Policy, state: MultiState) -> None:
    """Refuses a state made for another model, scope or shape of statistics (free of charge under `jit`).

    Policies whose statistics look alike cannot be told apart: switching between them in mid-text goes on
    with the numbers of the other.
    """
    if not isinstance(state, MultiState):
        raise ValueError(f"state is {state!r}; it must be a MultiState, as init_state makes it")
    if state.mode not in POSITION_MODES:
        raise ValueError(f"state: positions are {state.mode!r}; they must be one of {', '.join(POSITION_MODES)}")
    if len(state.layers) != config.num_layers:
        raise ValueError(f"state has {len(state.layers)} layers; the config has {config.num_layers}")
    for index, layer in enumerate(state.layers):
        check_layer(policy, index, layer)
        check_row_stats(config, policy, state.mode, index, layer)
        heads, _, width = layer.keys.shape
        if (heads, width) != (config.num_kv_heads, config.head_dim):
            raise ValueError(
                f"state: layer {index} has {heads} KV heads of width {width}; "
                f"the config has {config.num_kv_heads} of width {config.head_dim}"
            )
    check_windows(config, state.mode, [layer.num_slots for layer in state.layers])


def check_statistics(policy: Policy, rows: int, slots: int) -> None:
    """Refuses a policy whose statistics are not one entry for every slot."""
    made, wider = (jax.eval_shape(partial(policy.init, rows, count)) for count in (slots, slots + 1))
    for leaf, other in zip(jax.tree.leaves(made), jax.tree.leaves(wider), strict=True):
        for array, count in ((leaf, slots), (other, slots + 1)):
            if array.shape != (rows, count, *leaf.shape[2:]):
                raise ValueError(
                    f"policy {policy}: init({rows}, {count}) returned an array of shape {array.shape}; "
                    f"it must be ({rows}, {count}, ...), the rest whatever the number of slots"
                )


def check_observed(policy: Policy, observed: Any, stats: Any, name: str = "observe") -> None:
    """Refuses statistics after `observe` (or another function) that are not made as those before it.

    Widths may differ (they become those of `init`), kinds may not: a float would be cut to an integer.
    """
    given, wanted = (jax.tree.map(jnp.shape, tree) for tree in (observed, stats))
    if given != wanted or jax.tree.structure(observed) != jax.tree.structure(stats):
        raise ValueError(f"policy {policy}: {name} returned shapes {given}; they must be those of init, {wanted}")
    given, wanted = (jax.tree.map(lambda leaf: jnp.result_type(leaf).name, tree) for tree in (observed, stats))
    if jax.tree.map(_kind, observed) != jax.tree.map(_kind, stats):
        raise ValueError(f"policy {policy}: {name} returned {given}; it must return what init does, {wanted}")


def _kind(leaf: Any) -> Any:
    return next((kind for kind in (jnp.floating, jnp.integer) if jnp.issubdtype(jnp.result_type(leaf), kind)), None)


def check_score(policy: Policy, score: Any, layer: LayerState, name: str = "score") -> None:
    """Refuses scores (or another function's numbers) that are not one for every slot."""
    if jnp.shape(score) != layer.positions.shape:
        raise ValueError(
            f"policy {policy}: {name} has shape {jnp.shape(score)}; it must be {layer.positions.shape}, [#K, S]"
        )
    dtype = jnp.result_type(score)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise ValueError(f"policy {policy}: {name} has dtype {dtype}; it must be a float or an integer")


def check_layer(policy: Policy, index: int, layer: LayerState) -> None:
    """Refuses a layer's state made for another scope or shape of statistics, and a batch of states."""
    check_policy(policy)
    if layer.keys.ndim != 3:
        raise ValueError(f"state: keys have shape {layer.keys.shape}; they must be [K, S, H], so vmap over a batch")
    heads, slots, _ = layer.keys.shape
    rows = rows_for(policy, heads)
    if layer.num_rows != rows:
        raise ValueError(
            f"state: layer {index} has {layer.num_rows} rows of slots, but {policy} forgets by {policy.scope}, "
            f"which takes {rows}; a state goes only with the scope it was made for"
        )
    if _shapes(jax.eval_shape(partial(policy.init, rows, slots))) != _shapes(layer.stats):
        raise ValueError(f"state: layer {index} has other statistics than those of {policy}; make a new one")


def check_row_stats(config: Config, policy: Policy, mode: str, index: int, layer: LayerState) -> None:
    """Refuses statistics of rows that the policy did not make for this model, and a missing count of pinned tokens."""
    wanted = None
    if policy.has_row_stats:  # else there is nothing to trace, at every call from outside `jit`
        wanted = jax.eval_shape(partial(policy.init_rows, layer_info(config, index, layer.num_rows, mode)))
    if _shapes(wanted) != _shapes(layer.row_stats):
        raise ValueError(f"state: layer {index} has other statistics of rows than those of {policy}; make a new one")
    if policy.prompt != (layer.pinned is not None):
        made = "a policy that keeps the prompt" if layer.pinned is not None else "one that does not keep the prompt"
        raise ValueError(f"state: layer {index} was made for {made}, unlike {policy}; make a new one")


def layer_info(config: Config, index: int, rows: int, mode: str) -> LayerInfo:
    """What a policy is told of a layer that has read nothing."""
    rotates = config.rotates(index)
    frequencies = inverse_frequencies(config.rope, config.head_dim) if rotates else np.zeros(config.head_dim // 2)
    return LayerInfo(config, index, rows, frequencies, rotates and mode == "absolute")


def _shapes(stats: Any) -> Any:
    leaves, tree = jax.tree.flatten(stats)
    return tree, [leaf.shape for leaf in leaves]


def check_room(config: Config, policy: Policy, state: MultiState, count: Any, new: int = 0) -> None:
    """Refuses to read more tokens than positions go up to, or than a policy holds that forgets nothing, if known.

    A layer with a sliding window must hold those only that a later query can see.

    Args:
      count: of tokens, a number or one per row.
      new: how many more each row may get after them.
    """
    seen, more = concrete(state.t), concrete(count)
    if seen is None or more is None:
        return
    total = int(np.max(seen.astype(np.int64) + more)) + new
    if total > MOST_TOKENS:
        raise ValueError(
            f"the state would have seen {total} tokens in the end; it can see {MOST_TOKENS}, since positions are int32"
        )
    if policy.forgets:
        return
    for index, layer in enumerate(state.layers):
        budget = concrete(layer.budget)
        if budget is None:
            return
        needed, room = most_held(config, state.mode, index, total), int(np.min(budget))
        if needed > room:
            raise ValueError(f"budget is {room}, but {policy} forgets nothing and must hold {needed} tokens")


def check_reading(
    config: Config, policy: Policy, params: Params, state: MultiState, tokens: Any, length: Any
) -> tuple[Int[Array, " T"], Int[Array, ""] | None]:
    """Tokens [T] and how many of them are real, both int32, once everything that reads them is known to fit."""
    check_params(config, params)
    check_state(config, policy, state)
    check_protection(policy, [layer.budget for layer in state.layers])
    tokens = as_tokens(config, "tokens", tokens)
    if tokens.ndim != 1 or tokens.shape[0] == 0:
        raise ValueError(f"tokens has shape {tokens.shape}; it must be [T] with at least one token")
    if length is not None:
        length = as_lengths("length", length, tokens.shape[0])
        if length.ndim:
            raise ValueError(f"length has shape {length.shape}; it must be one number, so vmap over a batch")
    check_room(config, policy, state, tokens.shape[0] if length is None else length)
    return tokens, length


def as_tokens(config: Config, name: str, tokens: Any) -> Int[Array, "..."]:
    """Token numbers as int32, from any array or nested list.

    Raises:
      ValueError: where they are not integers of the vocabulary, as far as they are known.
    """
    given = tokens if isinstance(tokens, Array) else _as_numpy(name, tokens)
    if given.dtype == bool or not (given.size == 0 or jnp.issubdtype(given.dtype, jnp.integer)):
        raise ValueError(f"{name} has dtype {given.dtype}; token numbers must be integers")
    known = concrete(given)
    if known is not None:
        check_tokens(config.vocab_size, name, known)
    return jnp.asarray(given.astype(np.int32))


def as_lengths(name: str, lengths: Any, longest: int) -> Int[Array, "..."]:
    """Lengths from 1 to `longest` as int32, from a number, array or list.

    Raises:
      ValueError: where they are not integers in that range, as far as they are known.
    """
    given = lengths if isinstance(lengths, Array) else _as_numpy(name, lengths)
    if given.dtype == bool or not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {given.dtype}; lengths must be integers")
    known = concrete(given)
    if known is not None and known.size and (known.min() < 1 or known.max() > longest):
        wrong = int(known.min() if known.min() < 1 else known.max())
        raise ValueError(f"{name} is {wrong}; it must be from 1 to {longest}, the number of tokens given")
    return jnp.asarray(given.astype(np.int32))


def _as_numpy(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}; its rows must have one length") from None


def check_policy(policy: Any) -> None:
    """Refuses what is no policy: a name or a class instead of a value."""
    if not isinstance(policy, Policy):
        raise ValueError(f"policy is {policy!r}; it must be a Policy, such as TOVA() or parse_policy('tova')")


def check_params(config: Config, params: Params, *, dtypes: bool = False) -> None:
    """Refuses weights whose shapes (and dtypes) are not those of the config, naming them all.

    Free of charge under `jit`: only shapes are looked at.
    """
    if not isinstance(config, Config):
        raise ValueError(f"config is {config!r}; it must be a Config")
    wanted, tree = jax.tree_util.tree_flatten_with_path(abstract_params(config))
    problems = []
    if jax.tree.structure(params) != tree:  # as it is with an adapter in it
        problems = adapter_problems(params, dtypes)
        params = without_adapters(params)
    if jax.tree.structure(params) != tree:
        raise ValueError(
            "params do not have the weights that the config describes: layers, biases, norms or tying differ"
        )
    problems += [
        f"{jax.tree_util.keystr(where)} is {leaf.dtype}{list(leaf.shape)}; it must be {want.dtype}{list(want.shape)}"
        for (where, want), leaf in zip(wanted, jax.tree.leaves(params), strict=True)
        if leaf.shape != want.shape or (dtypes and leaf.dtype != want.dtype)
    ]
    if problems:
        raise ValueError("params do not fit the config: " + "; ".join(problems))


def adapter_problems(params: Any, dtypes: bool = False) -> list[str]:
    """What is wrong with adapters beside weights, of which nothing is known yet."""
    problems = []
    for where, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_low_rank):
        if not is_low_rank(leaf):
            continue
        place = jax.tree_util.keystr(where)
        if getattr(where[-1], "name", "") not in MATRICES:
            problems.append(f"{place} has an adapter; only {', '.join(MATRICES)} of a layer take one")
            continue
        rank = leaf.adapter.down.shape[-1:]
        for name, wanted in (("down", (*leaf.shape[:1], *rank)), ("up", (*rank, *leaf.shape[1:]))):
            half = getattr(leaf.adapter, name)
            if half.shape != wanted or (dtypes and half.dtype != leaf.dtype):
                is_ = f"{half.dtype}{list(half.shape)}"
                problems.append(f"{place}.adapter.{name} is {is_}; it must be {leaf.dtype}{list(wanted)}")
    return problems
