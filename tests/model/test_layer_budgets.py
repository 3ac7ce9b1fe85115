"""Layers of different sizes: each has the memory of its own budget, and nothing else changes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from jax.sharding import AxisType

import msrnn_jax as ms
from msrnn_jax.devices.memory import state_bytes, working_bytes
from msrnn_jax.generation.conversation import Conversation, change_policy
from msrnn_jax.io.units import tree_bytes
from msrnn_jax.tracing.lifetimes import follow, start_record

CONFIG = tiny.CONFIG
BUDGETS = (9, 4)
CASES = [
    (ms.TOVA(), "absolute"),
    (ms.H2O(), "absolute"),
    (ms.H2O(scope="layer", recent=2), "cache"),
    (ms.Window(sinks=1), "cache"),
    (ms.TOVA(scope="head", recent=None), "gap"),
]


def start(policy, **options):
    return ms.init_state(CONFIG, policy, BUDGETS, **options)


def slots_of(state):
    return [layer.num_slots for layer in state.layers]


def holding(state):
    return [tiny.held(layer) for layer in state.layers]


def test_a_state_takes_the_bytes_of_its_budgets():
    state, wide = start(ms.H2O()), start(ms.H2O(), slots=10)
    each = [state_bytes(CONFIG, ms.H2O(), budget) - 4 for budget in BUDGETS]  # the time is counted once
    assert slots_of(state) == [10, 5] and slots_of(wide) == [10, 10]
    assert tree_bytes(state) == state_bytes(CONFIG, ms.H2O(), BUDGETS) == sum(each) // 2 + 4 < tree_bytes(wide)
    assert working_bytes(CONFIG, ms.H2O(), BUDGETS) < working_bytes(CONFIG, ms.H2O(), 9)
    assert slots_of(start(ms.TOVA(), slots=(12, np.int64(5)))) == [12, 5]
    traced = jax.eval_shape(partial(ms.init_state, CONFIG, ms.TOVA(), slots=(7, 3)), jnp.asarray([4, 2]))
    assert slots_of(traced) == [7, 3]
    for slots, message in [
        ((10, 5, 5), "slots has 3 entries; it must be one number or 2, one per layer"),
        ((10, 4), "budget is 4, but there are 4 slots; it must be at most slots - 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            start(ms.TOVA(), slots=slots)


@pytest.mark.parametrize(("policy", "positions"), tiny.few(CASES, CASES[2]), ids=str)
def test_all_ways_of_reading_equal_the_oracle(policy, positions, x64):
    config, params, tokens = CONFIG.replace(dtype="float64"), tiny.params("float64"), tiny.tokens(26)
    moments = oracle.run(config, str(policy), params, tokens, BUDGETS, positions=positions)
    expected = np.stack([moment.logits for moment in moments])
    state = ms.init_state(config, policy, BUDGETS, positions=positions)
    first, logits = ms.extend(config, policy, params, state, tokens[:19], chunk=7)
    np.testing.assert_allclose(logits, expected[:19], atol=1e-9)
    last, (logits, _) = tiny.unroll_jit(config, policy, params, first, tokens[19:])
    np.testing.assert_allclose(logits, expected[19:], atol=1e-9)
    assert holding(last) == moments[-1].kept and slots_of(last) == [10, 5]
    moments = oracle.run(config, str(policy), params, tokens[:19], BUDGETS, oneshot=19, positions=positions)
    once, logits = ms.prefill(config, policy, params, state, tokens[:19], mode="oneshot")
    np.testing.assert_allclose(logits, moments[-1].logits, atol=1e-9)
    assert holding(once) == moments[-1].kept and slots_of(once) == [10, 5]


@pytest.mark.exhaustive
@pytest.mark.parametrize("policy", [ms.H2O(), tiny.more(ms.TOVA())], ids=str)
def test_what_is_done_to_states_keeps_each_layer_its_size(policy, tmp_path):
    params, path = tiny.params(), tmp_path / "state"
    state, _ = ms.extend(CONFIG, policy, params, start(policy), tiny.tokens(20))
    less = ms.compress(policy, state, (7, 2), shrink=True)
    assert slots_of(less) == [8, 3]
    assert holding(less) == holding(ms.compress(policy, state, (7, 2)))
    with pytest.raises(ValueError, match="budget is 5, but the state has 5 slots"):
        ms.compress(policy, state, 5)
    ms.save_state(path, CONFIG, policy, params, less)
    again, _ = ms.load_state(path, CONFIG, policy, params)
    jax.tree.map(np.testing.assert_array_equal, again, less)
    assert slots_of(again) == [8, 3]
    other = ms.adopt(ms.H2O(scope="head"), ms.adopt(ms.H2O(), less) if policy == ms.TOVA() else less, (7, 6))
    assert slots_of(other) == [8, 7] and [int(layer.budget) for layer in other.layers] == [7, 6]
    record = start_record(start(policy), 20)
    followed, freed = jax.jit(follow)(CONFIG, policy, params, start(policy), record, jnp.asarray(tiny.tokens(20)))
    assert holding(followed) == holding(state)
    assert [[np.flatnonzero(row > 19).tolist() for row in layer] for layer in freed] == holding(state)


@pytest.mark.exhaustive
def test_forks_meshes_and_cells_take_them():
    params, policy, tokens = tiny.params(), ms.TOVA(), jnp.asarray(tiny.tokens(14))
    last, (logits, _) = tiny.unroll_jit(CONFIG, policy, params, start(policy), tokens)
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    states = jax.device_put(ms.fork(start(policy), 2), ms.shardings(CONFIG, policy, mesh).state)
    read = jax.jit(jax.vmap(partial(ms.extend, CONFIG, policy, params, chunk=5)))
    states, found = read(states, jnp.stack([tokens, tokens]))
    np.testing.assert_allclose(found[1], logits, atol=1e-5)
    assert holding(jax.tree.map(lambda leaf: leaf[1], states)) == holding(last)
    cell = ms.MultiStateCell(CONFIG, policy, params, BUDGETS)
    carry, outputs = cell(cell.initialize_carry(()), tokens[0])
    np.testing.assert_allclose(outputs, logits[0], atol=1e-5)
    assert slots_of(carry) == [10, 5]
    assert slots_of(ms.MultiStateCell(CONFIG, policy, params, BUDGETS, slots=[12, 5]).initialize_carry(())) == [12, 5]


def test_a_window_of_places_minds_the_slots_of_its_own_layer():
    sliding = CONFIG.replace(sliding_window=6, sliding_layers=(1,))
    assert slots_of(ms.init_state(sliding, ms.TOVA(), BUDGETS, positions="cache")) == [10, 5]
    with pytest.raises(ValueError, match="there are 10 slots, but layer 1 has a sliding window of 6"):
        ms.init_state(sliding, ms.TOVA(), (4, 9), positions="cache")


def test_a_conversation_keeps_them_when_its_policy_changes():
    state, _ = ms.extend(CONFIG, ms.TOVA(), tiny.params(), start(ms.TOVA()), tiny.tokens(20))
    other = change_policy(CONFIG, Conversation(ms.TOVA(), state), ms.H2O())
    assert other.budgets == [9, 4] and slots_of(other.state) == [10, 5]
    even = change_policy(CONFIG, other, ms.H2O(), 6)  # one layer has to shrink and one to grow
    assert even.budgets == [6, 6] and slots_of(even.state) == [7, 7]
    assert [len(rows[0]) for rows in holding(even.state)] == [6, 4]


@pytest.mark.exhaustive
def test_generation_takes_no_more_memory_than_its_budgets():
    prompts, lengths = np.stack([tiny.tokens(9, seed) for seed in range(2)]), [9, 5]
    run = partial(ms.generate, CONFIG, ms.TOVA(), tiny.params(), prompts, lengths, max_new_tokens=8)
    tokens, _, states = run(budget=BUDGETS)
    same, _, wide = run(budget=BUDGETS, slots=12)
    assert tokens.tolist() == same.tolist() == run(state=start(ms.TOVA()))[0].tolist()
    assert [layer.positions.shape for layer in states.layers] == [(2, 1, 10), (2, 1, 5)]
    assert [layer.positions.shape for layer in wide.layers] == [(2, 1, 12)] * 2
