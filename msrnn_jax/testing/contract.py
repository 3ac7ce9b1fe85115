"""Whether a policy keeps the contract: `check_contract` shows it made-up tokens and says what is broken, and where."""

import copy
import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from msrnn_jax.config import Config
from msrnn_jax.io.errors import typed_line
from msrnn_jax.policies import Policy
from msrnn_jax.policies.base import option_fields
from msrnn_jax.policies.budgets import rows_for
from msrnn_jax.recurrence.checks import check_observed, check_policy, check_score, check_statistics, layer_info
from msrnn_jax.state import EMPTY, Arrival, LayerInfo, LayerState, View
from msrnn_jax.testing.situations import (
    SLOTS,
    TRIED,
    Situation,
    reorder,
    situations,
    with_more_slots,
    with_other_leftovers,
)

Entry = np.ndarray | np.generic  # what a slot has of a leaf

FAR = 100_000  # the first position of a text that is under way for long

# What the engine calls, and with what.
CALLED = {
    name: list(inspect.signature(getattr(Policy, name)).parameters)[1:]
    for name in ("init", "init_token", "observe", "score", "init_rows", "observe_rows", "revise", "bias")
}
# What a policy may define in the belief that somebody asks for it, and what there is instead.
_SHARED_OUT = "a budget is given to init_state; `adaptive` and `pyramid` share it out"
_PROTECTED = "`sinks`, `recent` and `prompt` protect tokens"
UNASKED = {
    **dict.fromkeys(("budget", "budgets", "layer_budget", "slots"), _SHARED_OUT),
    **dict.fromkeys(("evict", "forget", "select", "compress"), "what goes is decided by `score`"),
    "keep": "what stays is decided by `score`",
    **dict.fromkeys(("protect", "protected", "protects"), _PROTECTED),
    "merge": "what is freed is gone: no policy changes keys or values",
    "update": "statistics change in `observe` and `revise`",
    "prefill": "`observe` is called for every token, those of a prompt too",
}


def check_contract(policy: Policy, config: Config) -> None:
    """Tries a policy on made-up tokens of the model's shapes, which takes about a second, and refuses a broken one.

    The engine trusts `init`, `observe`, `score` and what else a policy defines in what it cannot see while it runs.
    Here they are called with few slots: early in a text and far into it, with slots in another order, with other
    leftovers in free slots, and under `jit` and `vmap`. Passing is no proof; whether scores are those you mean, an
    oracle of your own must tell.

    Args:
      config: of the model it is to run on; no weights are needed.

    Raises:
      ValueError: for the first promise it does not keep, in one line: the function, what it returned for which
        token, and what it must do. A score that is NaN counts as broken, though the engine takes it for the lowest.
    """
    check_policy(policy)
    if not isinstance(config, Config):
        raise ValueError(f"config is {config!r}; it must be a Config")
    rows = rows_for(policy, config.num_kv_heads)
    _check_value(policy)
    _check_names(policy)
    _check_init(policy, rows)
    _check_init_rows(policy, layer_info(config, 0, rows, "absolute"))
    for start, index in ((0, 0), (FAR, config.num_layers - 1)):
        seen = situations(config, policy, start, index, partial(_arrive, policy), partial(_observe, policy))
        after = [one._replace(layer=_observe(policy, one.layer, one.view)) for one in seen]
        for situation in after:
            _check_numbers(policy, situation)
        if start == 0:
            _check_again(policy, seen[-1], after[-1])
            _check_transformations(policy, seen[-1])
        for step in TRIED:
            _check_variations(policy, seen[step], after[step])
        if policy.static:
            _check_static(policy, after)


def _check_value(policy: Policy) -> None:
    """It must go through `jit` as an argument: compared, taken apart, and put together around tracers."""
    try:
        jax.eval_shape(lambda policy: jax.tree.leaves(policy), policy)
        # Two made alike are compared by `jit`; arrays among the options make that fail.
        _ = jax.tree.structure(policy) == jax.tree.structure(copy.deepcopy(policy))
    except Exception as error:
        raise _broken(
            policy,
            f"it cannot be an argument of jit: {typed_line(error)}; an option that is an array must be a plain field, "
            "one that Python code looks at static, struct.field(pytree_node=False, default=...)",
        ) from error


def _check_names(policy: Policy) -> None:
    """Refuses what would be ignored: what nobody asks for, and arguments that nobody gives."""
    own = {name: thing for kind in reversed(type(policy).__mro__) for name, thing in vars(kind).items()}
    own = {name: thing for name, thing in own.items() if thing is not getattr(Policy, name, None)}
    for name in {**own, **option_fields(type(policy))}:
        if name in UNASKED:
            raise _broken(policy, f"it defines {name}, which nobody asks for; {UNASKED[name]}")
        if name in CALLED:
            _check_arguments(policy, name)
        elif callable(own.get(name)) and not hasattr(Policy, name):
            for near in difflib.get_close_matches(name, CALLED, 1, 0.8):
                raise _broken(policy, f"it defines {name}, which nobody asks for; the engine calls {near}")


