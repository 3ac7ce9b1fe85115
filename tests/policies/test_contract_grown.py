"""What a policy may do beside scoring: biases, statistics of rows, their own layer, cuts; in `step` and `extend`."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.policies.budgets import pyramid
from msrnn_jax.recurrence.conditional import where_any

T, BUDGET = 30, 6
FLOAT64 = tiny.CONFIG.replace(dtype="float64")
ONE = FLOAT64.replace(num_layers=1)  # for what shows in one layer as well
TOKENS = tiny.tokens(T)


@partial(jax.jit, static_argnames=("mode", "chunk", "budget"))
def both(config, policy, params, tokens, mode, chunk, budget):
    empty = ms.init_state(config, policy, budget, positions=mode)

    def one(state, token):
        return ms.step(config, policy, params, state, token)

    return jax.lax.scan(one, empty, tokens), ms.extend(config, policy, params, empty, tokens, chunk=chunk)


class Fading(ms.TOVA):
    """Attention to a token fades with its age, the faster the less it got so far."""

    rate: jax.Array

    def bias(self, layer, t):
        age = (t - 1 - layer.positions).astype(layer.stats.dtype)
        return -self.rate * age * (1.0 - jnp.tanh(layer.stats))


class Blind(ms.Full):
    """Forgets nothing, but sees no more than a window."""

    def bias(self, layer, t):
        return jnp.where(layer.positions < t - 1 - BUDGET, -1e9, 0.0)


@pytest.mark.parametrize("mode", ["absolute", tiny.more("cache"), "gap"])
def test_a_bias_is_one_in_step_and_extend(mode, x64):
    policy = Fading(rate=jnp.asarray(0.3, jnp.float64))
    (stepped, expected), (state, logits) = both(
        ONE, policy, tiny.params("float64", config=ONE), TOKENS, mode, 7, BUDGET
    )
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)
    assert [tiny.held(layer) for layer in state.layers] == [tiny.held(layer) for layer in stepped.layers]
    none = policy.replace(rate=jnp.asarray(0.0, jnp.float64))
    plain = both(ONE, ms.TOVA(), tiny.params("float64", config=ONE), TOKENS, mode, 7, BUDGET)[0][1]
    zero = both(ONE, none, tiny.params("float64", config=ONE), TOKENS, mode, 7, BUDGET)[1][1]
    np.testing.assert_allclose(zero, plain, rtol=0, atol=1e-12)
    assert np.abs(np.asarray(expected) - np.asarray(plain)).max() > 0.1


def test_a_bias_that_hides_is_forgetting(x64):
    (_, window), _ = both(ONE, ms.Window(), tiny.params("float64", config=ONE), TOKENS, "absolute", 7, BUDGET)
    (_, stepped), (_, extended) = both(ONE, Blind(), tiny.params("float64", config=ONE), TOKENS, "absolute", 7, T)
    np.testing.assert_allclose(stepped, window, rtol=0, atol=1e-9)
    np.testing.assert_allclose(extended, window, rtol=0, atol=1e-9)


def test_a_bias_is_seen_by_a_prompt_that_is_read_at_once(x64):
    policy = Fading(rate=jnp.asarray(0.3, jnp.float64), every=T)  # which forgets nothing on the way either
    params = tiny.params("float64", config=ONE)
    once, seen = ms.prefill(ONE, policy, params, ms.init_state(ONE, policy, T), TOKENS, mode="oneshot")
    slowly, logits = ms.prefill(ONE, policy, params, ms.init_state(ONE, policy, T), TOKENS)
    np.testing.assert_allclose(seen, logits, rtol=0, atol=1e-9)
    for ours, theirs in zip(once.layers, slowly.layers, strict=True):
        np.testing.assert_allclose(
            tiny.by_position(ours.positions, ours.stats, T),
            tiny.by_position(theirs.positions, theirs.stats, T),
            atol=1e-9,
        )


@pytest.mark.parametrize("mode", ["absolute", tiny.more("gap")])
def test_gradients_reach_a_policy_through_its_bias(mode, x64):
    params, tokens = tiny.params("float64", config=ONE), TOKENS

    def loss(rate):
        policy = Fading(rate=rate)
        state = ms.init_state(ONE, policy, T, positions=mode)  # nothing is forgotten, so the loss is smooth
        return ms.nll(ONE, policy, params, state, tokens[:-1], tokens[1:])[1].sum()

    rate, small = jnp.asarray(0.3, jnp.float64), 1e-5
    expected = (loss(rate + small) - loss(rate - small)) / (2 * small)
    found = jax.grad(loss)(rate)
    assert abs(float(expected)) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("text", ["tova:every=4", tiny.more("h2o:adaptive=0.3"), tiny.more("gkv:recent=2,every=3")])
def test_gradients_of_weights_go_past_cuts(text, x64):
    policy, params = ms.parse_policy(text), tiny.params("float64", config=ONE)
    empty = ms.init_state(ONE, policy, BUDGET)

    def extended(params):
        return ms.nll(ONE, policy, params, empty, TOKENS[:-1], TOKENS[1:], chunk=7)[1].sum()

    def stepped(params):
        def one(state, pair):
            state, logits = ms.step(ONE, policy, params, state, pair[0])
            return state, -jax.nn.log_softmax(logits)[pair[1]]

        return jax.lax.scan(one, empty, (jnp.asarray(TOKENS[:-1]), jnp.asarray(TOKENS[1:])))[1].sum()

    for ours, theirs in zip(
        *map(jax.tree.leaves, (jax.grad(extended)(params), jax.grad(stepped)(params))), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)


class Noting(ms.Policy):
    """Keeps the sum of what query, key and value were made of, and scores by the layer's own number."""

    sign: jax.Array

    def init(self, rows, slots):
        return jnp.zeros((rows, slots))

    def observe(self, stats, view):
        return jnp.where(view.positions == view.t, view.hidden.sum().astype(stats.dtype), stats)

    def score(self, layer, t):
        return self.sign[layer.index] * layer.positions


