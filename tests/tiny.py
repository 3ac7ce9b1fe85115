"""A model of two layers whose sizes are all different, and the policies every test runs through."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import msrnn_jax as ms
from msrnn_jax.recurrence.eviction import comparable_scores

NEAR_TIE = 1e-5  # two lowest scores closer than this, relatively, may be taken for each other in float32

CONFIG = ms.Config(
    vocab_size=50,
    model_dim=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=3,
    head_dim=10,
    mlp_dim=40,
    rope=ms.Rope(theta=500.0),
)

SHALLOW = CONFIG.replace(num_layers=1)  # compiles in half the time, for what one layer shows as well as two

POLICIES = [
    ms.Full(),
    ms.Random(seed=3),
    ms.Random(scope="head", sinks=1),
    ms.Window(),
    ms.Window(sinks=1),
    ms.Window(sinks=4),
    ms.H2O(),
    ms.H2O(recent=0),
    ms.H2O(scope="layer", recent=3),
    ms.H2O(sinks=2, recent=2),
    ms.TOVA(),
    ms.TOVA(scope="head"),
    ms.TOVA(sinks=1),
    ms.TOVA(sinks=2, recent=3),
    ms.TOVA(scope="head", recent=None),
]

# What nearly every fault shows with.
TYPICAL = [
    ms.Random(scope="head", sinks=1),
    ms.Window(sinks=4),
    ms.H2O(),
    ms.TOVA(sinks=2, recent=3),
]


def more(*values: Any):
    """Values of a test that only `make exhaustive` takes."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


def few(cases: Iterable, *chosen: Any) -> list:
    """All values of a test, of which `make test` takes the chosen ones, and `make exhaustive` the others."""
    cases = list(cases)
    assert all(case in cases for case in chosen)
    return [case if case in chosen else more(*case) if isinstance(case, tuple) else more(case) for case in cases]


each_policy = pytest.mark.parametrize("policy", few(POLICIES, *TYPICAL), ids=str)


@cache
def params(dtype: str = "float32", seed: int = 0, config: ms.Config = CONFIG) -> ms.Params:
    """Random weights; queries are scaled up so that attention is far from uniform."""
    with jax.ensure_compile_time_eval():  # the first caller may be inside a trace
        made = ms.init_params(config.replace(dtype="float32"), jax.random.key(seed))
        layers = tuple(layer.replace(query=4 * layer.query) for layer in made.layers)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), made.replace(layers=layers))


def gate(config: ms.Config = CONFIG, lifetime: int | float = 9, *, hidden: bool = False) -> ms.policies.Gate:
    """A gate whose tokens differ: some are gone after two more, some fade over fifty."""
    made = ms.policies.init_gate(config, jax.random.key(1), width=5, lifetime=lifetime, hidden=hidden)
    keys = jax.random.split(jax.random.key(2), len(made))
    noise = [jax.random.normal(key, leaf.shape, config.dtype) for leaf, key in zip(made, keys, strict=True)]
    return ms.policies.Gate(*(leaf.astype(more.dtype) + more for leaf, more in zip(made, noise, strict=True)))


def tokens(count: int, seed: int = 0) -> np.ndarray:
    """Random token numbers [count] int32."""
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, count).astype(np.int32)


def budget_for(policy: ms.Policy, count: int, budget: int = 8) -> int:
    """The budget, or room for everything where the policy forgets nothing."""
    return budget if policy.forgets else count


def held(layer: ms.LayerState) -> list[list[int]]:
    """Positions held by every row, ascending."""
    return sets(layer.positions)


def sets(positions: Any) -> list[list[int]]:
    """Positions [rows, S] as one ascending list for each row."""
    return [sorted(int(p) for p in row if p != ms.EMPTY) for row in np.asarray(positions)]


