"""Who goes, one at a time and many at once."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import msrnn_jax as ms
from msrnn_jax.recurrence.eviction import evict_one, evict_to_budget


class Given(ms.Policy):
    """Scores are whatever the statistics say."""

    def init(self, rows, slots):
        return jnp.zeros((rows, slots))

    def score(self, layer, t):
        return layer.stats


@cache
def empty_layer(slots):
    return ms.init_state(tiny.CONFIG, Given(), slots - 1, slots=slots).layers[0]


def layer_of(positions, scores, budget):
    slots = len(positions)
    return empty_layer(slots).replace(
        positions=jnp.asarray([positions], jnp.int32),
        stats=jnp.asarray([scores], jnp.float32),
        budget=jnp.int32(budget),
    )


def who_goes(positions, scores, budget, sinks, recent, t):
    """The rule of the design, read aloud: one by one, in plain Python."""
    held = {p: s for p, s in zip(positions, scores, strict=True) if p != ms.EMPTY}
    while len(held) > budget:
        eligible = [p for p in held if p >= sinks and p < t - recent] or list(held)
        lowest = min(held, key=lambda p: (p not in eligible, -np.inf if np.isnan(held[p]) else held[p], p))
        del held[lowest]
    return sorted(held)


evict_one_jit, evict_to_budget_jit = jax.jit(evict_one), jax.jit(evict_to_budget)
# Sinks and recent tokens: none, either, both with tokens between them, and more than there may be.
PROTECTED = st.sampled_from([(0, 0), (3, 0), (0, 2), (1, 1), (2, 4), (5, 5)])
numbers = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, -1.0, np.nan, np.inf, -np.inf])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_both_ways_of_forgetting_follow_the_rule(data):
    slots = 8
    places = data.draw(st.permutations(range(12)))[:slots]
    positions = [p if data.draw(st.booleans()) else ms.EMPTY for p in places]
    scores = data.draw(st.lists(numbers, min_size=slots, max_size=slots))
    sinks, recent = data.draw(PROTECTED)
    budget = data.draw(st.integers(1, slots - 1))
    policy, layer = Given(sinks=sinks, recent=recent), layer_of(positions, scores, budget)
    t = max([0, *(p + 1 for p in positions)])
    expected = who_goes(positions, scores, budget, sinks, recent, t)
    assert tiny.held(evict_to_budget_jit(policy, layer, jnp.int32(t))) == [expected]
    one_by_one = layer
    for _ in range(slots):
        one_by_one = evict_one_jit(policy, one_by_one, jnp.int32(t))
    assert tiny.held(one_by_one) == [expected]


def test_half_the_budget_is_protected_where_recent_is_none():
    policy = Given(recent=None)
    layer = layer_of([0, 1, 2, 3, 4, 5, ms.EMPTY], [6, 5, 4, 3, 2, 1, 0], budget=4)
    assert tiny.held(evict_to_budget(policy, layer, jnp.int32(6))) == [[0, 1, 4, 5]]


@tiny.each_policy
def test_compress_is_jittable_and_agrees_across_budgets(policy):
    """From a state that holds everything; a smaller budget keeps a subset, and later steps keep to it."""
    count, config, params = 24, tiny.SHALLOW, tiny.params(config=tiny.SHALLOW)
    state, _ = tiny.unroll_jit(config, policy, params, ms.init_state(config, policy, count), tiny.tokens(count))
    compress = jax.jit(ms.compress)
    fixed = policy if policy.recent is not None else policy.replace(recent=3)  # half would change with the budget
    wide, narrow = compress(fixed, state, jnp.int32(12)), compress(fixed, state, jnp.int32(7))
    for big, small in zip(wide.layers, narrow.layers, strict=True):
        for many, few in zip(tiny.held(big), tiny.held(small), strict=True):
            assert len(many) == 12 and len(few) == 7 and set(few) <= set(many)
    after, _ = tiny.step(config, fixed, params, narrow, jnp.int32(1))
    assert all(len(row) == 7 for layer in after.layers for row in tiny.held(layer))
    assert int(narrow.t) == count


def test_a_traced_budget_beyond_the_slots_is_cut_to_all_but_one():
    """A step needs a free slot, and nobody can see the number before it is too late."""
    state, _ = tiny.unroll_jit(
        tiny.CONFIG, ms.Window(), tiny.params(), ms.init_state(tiny.CONFIG, ms.Window(), (6, 3)), tiny.tokens(9)
    )
    wide = jax.jit(ms.compress)(ms.Window(), state, jnp.int32(1000))
    assert [int(layer.budget) for layer in wide.layers] == [6, 3]
    after, _ = tiny.unroll_jit(tiny.CONFIG, ms.Window(), tiny.params(), wide, tiny.tokens(9, 1))
    assert [tiny.held(layer) for layer in after.layers] == [[[12, 13, 14, 15, 16, 17]], [[15, 16, 17]]]


def test_without_a_budget_each_layer_keeps_its_own():
    state = ms.init_state(tiny.CONFIG, ms.Window(), (4, 6), slots=20)
    grown = state.replace(layers=tuple(layer.replace(budget=jnp.int32(19)) for layer in state.layers))
    full, _ = tiny.unroll_jit(tiny.CONFIG, ms.Window(), tiny.params(), grown, tiny.tokens(15))
    own = full.replace(
        layers=tuple(layer.replace(budget=jnp.int32(b)) for layer, b in zip(full.layers, (4, 6), strict=True))
    )
    assert [tiny.held(layer) for layer in ms.compress(ms.Window(), own).layers] == [
        [list(range(11, 15))],
        [list(range(9, 15))],
    ]


@pytest.mark.parametrize("policy", [ms.TOVA(), ms.H2O()], ids=str)
def test_shrink_cuts_the_slots_and_nothing_else(policy):
    config, params = tiny.SHALLOW, tiny.params(config=tiny.SHALLOW)
    state, _ = tiny.unroll_jit(config, policy, params, ms.init_state(config, policy, 16), tiny.tokens(20))
    same, less = ms.compress(policy, state, 6), ms.compress(policy, state, 6, shrink=True)
    assert [layer.num_slots for layer in same.layers] == [17]
    assert [layer.num_slots for layer in less.layers] == [7]
    assert [tiny.held(layer) for layer in same.layers] == [tiny.held(layer) for layer in less.layers]
    outputs = [tiny.unroll_jit(config, policy, params, s, tiny.tokens(10, 1))[1][0] for s in (same, less)]
    np.testing.assert_allclose(*outputs, atol=1e-5)  # sums run over slots in another order


def test_refusals_name_what_is_wrong():
    state = ms.init_state(tiny.CONFIG, ms.TOVA(), 6)
    for budget, message in [
        (0, "budget is 0; it must be a whole number of at least 1"),
        (7, "budget is 7, but the state has 7 slots; it must be at most slots - 1"),
        ((3, 4, 5), "budget has 3 entries; it must be one number or 2, one per layer"),
        (np.asarray(2.5), "budget is 2.5; it must be a whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            ms.compress(ms.TOVA(), state, budget)
    with pytest.raises(ValueError, match="budget is 3, but tova:sinks=2,recent=2 protects 2 sinks and 2 recent"):
        ms.compress(ms.TOVA(sinks=2, recent=2), state, 3)
    with pytest.raises(ValueError, match="shrink needs a budget that is not traced"):
        jax.jit(lambda budget: ms.compress(ms.TOVA(), state, budget, shrink=True))(jnp.int32(3))
