"""Parts of a text read one after another, with budgets that change between them, in either direction.

Where a budget is lowered without `compress`, more than the budget is held from then on, since a step frees one slot at
most.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from extending import FLOAT64
from hypothesis import given, settings
from hypothesis import strategies as st

import msrnn_jax as ms

FIRST, SECOND = 13, 11  # the longest parts


@partial(jax.jit, static_argnames=("slots", "mode", "chunk"))
def in_parts(config, policy, params, first, second, then, lengths, budgets, slots, mode, chunk):
    """Extends, extends again, and steps; budgets [2, L]."""
    state = ms.init_state(config, policy, list(budgets[0]), slots=slots, positions=mode)
    state, before = ms.extend(config, policy, params, state, first, length=lengths[0], chunk=chunk)
    state = with_budgets(state, budgets[1])
    state, after = ms.extend(config, policy, params, state, second, length=lengths[1], chunk=chunk)
    state, last = ms.step(config, policy, params, state, then)
    return state, (before, after, last)


@partial(jax.jit, static_argnames=("slots", "mode"))
def in_steps(config, policy, params, tokens, changed, budgets, slots, mode):
    """Steps through tokens [T], the budgets being the second ones from step `changed` on; every state."""

    def one(state, item):
        t, token = item
        state = with_budgets(state, jnp.where(t < changed, budgets[0], budgets[1]))
        state, logits = ms.step(config, policy, params, state, token)
        return state, (state, logits)

    state = ms.init_state(config, policy, list(budgets[0]), slots=slots, positions=mode)
    return jax.lax.scan(one, state, (jnp.arange(tokens.shape[0], dtype=jnp.int32), tokens))[1]


def with_budgets(state, budgets):
    layers = zip(state.layers, budgets, strict=True)
    return state.replace(layers=tuple(layer.replace(budget=budget) for layer, budget in layers))


def check_in_parts(case, seed, lengths, budgets):
    policy, mode, chunk, slots = case
    params, tokens = tiny.params("float64"), tiny.tokens(FIRST + SECOND + 1, seed)
    m, n = lengths
    budgets = np.array(budgets, np.int32)
    args = (FLOAT64, policy, params)
    state, (before, after, last) = jax.device_get(
        in_parts(*args, tokens[:FIRST], tokens[FIRST:-1], tokens[-1], np.array(lengths), budgets, slots, mode, chunk)
    )
    real = np.concatenate([tokens[:m], tokens[FIRST : FIRST + n], tokens[-1:]])
    padded = np.zeros_like(tokens)
    padded[: m + n + 1] = real
    states, logits = jax.device_get(in_steps(*args, padded, m, budgets, slots, mode))
    found = np.concatenate([before[:m], after[:n], last[None]])
    np.testing.assert_allclose(found, logits[: m + n + 1], rtol=0, atol=1e-9)
    assert not before[m:].any() and not after[n:].any()
    assert state.t == m + n + 1
    for mine, theirs in zip(state.layers, states.layers, strict=True):
        there = theirs.positions[m + n]
        assert tiny.sets(mine.positions) == tiny.sets(there)
        pairs = [(mine.keys, theirs.keys), (mine.values, theirs.values)]
        pairs += zip(jax.tree.leaves(mine.stats), jax.tree.leaves(theirs.stats), strict=True)
        for ours, other in pairs:
            ours = tiny.by_position(mine.positions, ours, m + n + 1)
            np.testing.assert_allclose(ours, tiny.by_position(there, other[m + n], m + n + 1), rtol=1e-7, atol=1e-12)


CASES = [
    (ms.H2O(sinks=1), "gap", 4, 12),
    (ms.Window(sinks=1), "absolute", 6, 10),
    (ms.TOVA(scope="head", recent=None), "cache", 64, 9),
    (ms.Random(scope="head", sinks=1), "absolute", 3, 7),
]


@pytest.mark.exhaustive
@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_parts_continue_one_another(data):
    with jax.enable_x64(True):
        case = data.draw(st.sampled_from(CASES))
        budget = st.integers(1, case[3] - 1)
        check_in_parts(
            case,
            data.draw(st.integers(0, 10_000)),
            (data.draw(st.integers(1, FIRST)), data.draw(st.integers(1, SECOND))),
            [data.draw(st.tuples(budget, budget)) for _ in range(2)],
        )


@pytest.mark.parametrize("case", [*CASES[::2], *map(tiny.more, CASES[1::2])], ids=lambda case: "-".join(map(str, case)))
def test_an_overfull_state_evolves_as_under_step(case, x64):
    """Padding, which makes up most of the second part here, must not empty it."""
    check_in_parts(case, 0, (FIRST, 3), [(6, 5), (3, 2)])
    check_in_parts(case, 1, (FIRST, SECOND), [(5, 6), (1, 4)])