def _check_arguments(policy: Policy, name: str) -> None:
    given = CALLED[name]
    for number, (argument, taken) in enumerate(inspect.signature(getattr(policy, name)).parameters.items()):
        if number >= len(given) and taken.kind not in (taken.VAR_POSITIONAL, taken.VAR_KEYWORD):
            raise _broken(policy, f"{name} takes {argument}, which nobody gives; it gets {', '.join(given)}")


def _check_init_rows(policy: Policy, info: LayerInfo) -> None:
    rows = _call(policy, "init_rows", policy.init_rows, info)
    again = _call(policy, "init_rows", policy.init_rows, info)
    for leaf, other in zip(jax.tree.leaves(rows), jax.tree.leaves(again), strict=True):
        if not isinstance(leaf, jax.Array | np.ndarray) or leaf.shape[:1] != (info.rows,):
            raise _broken(policy, f"init_rows returned {leaf!r}; statistics of rows must be arrays [{info.rows}, ...]")
        if not np.array_equal(leaf, other, equal_nan=_is_float(leaf)):
            raise _broken(policy, "init_rows returned other numbers when called again; it must return the same ones")


def _check_init(policy: Policy, rows: int) -> None:
    stats = _call(policy, "init", policy.init, rows, SLOTS)
    for leaf in jax.tree.leaves(stats):
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise _broken(policy, f"init returned {leaf!r}; statistics must be arrays [{rows}, {SLOTS}, ...]")
    more = _call(policy, "init", policy.init, rows, SLOTS + 1)
    if jax.tree.structure(stats) != jax.tree.structure(more):
        counts = [len(jax.tree.leaves(tree)) for tree in (stats, more)]
        raise _broken(
            policy,
            f"init returned {counts[0]} arrays for {SLOTS} slots and {counts[1]} for {SLOTS + 1}; "
            "it must return the same tree of arrays",
        )
    check_statistics(policy, rows, SLOTS)
    call = f"init({rows}, {SLOTS})"
    again = _call(policy, "init", policy.init, rows, SLOTS)
    for leaf, other, wider in zip(*map(jax.tree.leaves, (stats, again, more)), strict=True):
        if not np.array_equal(leaf, other, equal_nan=_is_float(leaf)):
            raise _broken(policy, f"{call} returned other numbers when called again; it must return the same ones")
        first = np.asarray(leaf)[:, :1]
        if not all(np.array_equal(every, np.broadcast_to(first, every.shape), equal_nan=_is_float(leaf))
                   for every in map(np.asarray, (leaf, wider))):  # fmt: skip
            raise _broken(policy, f"{call} returned other numbers for some slots; a new token may come into any slot")


def _check_numbers(policy: Policy, situation: Situation) -> None:
    layer, view, _ = situation
    for name, numbers in _numbers_of(policy, layer, view.t + 1).items():
        wrong = np.asarray(numbers)
        if not _is_float(wrong):
            continue
        wrong = np.isnan(wrong.astype(np.float64)) if name == "score" else ~np.isfinite(wrong.astype(np.float64))
        for where in np.argwhere(wrong & _held(layer)):
            given = _number(np.asarray(numbers)[tuple(where)])
            raise _broken(policy, f"{name} is {given} for {_token(situation, where)}; it must be a number")


def _check_again(policy: Policy, before: Situation, after: Situation) -> None:
    rule = "when called again with the same arguments; it must be a function of them alone"
    said = f"{{}}, and {{}} {rule}"
    again = _observe(policy, before.layer, before.view)
    _compare(policy, "observe", said, after, again.stats, after.layer.stats)
    _compare_rows(policy, said, after, again.row_stats, after.layer.row_stats)
    first, second = (_numbers_of(policy, after.layer, after.view.t + 1) for _ in range(2))
    for name in first:
        _compare(policy, name, said, after, second[name], first[name])
    if policy.revises:
        first, second = (policy.revise(after.layer, after.view.t + 1) for _ in range(2))
        _compare(policy, "revise", said, after, second, first)