def test_a_policy_sees_the_input_of_its_layer_and_knows_which_it_is(x64):
    policy, params = Noting(sign=jnp.asarray([1, -1], jnp.int32)), tiny.params("float64")
    (stepped, _), (state, _) = both(FLOAT64, policy, params, TOKENS, "absolute", 7, BUDGET)
    newest, oldest = list(range(T - BUDGET, T)), list(range(BUDGET))
    empty = ms.init_state(FLOAT64, policy, BUDGET)
    once, _ = ms.prefill(FLOAT64, policy, params, empty, TOKENS, mode="oneshot")
    for found in (stepped, state, once, ms.compress(policy, state, BUDGET)):
        assert [tiny.held(layer)[0] for layer in found.layers] == [newest, oldest]
    embedded = np.asarray(params.embedding)[TOKENS]
    normed = embedded / np.sqrt((embedded**2).mean(axis=1, keepdims=True) + FLOAT64.norm_eps)
    hidden = (normed * np.asarray(params.layers[0].attention_norm)).sum(axis=1)
    layer = state.layers[0]
    np.testing.assert_allclose(tiny.by_position(layer.positions, layer.stats, T)[0, newest], hidden[newest], rtol=1e-6)


def test_a_decision_is_made_once_for_a_batch():
    def some(mask, given):
        return jnp.where(mask, jnp.sort(given)[::-1], given)

    def none(mask, given):
        return given

    def run(mask, given):
        return where_any(mask, some, none, given)

    mask, given = jnp.asarray([[True] * 3, [False] * 3]), jnp.asarray([[1.0, 2, 3], [4, 5, 6]])
    for times in (jax.vmap(run), jax.jit(jax.vmap(run))):
        np.testing.assert_array_equal(times(mask, given), [[3, 2, 1], [4, 5, 6]])
    twice = jax.vmap(jax.vmap(run))(mask[None], given[None])
    np.testing.assert_array_equal(twice, [[[3, 2, 1], [4, 5, 6]]])
    (branch,) = [
        equation
        for equation in jax.make_jaxpr(jax.vmap(run))(mask, given).eqns
        for equation in getattr(equation.params.get("call"), "eqns", [equation])
        if equation.primitive.name == "cond"
    ]
    assert branch.invars[0].aval.shape == ()  # one number, not one for every row


class Favouring(ms.Policy):
    """Nothing is worth as much as what the first head holds."""

    def score(self, layer, t):
        first = jnp.arange(layer.num_rows, dtype=jnp.int32)[:, None] == 0
        return jnp.where(first, layer.positions + 1000, layer.positions)


@pytest.mark.parametrize("every", [1, 3])
def test_one_head_may_take_all_but_what_is_safe(every):
    """So it has the slots for it, and no more."""
    policy = Favouring(scope="head", adaptive=0.5, every=every)
    config, params, budget = tiny.SHALLOW, tiny.params(config=tiny.SHALLOW), 4
    state = ms.init_state(config, policy, budget)
    assert state.layers[0].num_slots == 3 * budget - 2 * 2 + every
    state, _ = ms.extend(config, policy, params, state, tiny.tokens(24), chunk=7)
    rows = tiny.held(state.layers[0])
    since = [len(row) - least for row, least in zip(rows, (8, 2, 2), strict=True)]  # tokens since the last cut
    assert len(set(since)) == 1 and 0 <= since[0] < every
    assert [row == list(range(24 - len(row), 24)) for row in rows] == [True] * 3


def test_budgets_fall_from_layer_to_layer():
    policy, number, budget = ms.TOVA(pyramid=20, recent=4), 30, 64
    low = (budget - 4) / 20
    high = 2 * (budget - 4) - low
    expected = [4 + math.floor(high - index * (high - low) / (number - 1) + 0.5) for index in range(number)]
    assert pyramid(policy, number, budget) == expected and sum(expected) == number * budget
    traced = jax.jit(lambda budget: jnp.stack(pyramid(policy, number, budget)))(jnp.int32(budget))
    assert traced.tolist() == expected
    cell = ms.MultiStateCell(tiny.CONFIG, ms.TOVA(pyramid=4), tiny.params(), 8)
    assert [int(layer.budget) for layer in cell.initialize_carry(()).layers] == [14, 2]
    assert pyramid(ms.TOVA(pyramid=20), 1, 7) == [7] and pyramid(ms.TOVA(), 3, 7) == [7, 7, 7]
