"""The step under scan, jit, vmap and grad, in every dtype."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.model.llama import advance

CONFIG = tiny.CONFIG


def scan(policy, state, tokens):
    return jax.lax.scan(partial(ms.step, CONFIG, policy, tiny.params()), state, tokens)


scan_jit = jax.jit(scan)
advance_jit = jax.jit(advance)


def test_scans_inside_and_outside_jit():
    policy, tokens = ms.TOVA(), jnp.asarray(tiny.tokens(20))
    state = ms.init_state(CONFIG, policy, 6)
    outside, logits = scan(policy, state, tokens)
    inside, jitted = scan_jit(policy, state, tokens)
    np.testing.assert_allclose(logits, jitted, atol=1e-5)  # float32 rounding
    assert [tiny.held(layer) for layer in outside.layers] == [tiny.held(layer) for layer in inside.layers]
    expected = [moment.logits for moment in oracle.run(CONFIG, "tova", tiny.params(), np.asarray(tokens), 6)]
    np.testing.assert_allclose(logits, np.stack(expected), atol=1e-4)  # the oracle is in float64
    assert int(outside.t) == 20


def test_one_compilation_serves_every_budget_by_vmap(x64):
    """Budgets as data: each row of the batch equals the oracle at that budget."""
    config, params, tokens = CONFIG.replace(dtype="float64"), tiny.params("float64"), tiny.tokens(24)
    budgets = jnp.arange(1, 25, dtype=jnp.int32)
    states = jax.vmap(lambda budget: ms.init_state(config, ms.TOVA(), budget, slots=25))(budgets)
    run = jax.jit(jax.vmap(tiny.unroll, (None, None, None, 0, None)))
    last, (logits, _) = run(config, ms.TOVA(), params, states, tokens)
    for row, budget in enumerate(budgets.tolist()):
        moments = oracle.run(config, "tova", params, tokens, budget)
        np.testing.assert_allclose(logits[row], np.stack([m.logits for m in moments]), atol=1e-9)
        layers = [jax.tree.map(lambda leaf, row=row: leaf[row], layer) for layer in last.layers]
        assert [tiny.held(layer) for layer in layers] == [[list(r) for r in layer] for layer in moments[-1].kept]


def test_a_traced_budget_above_the_slots_is_the_most_they_hold():
    state = jax.jit(lambda budget: ms.init_state(CONFIG, ms.TOVA(), budget, slots=5))(jnp.int32(100))
    assert [int(layer.budget) for layer in state.layers] == [4, 4]
    last, _ = scan_jit(ms.TOVA(), state, tiny.tokens(12))
    assert all(len(row) == 4 for layer in last.layers for row in tiny.held(layer))


@pytest.mark.exhaustive
@pytest.mark.parametrize("policy", [ms.H2O(), *map(tiny.more, (ms.TOVA(), ms.Window(sinks=1)))], ids=str)
def test_gradients_equal_finite_differences(policy, x64):
    config, params = CONFIG.replace(dtype="float64"), tiny.params("float64")
    tokens = jnp.asarray(tiny.tokens(14))
    state = ms.init_state(config, policy, 5)

    @jax.jit
    def loss(params):
        _, losses = ms.nll(config, policy, params, state, tokens[:-1], tokens[1:])
        return losses.mean()

    gradient = jax.jit(jax.grad(loss))(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    direction = tree.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])
    size = 1e-6
    ahead, behind = (jax.tree.map(lambda p, d, s=s: p + s * d, params, direction) for s in (size, -size))
    numeric = (loss(ahead) - loss(behind)) / (2 * size)
    exact = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(exact, numeric, rtol=1e-6)


class Learned(ms.Policy):
    """A scorer with a weight of its own."""

    weight: jax.Array

    def score(self, layer, t):
        return (layer.keys @ self.weight).mean(axis=0)[None]


def test_a_policy_may_have_array_fields():
    """Arrays in a policy are data: another value does not retrace."""
    tokens, traces = jnp.asarray(tiny.tokens(12)), []

    @jax.jit
    def loss(policy):
        traces.append(policy)
        state = ms.init_state(CONFIG, policy, 4)
        return ms.nll(CONFIG, policy, tiny.params(), state, tokens[:-1], tokens[1:])[1].sum()

    first, second = (loss(Learned(weight=sign * jnp.ones(CONFIG.head_dim))) for sign in (1.0, -1.0))
    assert len(traces) == 1 and float(first) != float(second)


@pytest.mark.parametrize("policy", [ms.H2O(), *map(tiny.more, (ms.TOVA(), ms.Window(), ms.Random()))], ids=str)
def test_padding_changes_nothing(policy):
    """A padded token leaves positions, clock and statistics as they were, whatever it is, and no NaN behind."""
    state = ms.init_state(CONFIG, policy, 5)
    for count in (0, 3, 9):  # empty, half full, full
        before, _ = scan_jit(policy, state, tiny.tokens(count)) if count else (state, None)
        after, x = advance_jit(CONFIG, policy, tiny.params(), before, jnp.int32(7), real=jnp.asarray(False))
        assert np.isfinite(x).all()
        assert int(after.t) == count
        for old, new in zip(before.layers, after.layers, strict=True):
            np.testing.assert_array_equal(old.positions, new.positions)
            kept = np.asarray(old.positions) != ms.EMPTY
            jax.tree.map(lambda a, b, k=kept: np.testing.assert_array_equal(np.asarray(a)[k], np.asarray(b)[k]),
                         old.stats, new.stats)  # fmt: skip
        a, b = (scan_jit(policy, s, tiny.tokens(6, seed=1))[1] for s in (before, after))
        np.testing.assert_array_equal(a, b)


def test_a_bounded_state_does_not_see_what_it_forgot():
    """Two texts that differ only in a token the window has dropped give the same logits from then on."""
    first, second = tiny.tokens(30), tiny.tokens(30)
    second[4] = (first[4] + 1) % CONFIG.vocab_size
    state = ms.init_state(CONFIG, ms.Window(), 3)
    a, b = (scan_jit(ms.Window(), state, jnp.asarray(text))[1] for text in (first, second))
    # Each of two layers looks back three tokens, so the difference is gone six tokens later.
    assert np.abs(np.asarray(a[4:9]) - b[4:9]).max() > 1e-3
    np.testing.assert_array_equal(a[11:], b[11:])


def test_a_full_state_forgets_the_oldest_under_tracing():
    state = ms.init_state(CONFIG, ms.Full(), 6)
    last, logits = scan_jit(ms.Full(), state, tiny.tokens(15))
    _, window = scan_jit(ms.Window(), ms.init_state(CONFIG, ms.Window(), 6), tiny.tokens(15))
    np.testing.assert_array_equal(logits, window)
    assert tiny.held(last.layers[0]) == [list(range(9, 15))]


def test_the_clock_of_a_state_may_be_far():
    """Positions are true ones: moving the whole text by any distance changes no attention beyond rounding."""
    policy, tokens = ms.Window(), tiny.tokens(12)
    state = ms.init_state(CONFIG, policy, 5)
    _, near = scan_jit(policy, state, tokens)
    _, far = scan_jit(policy, state.replace(t=jnp.int32(1000)), tokens)
    np.testing.assert_allclose(near, far, atol=1e-4)


def refusal(call) -> str:
    with pytest.raises(ValueError) as raised:
        call()
    return str(raised.value)


def test_a_state_goes_only_with_its_scope_policy_and_model():
    params, token = tiny.params(), jnp.int32(0)
    layerwise = ms.init_state(CONFIG, ms.TOVA(), 5)
    message = refusal(lambda: ms.step(CONFIG, ms.TOVA(scope="head"), params, layerwise, token))
    assert "1 rows of slots" in message and "tova:scope=head" in message
    message = refusal(lambda: ms.step(CONFIG, ms.Window(), params, layerwise, token))
    assert "other statistics than those of window" in message
    relative = layerwise.replace(mode="relative")
    message = refusal(lambda: ms.step(CONFIG, ms.TOVA(), params, relative, token))
    assert "positions are 'relative'; they must be one of absolute, cache, gap" in message
    batch = jax.tree.map(lambda leaf: leaf[None], layerwise)
    for call in (
        lambda: ms.step(CONFIG, ms.TOVA(), params, batch, token),
        lambda: ms.compress(ms.TOVA(), batch, 2),
    ):
        assert "keys have shape (1, 3, 6, 10); they must be [K, S, H], so vmap over a batch" in refusal(call)
    message = refusal(lambda: ms.step(CONFIG.replace(mlp_dim=41), ms.TOVA(), params, layerwise, token))
    assert "params do not fit the config: .layers[0].gate is float32[24, 40]; it must be float32[24, 41]" in message
    message = refusal(lambda: ms.compress(ms.TOVA(scope="head"), layerwise, 2))
    assert "1 rows of slots, but tova:scope=head forgets by head, which takes 3" in message
    other = CONFIG.replace(num_layers=3)
    message = refusal(lambda: ms.step(other, ms.TOVA(), tiny.params(config=other), layerwise, token))
    assert "state has 2 layers; the config has 3" in message
    other = CONFIG.replace(head_dim=12)
    message = refusal(lambda: ms.step(other, ms.TOVA(), tiny.params(config=other), layerwise, token))
    assert "3 KV heads of width 10; the config has 3 of width 12" in message


def test_the_cache_may_have_a_dtype_of_its_own():
    """Half the memory; keys and values are rounded once, when they are written."""
    tokens = tiny.tokens(20)
    exact = scan_jit(ms.TOVA(), ms.init_state(CONFIG, ms.TOVA(), 20), tokens)[1]
    last, rounded = scan_jit(ms.TOVA(), ms.init_state(CONFIG, ms.TOVA(), 20, dtype="bfloat16"), tokens)
    assert last.layers[0].keys.dtype == jnp.bfloat16 and rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.1)  # 8 bits of mantissa
    assert np.abs(np.asarray(rounded - exact)).max() > 1e-4


def test_a_score_of_another_shape_is_refused():
    class Wrong(ms.Policy):
        def score(self, layer, t):
            return layer.positions[0]

    class Flat(ms.Policy):
        def init(self, rows, slots):
            return jnp.zeros((rows, slots))

        def observe(self, stats, view):
            return view.probs.mean(axis=(0, 1))

        def score(self, layer, t):
            return layer.stats

    class Boolean(ms.Policy):
        def score(self, layer, t):
            return layer.positions > 3

    def message_of(policy):
        return refusal(lambda: ms.step(CONFIG, policy, tiny.params(), ms.init_state(CONFIG, policy, 4), jnp.int32(0)))

    assert "observe returned shapes (5,); they must be those of init, (1, 5)" in message_of(Flat())
    assert "score has dtype bool; it must be a float or an integer" in message_of(Boolean())
    message = refusal(lambda: ms.step(CONFIG, Wrong(), tiny.params(), ms.init_state(CONFIG, Wrong(), 4), jnp.int32(0)))
    assert "score has shape (5,); it must be (1, 5), [#K, S]" in message