def unroll(config: ms.Config, policy: ms.Policy, params: ms.Params, state: ms.MultiState, tokens: jax.Array):
    """Steps over tokens [T]: the last state, logits [T, V], and positions held [T, #K, S] for every layer."""

    def one(state: ms.MultiState, token: jax.Array):
        state, logits = ms.step(config, policy, params, state, token)
        return state, (logits, [layer.positions for layer in state.layers])

    return jax.lax.scan(one, state, jnp.asarray(tokens))


unroll_jit = jax.jit(unroll)
step = jax.jit(ms.step)


def watch(config: ms.Config, policy: ms.Policy, params: ms.Params, state: ms.MultiState, tokens: jax.Array):
    """Steps over tokens [T]: the last state, logits [T, V], and positions and statistics [T, ...] of every layer."""

    def one(state: ms.MultiState, token: jax.Array):
        state, logits = ms.step(config, policy, params, state, token)
        return state, (logits, [(layer.positions, layer.stats) for layer in state.layers])

    last, (logits, seen) = jax.lax.scan(one, state, jnp.asarray(tokens))
    return last, logits, seen


@jax.jit
def margins(policy: ms.Policy, state: ms.MultiState, seen: list) -> jax.Array:
    """How close every step came to forgetting another token, [T]; infinite where nothing had to go.

    The distance of the two lowest scores relative to the larger one, the least over layers and rows. Scores that
    are integers are exact, so nothing is close to them.

    Args:
      state: the one from which `watch` started, for its budgets; empty.
      seen: what `watch` returned.
    """
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *state.layers)
    positions, stats = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)  # [L, T, ...]

    def of_step(layer: ms.LayerState, before: jax.Array, after: jax.Array, stats: jax.Array, t: jax.Array):
        free = jnp.argmax(before == ms.EMPTY, axis=1).astype(jnp.int32)
        here = jnp.arange(layer.num_slots, dtype=jnp.int32)[None] == free[:, None]
        full = layer.replace(positions=jnp.where(here, t, before), stats=stats)  # a freed slot keeps its statistics
        score, eligible = comparable_scores(policy, full, t + 1)
        if jnp.issubdtype(score.dtype, jnp.integer):
            return jnp.asarray(jnp.inf)
        held = full.positions != ms.EMPTY
        eligible = jnp.where(eligible.any(axis=1, keepdims=True), eligible, held)
        lowest, second = jnp.moveaxis(jnp.sort(jnp.where(eligible, score, jnp.inf), axis=1)[:, :2], 1, 0)
        size = jnp.maximum(jnp.abs(lowest), jnp.abs(second))
        relative = jnp.where(second == lowest, 0.0, (second - lowest) / size)
        chosen = (held != (after != ms.EMPTY)).any(axis=1) & jnp.isfinite(lowest) & jnp.isfinite(second)
        return jnp.min(jnp.where(chosen, relative, jnp.inf))

    def of_layer(layer: ms.LayerState, positions: jax.Array, stats: jax.Array):
        before = jnp.concatenate([layer.positions[None], positions[:-1]])
        times = jnp.arange(len(positions), dtype=jnp.int32)
        return jax.vmap(of_step, (None, 0, 0, 0, 0))(layer, before, positions, stats, times)

    return jax.vmap(of_layer)(layers, positions, stats).min(axis=0)


def first_near_tie(margin: np.ndarray) -> int:
    """The first step at which another token came close to going, or the number of steps if there is none."""
    near = np.asarray(margin) <= NEAR_TIE
    return int(near.argmax()) if near.any() else len(near)


def by_position(positions: np.ndarray, leaf: np.ndarray, count: int) -> np.ndarray:
    """What slots hold [..., rows, S, *rest], ordered by token [..., rows, count, *rest]; 0 where none is held."""
    positions, leaf = np.asarray(positions), np.asarray(leaf)
    index = np.where(positions == ms.EMPTY, count, positions)
    axis = positions.ndim - 1
    table = np.zeros((*leaf.shape[:axis], count + 1, *leaf.shape[axis + 1 :]), leaf.dtype)
    np.put_along_axis(table, index.reshape(index.shape + (1,) * (leaf.ndim - index.ndim)), leaf, axis)
    return np.delete(table, count, axis)