def _check_transformations(policy: Policy, situation: Situation) -> None:
    layer, view, arrival = situation
    rows, slots = layer.positions.shape
    functions: dict[str, tuple[Callable[..., Any], tuple]] = {
        "init": (lambda policy: policy.init(rows, slots), ()),
        "observe": (lambda policy, stats, view: policy.observe(stats, view), (layer.stats, view)),
        "score": (lambda policy, layer, t: policy.score(layer, t), (layer, view.t + 1)),
        "observe_rows": (lambda policy, rows, view: policy.observe_rows(rows, view), (layer.row_stats, view)),
        "revise": (lambda policy, layer, t: policy.revise(layer, t), (layer, view.t + 1)),
        "bias": (lambda policy, layer, t: policy.bias(layer, t), (layer, view.t + 1)),
        "init_token": (lambda policy, arrival: policy.init_token(arrival), (arrival,)),
    }
    for name, (function, given) in functions.items():
        try:
            jax.eval_shape(function, policy, *given)
        except Exception as error:
            raise _broken(
                policy,
                f"{name} cannot be compiled by jit: it must be written in jax.numpy, without numpy or Python's if, "
                f"for and float() on arrays: {typed_line(error)}",
            ) from error
        batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), given)
        try:
            jax.eval_shape(jax.vmap(function, (None, *[0] * len(given)), axis_size=2), policy, *batch)
        except Exception as error:
            raise _broken(policy, f"{name} cannot be batched by vmap: {typed_line(error)}") from error


def _check_variations(policy: Policy, before: Situation, after: Situation) -> None:
    """The same held tokens must get the same statistics and scores, whatever the slots around them."""
    rows, slots = after.layer.positions.shape
    order = np.random.default_rng(1).permuted(np.tile(np.arange(slots, dtype=np.int32), (rows, 1)), axis=1)
    back = jnp.asarray(np.argsort(order, axis=1).astype(np.int32))
    shuffled = partial(reorder, source=jnp.asarray(order))
    _check_variation(policy, "slots in another order", before, after, shuffled, lambda leaf: _taken(leaf, back))
    rule = "other leftovers in free slots (those whose position is EMPTY)"
    _check_variation(policy, rule, before, after, with_other_leftovers, lambda leaf: leaf)
    wider = partial(with_more_slots, policy, count=2)
    _check_variation(policy, "two more free slots", before, after, wider, lambda leaf: leaf[:, :slots])


def _check_variation(
    policy: Policy,
    what: str,
    before: Situation,
    after: Situation,
    change: Callable[[Situation], Situation],
    undo: Callable[[Array], Array],
) -> None:
    rule = f"{{}}, but {{}} with {what}; it must not depend on that"
    varied = change(before)
    observed = _observe(policy, varied.layer, varied.view)
    _compare(policy, "observe", rule, after, after.layer.stats, jax.tree.map(undo, observed.stats))
    _compare_rows(policy, rule, after, after.layer.row_stats, observed.row_stats)
    t, changed = after.view.t + 1, change(after).layer
    others = _numbers_of(policy, changed, t)
    for name, numbers in _numbers_of(policy, after.layer, t).items():
        _compare(policy, name, rule, after, numbers, undo(others[name]))
    if policy.revises:
        revised = (jax.tree.map(jnp.asarray, policy.revise(layer, t)) for layer in (after.layer, changed))
        first, second = revised
        _compare(policy, "revise", rule, after, first, jax.tree.map(undo, second))


def _check_static(policy: Policy, seen: list[Situation]) -> None:
    """Which of two tokens goes first must be so at all times."""
    earlier: dict[tuple[int, int, int], tuple[bool, int]] = {}
    moments = [(one.layer, int(one.view.t) + 1) for one in seen]
    for layer, t in [*moments, *((layer, t + later) for layer, t in moments[-1:] for later in (1, 100, FAR))]:
        score = np.asarray(_score(policy, layer, jnp.int32(t)))
        for row, positions in enumerate(np.asarray(layer.positions)):
            order = sorted((score[row, slot], int(positions[slot])) for slot in np.flatnonzero(positions != EMPTY))
            held = [position for _, position in order]
            for place, first in enumerate(held):
                for second in held[place + 1 :]:
                    low, high = min(first, second), max(first, second)
                    goes_first, when = earlier.setdefault((row, low, high), (first == low, t))
                    if goes_first != (first == low):
                        raise _broken(
                            policy,
                            f"static = True, but of the tokens at positions {low} and {high} (row {row}) the first "
                            f"has the {'lower' if goes_first else 'higher'} score after {when} tokens and the "
                            f"{'higher' if goes_first else 'lower'} after {t}; leave static out, or score by the "
                            "token alone",
                        )


def _arrive(policy: Policy, layer: LayerState, arrival: Arrival) -> Any:
    if not policy.inits_tokens:
        return None
    first, again = (_call(policy, "init_token", policy.init_token, arrival) for _ in range(2))
    wanted = jax.tree.map(lambda leaf: leaf[:, 0], layer.stats)
    check_observed(policy, first, wanted, "init_token")
    for leaf, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        if not np.array_equal(leaf, other, equal_nan=_is_float(leaf)):
            raise _broken(policy, "init_token returned other numbers when called again; it must return the same ones")
    return jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), first, wanted)


