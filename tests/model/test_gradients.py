"""Gradients through `extend`: right, the same as through `step`, and in the memory of one chunk beside the states."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.evaluation.losses import losses_of

T, BUDGET, CHUNK = 20, 6, 7
FLOAT64 = tiny.CONFIG.replace(dtype="float64")

ONE_LAYER = FLOAT64.replace(num_layers=1)

CASES = [(policy, mode) for policy in (ms.TOVA(), ms.H2O(), ms.Window()) for mode in ("absolute", "cache")]
CASES.append((ms.TOVA(scope="head"), "gap"))


def extend_loss(config, policy, mode, params, tokens):
    """Mean loss of predicting each token from those before it."""
    state = ms.init_state(config, policy, BUDGET, positions=mode)
    return ms.nll(config, policy, params, state, tokens[:-1], tokens[1:], chunk=CHUNK)[1].mean()


def step_loss(config, policy, mode, params, tokens):
    state = ms.init_state(config, policy, BUDGET, positions=mode)
    _, (logits, _) = tiny.unroll(config, policy, params, state, tokens[:-1])
    return losses_of(logits, tokens[1:]).mean()


# Compiled once a case; finite differences and other weights call the same programs again.
by_extend = jax.jit(
    jax.value_and_grad(extend_loss, argnums=3),
    static_argnames=("config", "policy", "mode"),
)
by_step = jax.jit(jax.value_and_grad(step_loss, argnums=3), static_argnames=("config", "policy", "mode"))


def direction(params):
    """A random direction in the space of all weights, of length 1."""
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    length = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(drawn)))
    return jax.tree.map(lambda leaf: leaf / length, drawn)


@pytest.mark.parametrize(("policy", "mode"), tiny.few(CASES, (ms.H2O(), "cache")), ids=str)
def test_equals_finite_differences_and_the_gradient_through_steps(policy, mode, x64):
    config = FLOAT64 if isinstance(policy, ms.TOVA) else ONE_LAYER
    params, tokens = tiny.params("float64", config=config), jnp.asarray(tiny.tokens(T))
    args = (config, policy, mode)
    loss, gradient = by_extend(*args, params, tokens)
    expected, through_steps = by_step(*args, params, tokens)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(through_steps), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
        assert np.abs(ours).max() > 1e-6  # every weight matters
    # Held sets are constant in a neighbourhood of the weights, so the loss is smooth there.
    along, size = direction(params), 1e-4
    ends = [jax.tree.map(lambda w, d, s=sign: np.asarray(w) + s * size * d, params, along) for sign in (1, -1)]
    difference = (by_extend(*args, ends[0], tokens)[0] - by_extend(*args, ends[1], tokens)[0]) / (2 * size)
    slope = sum(np.vdot(d, g) for d, g in zip(jax.tree.leaves(along), jax.tree.leaves(gradient), strict=True))
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


@pytest.mark.exhaustive
def test_under_vmap_equals_row_by_row(x64):
    """Ragged rows: the gradient of every row by itself, whatever its padding holds."""
    policy, params = ms.TOVA(), tiny.params("float64")
    rows, lengths = np.stack([tiny.tokens(T, seed) for seed in range(3)]), np.array([19, 4, 11], np.int32)

    @jax.jit
    def gradients(params, rows, lengths):
        def loss(params, tokens, length):
            state = ms.init_state(FLOAT64, policy, BUDGET)
            losses = ms.nll(FLOAT64, policy, params, state, tokens[:-1], tokens[1:], length, chunk=CHUNK)[1]
            return losses.sum() / length.astype(losses.dtype)

        return jax.vmap(jax.grad(loss), (None, 0, 0))(params, rows, lengths)

    found = gradients(params, rows, lengths)
    padded = np.where(np.arange(T) <= lengths[:, None], rows, 49)
    jax.tree.map(np.testing.assert_array_equal, found, gradients(params, padded, lengths))
    _, alone = by_extend(FLOAT64, policy, "absolute", params, jnp.asarray(rows[0]))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=0, atol=1e-9)
        assert np.isfinite(ours).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("policy", "mode"), CASES[:2], ids=str)
def test_stays_finite_where_logits_are_huge(policy, mode, x64):
    """Masked logits must not leak infinities or their products with 0 into gradients."""
    params, tokens = tiny.params("float64"), jnp.asarray(tiny.tokens(T))
    tall = params.replace(layers=tuple(layer.replace(key=1e4 * layer.key) for layer in params.layers))
    loss, gradient = by_extend(FLOAT64, policy, mode, tall, tokens)
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


class Learned(ms.Policy):
    """Arrays where a policy can have an effect: in what it observes and in its score."""

    weight: jax.Array
    share: jax.Array

    def init(self, rows, slots):
        return jnp.zeros((rows, slots))

    def observe(self, stats, view):
        return stats + self.share * view.probs.mean(axis=(0, 1))[None]

    def score(self, layer, t):
        return layer.stats + (layer.keys @ self.weight).mean(axis=0)[None]


def losses_under(policy, params, tokens, run):
    """Losses of a text of which the state forgets most."""
    state = ms.init_state(tiny.SHALLOW, policy, 3)
    if run == "nll":
        return ms.nll(tiny.SHALLOW, policy, params, state, tokens[:-1], tokens[1:], chunk=CHUNK)[1]
    if run == "extend":
        return losses_of(ms.extend(tiny.SHALLOW, policy, params, state, tokens[:-1], chunk=CHUNK)[1], tokens[1:])
    return losses_of(tiny.unroll(tiny.SHALLOW, policy, params, state, tokens[:-1])[1][0], tokens[1:])


@pytest.mark.parametrize("run", ["extend", *map(tiny.more, ["step", "nll"])])
def test_no_gradient_reaches_the_arrays_of_a_policy(run):
    """They change what is forgotten, so the losses, but only by a choice."""
    params, tokens = tiny.params(config=tiny.SHALLOW), jnp.asarray(tiny.tokens(9))

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def mean(policy, params):
        return losses_under(policy, params, tokens, run).mean()

    numbers = jnp.asarray(np.random.default_rng(0).normal(size=11), jnp.float32)
    found = [mean(Learned(weight=sign * numbers[:-1], share=sign * numbers[-1]), params) for sign in (1, -1)]
    assert abs(float(found[0][0] - found[1][0])) > 1e-3
    for _, (by_policy, by_params) in found:
        assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(by_policy))
        assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(by_params))


def test_evolution_strategies_find_what_to_forget():
    params, tokens = tiny.params(config=tiny.SHALLOW), jnp.asarray(tiny.tokens(24))

    @jax.jit
    @jax.vmap
    def loss(numbers):
        return losses_under(Learned(weight=numbers[:-1], share=numbers[-1]), params, tokens, "nll").mean()

    random = np.random.default_rng(0)
    best = random.normal(size=11).astype(np.float32)
    found = []
    for _ in range(5):
        noise = random.normal(size=(16, 11)).astype(np.float32)
        rows = np.concatenate([best + 0.3 * noise, best - 0.3 * noise, best[None]])
        ahead, behind, now = np.split(np.asarray(loss(rows)), [16, 32])
        found.append(float(now[0]))
        worse = ahead - behind
        best -= (worse[:, None] * noise).mean(axis=0) / worse.std()
    assert found[-1] < found[0] - 0.05


# Memory, as XLA plans it: nothing is run.

SMALL = tiny.CONFIG.replace(vocab_size=11, num_layers=1)
SAVED = 32  # tokens of a chunk


def planned(mode, count):
    """Bytes that the gradient of a text of `count` tokens takes beside its arguments and results."""

    def head(logits, tokens):  # a new function every time, so that nothing traced before is taken again
        return losses_of(logits, tokens)

    def loss(params, tokens):
        state = ms.init_state(SMALL, ms.TOVA(), 16, positions=mode)
        return ms.extend(SMALL, ms.TOVA(), params, state, tokens, chunk=SAVED, head=head)[1].sum()

    params = jax.eval_shape(partial(ms.init_params, SMALL), jax.random.key(0))
    compiled = jax.jit(jax.grad(loss)).lower(params, jax.ShapeDtypeStruct((count,), jnp.int32)).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", ["absolute", "cache"])
def test_memory_grows_with_the_number_of_chunks_only(mode, monkeypatch):
    """From 512 to 2,048 tokens by one saved state a chunk, and by what goes in and out at every token."""
    state = jax.eval_shape(partial(ms.init_state, SMALL, ms.TOVA(), 16, positions=mode))
    saved = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    saved += 4 * SMALL.model_dim  # the residual stream of the last token, carried along
    short, long = planned(mode, 512), planned(mode, 2048)
    # Of every token there is a number going in, the same beside it for the head, and its loss, perhaps twice each.
    bound = (2048 - 512) * (saved / SAVED + 6 * 4)
    print(f"{mode}: {short} bytes at 512 tokens, {long} at 2,048; {long - short} more, at most {bound:.0f}")
    assert long - short <= bound
    monkeypatch.setattr(jax, "checkpoint", lambda fun, **options: fun)
    kept = planned(mode, 2048)
    print(f"without rematerialisation {kept} bytes")
    assert kept > 10 * long
