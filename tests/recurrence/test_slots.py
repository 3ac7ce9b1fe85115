"""Making states and changing how many slots they have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.recurrence.slots import grow_slots, shrink_slots, write_token


def test_shapes_of_an_empty_state():
    state = ms.init_state(tiny.CONFIG, ms.H2O(), (5, 3), dtype="bfloat16")
    first, second = state.layers
    assert first.keys.shape == first.values.shape == (3, 6, 10) and first.keys.dtype == jnp.bfloat16
    assert first.positions.shape == first.stats.shape == (3, 6)
    assert (int(first.budget), int(second.budget), int(state.t)) == (5, 3, 0)
    assert ms.init_state(tiny.CONFIG, ms.TOVA(), 5).layers[0].positions.shape == (1, 6)
    assert (np.asarray(first.positions) == ms.EMPTY).all()


@pytest.mark.parametrize("policy", [ms.TOVA(), ms.H2O()], ids=str)
def test_a_new_token_takes_a_free_slot_and_fresh_statistics(policy):
    layer = ms.init_state(tiny.CONFIG, policy, 3).layers[0]
    rows = layer.num_rows
    layer = layer.replace(
        positions=jnp.asarray([[7, ms.EMPTY, 9, 8]] * rows, jnp.int32), stats=jnp.full((rows, 4), 5.0)
    )
    key, value = jnp.arange(30.0).reshape(3, 10), -jnp.arange(30.0).reshape(3, 10)
    after, slot = write_token(policy, layer, key, value, jnp.int32(10))
    assert slot.tolist() == [1] * rows
    assert after.positions.tolist() == [[7, 10, 9, 8]] * rows
    assert after.stats.tolist() == [[5, 0, 5, 5]] * rows
    np.testing.assert_array_equal(after.keys[:, 1], key)
    np.testing.assert_array_equal(after.values[:, 1], value)
    assert not after.keys[:, [0, 2, 3]].any()


class Fading(ms.Policy):
    """A token is worth 8 when it is new, and half as much after every later one: the oldest goes."""

    def init(self, rows, slots):
        return jnp.full((rows, slots), 16.0)

    def observe(self, stats, view):
        return stats / 2

    def score(self, layer, t):
        return layer.stats


@pytest.mark.parametrize("way", ["step", "chunks", "at once"])
def test_statistics_begin_anew_in_a_slot_that_is_reused_though_they_do_not_begin_at_zero(way):
    policy, params, tokens = Fading(), tiny.params(), tiny.tokens(11)
    state = ms.init_state(tiny.CONFIG, policy, 3)
    if way == "step":
        state, _ = tiny.unroll_jit(tiny.CONFIG, policy, params, state, tokens)
    else:
        state, _ = ms.extend(tiny.CONFIG, policy, params, state, tokens, chunk=4 if way == "chunks" else 11)
    for layer in state.layers:
        worth = dict(zip(layer.positions[0].tolist(), layer.stats[0].tolist(), strict=True))
        assert {position: worth[position] for position in sorted(worth) if position >= 0} == {8: 2.0, 9: 4.0, 10: 8.0}


def test_rows_write_into_slots_of_their_own():
    layer = ms.init_state(tiny.CONFIG, ms.H2O(), 2).layers[0]
    layer = layer.replace(positions=jnp.asarray([[0, 1, -1], [-1, 0, 1], [0, -1, 1]], jnp.int32))
    after, slot = write_token(ms.H2O(), layer, jnp.ones((3, 10)), jnp.ones((3, 10)), jnp.int32(2))
    assert slot.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(after.keys.sum(axis=2) > 0, np.eye(3)[[2, 0, 1]] > 0)


@pytest.mark.parametrize("policy", [ms.TOVA(), ms.H2O(), ms.Window()], ids=str)
def test_growing_and_cutting_keep_what_is_held(policy):
    state, _ = tiny.unroll_jit(
        tiny.CONFIG, policy, tiny.params(), ms.init_state(tiny.CONFIG, policy, 5), tiny.tokens(12)
    )
    for layer in state.layers:
        wide = grow_slots(policy, layer, 4)
        assert wide.num_slots == 10 and tiny.held(wide) == tiny.held(layer)
        back = shrink_slots(wide, 6)
        assert tiny.held(back) == tiny.held(layer)
        order = np.argsort(np.where(np.asarray(layer.positions) < 0, 99, layer.positions), axis=1)
        keys = np.take_along_axis(np.asarray(layer.keys), np.broadcast_to(order[..., None], layer.keys.shape), axis=1)
        np.testing.assert_array_equal(back.keys[:, :5], keys[:, :5])


def test_refusals_name_what_is_wrong():
    def refused(message, policy=None, **options):
        with pytest.raises(ValueError, match=message):
            ms.init_state(tiny.CONFIG, policy or ms.TOVA(), **options)

    refused("budget is 0; it must be a whole number of at least 1", budget=0)
    refused("budget is -3; it must be a whole number of at least 1", budget=-3)
    refused("budget is 1.5; it must be a whole number of at least 1", budget=np.asarray(1.5))
    refused("budget is True; it must be a whole number", budget=True)
    refused("budget is 3000000000; it must be at most 2147483646", budget=3 * 10**9)
    refused("budget is 100000000000000000000; it must be at most 2147483646", budget=10**20)
    refused("budget has 3 entries; it must be one number or 2, one per layer", budget=(1, 2, 3))
    refused(r"budget has shape \(1, 2, 3\); it must be one number or one per layer", budget=jnp.ones((1, 2, 3), int))
    for budget in (np.full((2, 3), 4), [[4, 4, 4], [4, 4, 4]]):
        refused(r"budget of a layer has shape \(3,\); under tova it must be one number", budget=budget)
    heads = ms.TOVA(scope="head")
    refused(
        r"budget of a layer has shape \(2,\); under .* it must be 3, one per head", heads, budget=np.ones((2, 2), int)
    )
    refused("it must be one number", heads.replace(adaptive=0.2), budget=np.full((2, 3), 4))
    refused("budget is 7, but there are 8 slots; it must be at most slots - 4", ms.TOVA(every=4), budget=7, slots=8)
    refused("budget is 4, but there are 8 slots; it must be at most 3", ms.H2O(adaptive=0.5), budget=4, slots=8)
    refused("budget is 8, but there are 8 slots; it must be at most slots - 1", budget=8, slots=8)
    refused("slots is 1; it must be a whole number of at least 2", budget=1, slots=1)
    refused("positions is 'relative'; it must be one of absolute, cache, gap", budget=4, positions="relative")
    refused(
        "budget is 5, but window:sinks=6 protects 6 sinks and 0 recent tokens; sinks . recent must be at most",
        ms.Window(sinks=6),
        budget=5,
    )
    refused("budget is 5, but h2o:sinks=4 protects 4 sinks and 2 recent", ms.H2O(sinks=4), budget=(9, 5))
    with pytest.raises(ValueError, match="slots is missing; it must be given where the budget is traced"):
        jax.jit(lambda budget: ms.init_state(tiny.CONFIG, ms.TOVA(), budget))(jnp.int32(4))
    refused("dtype is 'int8'; it must be one of bfloat16, float16, float32, float64", budget=4, dtype="int8")
    refused("dtype is 'wide'; it must be one of", budget=4, dtype="wide")
    refused("dtype is 'float64'; JAX holds it only with jax_enable_x64 set", budget=4, dtype="float64")


def test_a_known_budget_beside_a_traced_one_must_hold_what_is_protected():
    with pytest.raises(ValueError, match="budget is 2, but tova:sinks=3 protects 3 sinks"):
        jax.jit(lambda first: ms.init_state(tiny.CONFIG, ms.TOVA(sinks=3), [first, 2], slots=9))(5)
