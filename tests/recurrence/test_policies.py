"""The contract that every policy must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.recurrence.eviction import evict_one

in_rows = jax.jit(jax.vmap(tiny.unroll, (None, None, None, 0, 0)))


@tiny.each_policy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_leaves_the_types_of_the_state_a_fixed_point(policy, dtype):
    config = tiny.CONFIG.replace(dtype=dtype)
    state = ms.init_state(config, policy, 8)
    token = jnp.zeros((), jnp.int32)
    after, logits = jax.eval_shape(ms.step, config, policy, tiny.params(dtype), state, token)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(after)] == [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    assert (logits.shape, logits.dtype) == ((tiny.CONFIG.vocab_size,), jnp.float32)


@tiny.each_policy
def test_types_are_a_fixed_point_in_float64_and_with_x64_on(policy, x64):
    for dtype in ("float64", "float32", "bfloat16"):
        config = tiny.CONFIG.replace(dtype=dtype)
        state = ms.init_state(config, policy, 8)
        token = jnp.zeros((), jnp.int32)
        after, _ = jax.eval_shape(ms.step, config, policy, tiny.params(dtype), state, token)
        assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]


@tiny.each_policy
def test_an_equal_policy_does_not_retrace(policy):
    traces = []

    @jax.jit
    def step(policy, state, token):
        traces.append(policy)
        return ms.step(tiny.CONFIG, policy, tiny.params(), state, token)

    state = ms.init_state(tiny.CONFIG, policy, 8)
    state, _ = step(policy, state, jnp.int32(1))
    step(ms.parse_policy(str(policy)), state, jnp.int32(2))
    step(policy.replace(), ms.init_state(tiny.CONFIG, policy, 6, slots=9), jnp.int32(3))
    assert len(traces) == 1
    assert policy.replace() == policy and hash(policy.replace()) == hash(policy)


@pytest.mark.parametrize("policy", tiny.few(tiny.POLICIES, tiny.TYPICAL[0], tiny.TYPICAL[3]), ids=str)
def test_a_batch_agrees_with_one_by_one(policy):
    count = 30
    rows = jnp.stack([tiny.tokens(count, seed) for seed in range(3)])
    config, params = tiny.CONFIG, tiny.params()
    state = ms.init_state(config, policy, tiny.budget_for(policy, count))
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), state)
    last, (logits, _) = in_rows(config, policy, params, states, rows)
    for row in range(3):
        alone, (expected, _) = tiny.unroll_jit(config, policy, params, state, rows[row])
        np.testing.assert_allclose(logits[row], expected, atol=2e-5)  # float32 rounding
        for ours, theirs in zip(last.layers, alone.layers, strict=True):
            np.testing.assert_array_equal(ours.positions[row], theirs.positions)


@tiny.each_policy
def test_holds_at_most_its_budget_and_keeps_its_promises(policy):
    count, budget = 40, tiny.budget_for(policy, 40)
    state = ms.init_state(tiny.CONFIG, policy, budget, slots=count + 3)
    _, (_, positions) = tiny.unroll_jit(tiny.CONFIG, policy, tiny.params(), state, tiny.tokens(count))
    recent = budget // 2 if policy.recent is None else policy.recent
    for layer in jax.device_get(positions):
        for t in range(count):
            for row in tiny.sets(layer[t]):
                assert len(row) == min(t + 1, budget)  # never more, and no slot is wasted
                assert len(set(row)) == len(row) and set(row) <= set(range(t + 1))
                assert set(range(min(policy.sinks, t + 1))) <= set(row)
                assert set(range(max(0, t + 1 - recent), t + 1)) <= set(row)


@tiny.each_policy
@pytest.mark.parametrize("dtype", ["bfloat16", tiny.more("float16")])
def test_runs_finite_in_half_precision(policy, dtype):
    count = 40
    config, params = tiny.CONFIG.replace(dtype=dtype), tiny.params(dtype)
    state = ms.init_state(config, policy, tiny.budget_for(policy, count))
    last, (logits, _) = tiny.unroll_jit(config, policy, params, state, tiny.tokens(count))
    assert np.isfinite(logits).all()
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(last))
    state = ms.init_state(tiny.CONFIG, policy, count, slots=count + 3)  # of one shape with those above: one program
    _, (exact, _) = tiny.unroll_jit(tiny.CONFIG, policy, tiny.params(), state, tiny.tokens(count))
    # Up to the first eviction nothing but rounding differs: 8 bits of mantissa, two layers.
    assert np.abs(np.asarray(logits[:8]) - exact[:8]).max() < 0.25 < np.abs(exact).max()


@tiny.each_policy
def test_does_not_depend_on_the_order_of_slots(policy):
    """The same memories in shuffled slots forget the same token."""
    count = 30
    state = ms.init_state(tiny.CONFIG, policy, tiny.budget_for(policy, count, 8))
    last, _ = tiny.unroll_jit(tiny.CONFIG, policy, tiny.params(), state, tiny.tokens(count))
    layer = last.layers[0].replace(budget=jnp.int32(6))
    order = np.random.default_rng(0).permutation(layer.num_slots)
    shuffled = jax.tree.map(lambda leaf: leaf[:, order] if leaf.ndim > 1 else leaf, layer)
    assert tiny.held(evict_one(policy, layer, last.t)) == tiny.held(evict_one(policy, shuffled, last.t))


def test_no_two_classes_of_policies_are_one_to_jit():
    """JAX compares trees by static values alone; two classes with equal options must still differ."""

    class Newest(ms.Policy):
        def score(self, layer, t):
            return layer.positions

    class Oldest(ms.Policy):
        def score(self, layer, t):
            return -layer.positions

    bare = [ms.Full(), ms.Window(), ms.TOVA(), ms.H2O(scope="layer", recent=0), Newest(), Oldest()]
    for number, first in enumerate(bare):
        for second in bare[:number]:
            assert jax.tree.structure(first) != jax.tree.structure(second) and first != second
        assert jax.tree.structure(first) == jax.tree.structure(first.replace())
        assert jax.tree.unflatten(jax.tree.structure(first), []) == first


static = [policy for policy in tiny.POLICIES if policy.static]


@pytest.mark.parametrize("policy", static, ids=str)
def test_a_static_policy_looks_at_the_token_alone(policy):
    """Whatever was attended to, whatever the keys, values and statistics, scores stay."""
    state = ms.init_state(tiny.CONFIG, policy, tiny.budget_for(policy, 30))
    last, _ = tiny.unroll_jit(tiny.CONFIG, policy, tiny.params(), state, tiny.tokens(30))
    layer = last.layers[1]
    other = layer.replace(keys=-layer.keys, values=layer.values + 1)
    np.testing.assert_array_equal(policy.score(layer, last.t), policy.score(other, last.t))
    assert jax.tree.leaves(layer.stats) == []


def test_the_trace_of_figure_2():
    """Oren et al., Figure 2: five slots, scores as printed there, and what each step drops."""
    steps = [
        ({0: 0.2, 1: 0.05, 2: 0.1, 3: 0.1, 4: 0.2, 5: 0.35}, 1),
        ({0: 0.15, 2: 0.15, 3: 0.1, 4: 0.05, 5: 0.25, 6: 0.3}, 4),
        ({0: 0.15, 2: 0.15, 3: 0.1, 5: 0.15, 6: 0.2, 7: 0.25}, 3),
        ({0: 0.2, 2: 0.15, 5: 0.15, 6: 0.1, 7: 0.15, 8: 0.25}, 6),
    ]
    policy = ms.TOVA()
    layer = ms.init_state(tiny.CONFIG, policy, 5).layers[0]
    layer = layer.replace(positions=jnp.asarray([[0, 1, 2, 3, 4, ms.EMPTY]], jnp.int32))
    for scores, dropped in steps:
        newest = max(scores)
        layer = layer.replace(positions=jnp.where(layer.positions == ms.EMPTY, newest, layer.positions))
        weights = jnp.asarray([scores[int(p)] for p in layer.positions[0]])
        # Six heads whose mean is the printed weight, three of them off one way and three the other.
        tilt = jnp.asarray([0.02, -0.02])[None, :, None] * jnp.asarray([1.0, -1, 1, -1, 1, -1])[None, None]
        view = ms.View(
            probs=jnp.broadcast_to(weights, (3, 2, 6)) + tilt,
            positions=layer.positions,
            t=jnp.int32(newest),
            token=jnp.int32(0),
            queries=jnp.zeros((6, 10)),
            keys=layer.keys,
            values=layer.values,
        )
        layer = layer.replace(stats=policy.observe(layer.stats, view))
        layer = evict_one(policy, layer, jnp.int32(newest + 1))
        assert tiny.held(layer) == [sorted(set(scores) - {dropped})]


def test_random_keeps_a_uniform_sample():
    """Over many seeds every position survives equally often, in every row by its own draw."""
    count, budget, seeds, rows = 32, 8, 100, 12
    config = tiny.CONFIG.replace(num_heads=rows, num_kv_heads=rows)
    layer = ms.init_state(config, ms.Random(scope="head"), budget, slots=count + 1).layers[0]
    positions = jnp.broadcast_to(jnp.arange(count + 1, dtype=jnp.int32), (rows, count + 1))
    layer = layer.replace(positions=jnp.where(positions == count, ms.EMPTY, positions))
    kept = np.zeros((rows, count))
    for seed in range(seeds):
        score = np.asarray(ms.Random(scope="head", seed=seed).score(layer, jnp.int32(count)))[:, :count]
        for row in range(rows):
            kept[row, np.argsort(score[row])[-budget:]] += 1
    expected = seeds * budget / count  # 25, deviation sqrt(100 * 0.25 * 0.75) = 4.3
    assert np.abs(kept - expected).max() < 5 * 4.3
    assert np.abs(kept.sum(axis=0) - rows * expected).max() < 5 * 15  # sqrt(1200 * 0.25 * 0.75)
    assert len({tuple(row) for row in kept}) == rows