def _observe(policy: Policy, layer: LayerState, view: View) -> LayerState:
    shown = list(vars(view).values())
    stats = _call(policy, "observe", policy.observe, layer.stats, view)
    row_stats = _call(policy, "observe_rows", policy.observe_rows, layer.row_stats, view)
    if any(now is not before for now, before in zip(vars(view).values(), shown, strict=True)):
        raise _broken(policy, "observe changed its view; only what it returns counts")
    check_observed(policy, stats, layer.stats)
    check_observed(policy, row_stats, layer.row_stats, "observe_rows")
    stats, row_stats = jax.tree.map(
        lambda new, old: jnp.asarray(new).astype(old.dtype), (stats, row_stats), (layer.stats, layer.row_stats)
    )
    return layer.replace(stats=stats, row_stats=row_stats)


def _numbers_of(policy: Policy, layer: LayerState, t: Array) -> dict[str, Array]:
    """Scores, and biases where there are any."""
    functions = {"score": policy.score, **({"bias": policy.bias} if policy.biases else {})}
    return {name: _numbers(policy, name, function, layer, t) for name, function in functions.items()}


def _score(policy: Policy, layer: LayerState, t: Array) -> Array:
    return _numbers(policy, "score", policy.score, layer, t)


def _numbers(policy: Policy, name: str, function: Callable[..., Any], layer: LayerState, t: Array) -> Array:
    shown = jax.tree.leaves(layer)
    score = _call(policy, name, function, layer, t)
    if any(now is not before for now, before in zip(jax.tree.leaves(layer), shown, strict=True)):
        raise _broken(policy, f"{name} changed its layer; only what it returns counts")
    if not isinstance(score, jax.Array | np.ndarray):
        raise _broken(policy, f"{name} returned {score!r}; it must be an array {layer.positions.shape}, [#K, S]")
    check_score(policy, score, layer, name)
    return jnp.asarray(score)


def _call(policy: Policy, name: str, function: Callable[..., Any], *given: Any) -> Any:
    try:
        return function(*given)
    except (Exception, SystemExit, GeneratorExit) as error:  # it may fail in any way
        raise _broken(policy, f"{name} failed: {typed_line(error)}") from error


def _compare(policy: Policy, name: str, rule: str, situation: Situation, expected: Any, given: Any) -> None:
    """Statistics or scores of the held tokens, which may differ by rounding."""
    held = np.argwhere(_held(situation.layer))
    for leaf, other in zip(jax.tree.leaves(expected), jax.tree.leaves(given), strict=True):
        for where in held:
            ours, theirs = np.asarray(leaf)[tuple(where)], np.asarray(other)[tuple(where)]
            if not _same(leaf, ours, theirs):
                said = rule.format(_number(ours), _number(theirs))
                raise _broken(policy, f"{name} gives {_token(situation, where)} {said}")


def _compare_rows(policy: Policy, rule: str, situation: Situation, expected: Any, given: Any) -> None:
    """Statistics of rows, which may differ by rounding."""
    for leaf, other in zip(jax.tree.leaves(expected), jax.tree.leaves(given), strict=True):
        for row, (ours, theirs) in enumerate(zip(np.asarray(leaf), np.asarray(other), strict=True)):
            if not _same(leaf, ours, theirs):
                where = f"row {row} (after {_seen(situation)})"
                said = rule.format(_number(np.asarray(ours)), _number(np.asarray(theirs)))
                raise _broken(policy, f"observe_rows gives {where} {said}")


def _same(leaf: Any, ours: Entry, theirs: Entry) -> bool:
    if not _is_float(leaf):
        return np.array_equal(ours, theirs)
    numbers = np.asarray(leaf).astype(np.float64)
    size = np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0)
    tolerance = 64 * float(jnp.finfo(leaf.dtype).eps) * float(size)
    return np.allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=0, atol=tolerance, equal_nan=True)


def _token(situation: Situation, where: np.ndarray) -> str:
    layer = situation.layer
    row, slot = where.tolist()
    return f"the token at position {int(layer.positions[row, slot])} (row {row}, after {_seen(situation)})"


def _seen(situation: Situation) -> str:
    seen = int(situation.view.t) + 1
    return f"{seen} token{'s' if seen > 1 else ''}"


def _number(value: Entry) -> str:
    return f"{float(value):.6g}" if value.ndim == 0 else f"values such as {float(value.ravel()[0]):.6g}"


def _held(layer: LayerState) -> np.ndarray:
    return np.asarray(layer.positions) != EMPTY


def _taken(leaf: Array, source: Array) -> Array:
    return jnp.take_along_axis(leaf, source.reshape(source.shape + (1,) * (leaf.ndim - 2)), axis=1)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _broken(policy: Policy, what: str) -> ValueError:
    return ValueError(f"policy {policy}: {what}")
