"""Samplers against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import msrnn_jax as ms
from msrnn_jax.generation.sampling import make_sampler


def lists(numbers):
    """Of few lengths, since every length is compiled."""
    return st.sampled_from([1, 12]).flatmap(lambda size: st.lists(numbers, min_size=size, max_size=size))


LOGITS = lists(st.sampled_from([-30.0, -3.5, -1.0, -0.25, -0.0, 0.0, 0.5, 1.0, 2.5, 8.0, -np.inf]))
NUMBERS = lists(st.floats(-50, 50, width=32, allow_subnormal=False))


@jax.jit
def warp(sampler, logits):
    return sampler.warp(logits)


def kept(sampler, logits):
    """Which tokens are left; those stay as they were."""
    logits = np.append(np.asarray(logits, np.float32), np.float32(0.25))  # one at least that can be drawn
    warped = np.asarray(warp(sampler, jnp.asarray(logits)))
    left = warped != -np.inf
    np.testing.assert_array_equal(warped[left], logits[left])
    return left, logits


@settings(max_examples=60, deadline=None)
@given(LOGITS | NUMBERS, st.integers(1, 12))
@example([-30.0] * 10 + [-0.0, 0.0], 2)  # the two zeros are equals
def test_top_k_keeps_the_k_most_likely_and_their_equals(logits, k):
    left, logits = kept(ms.TopK(k), logits)
    least = np.sort(logits)[::-1][min(k, len(logits)) - 1]
    np.testing.assert_array_equal(left, (logits >= least) & (logits != -np.inf))


@settings(max_examples=60, deadline=None)
@given(LOGITS | NUMBERS, st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.99]))
def test_top_p_keeps_the_fewest_that_make_p(logits, p):
    left, logits = kept(ms.TopP(p), logits)
    probs = np.exp(logits.astype(np.float64) - logits.max())
    probs /= probs.sum()
    mass = probs[left].sum()
    assert mass >= p - 1e-6  # float32
    least = logits[left].min()
    assert (logits[~left] < least).all()  # the most likely ones, equals together
    assert mass - probs[left & (logits == least)].sum() < p + 1e-6  # and none too many


@settings(max_examples=60, deadline=None)
@given(LOGITS | NUMBERS, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_min_p_keeps_those_nearly_as_likely_as_the_best(logits, p):
    left, logits = kept(ms.MinP(p), logits)
    ratio = np.exp(logits.astype(np.float64) - logits.max())
    clear = np.abs(ratio - p) > 1e-6
    np.testing.assert_array_equal(left[clear], ((ratio >= p) & (logits != -np.inf))[clear])
    assert left[np.argmax(logits)]


def test_a_chain_warps_in_order_and_draws_from_what_is_left():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    chain = ms.Chain((ms.Temperature(0.5), ms.TopP(0.75)))
    left = np.asarray(chain.warp(logits)) != -np.inf
    assert left.tolist() == [True, True, False, False]  # squared: 0.685, 0.247 of the whole; unsquared all but one stay
    assert (np.asarray(ms.TopP(0.9).warp(logits)) != -np.inf).tolist() == [True, True, True, False]
    draw = jax.jit(jax.vmap(chain, (None, 0)))
    drawn = np.bincount(draw(logits, jax.random.split(jax.random.key(0), 4000)), minlength=4) / 4000
    np.testing.assert_allclose(drawn, [25 / 34, 9 / 34, 0, 0], atol=0.03)  # four deviations
    assert chain.random and not ms.Chain((ms.Temperature(2.0), ms.Greedy())).random
    assert int(ms.Chain((ms.Temperature(2.0), ms.Greedy()))(logits, jax.random.key(0))) == 0


def test_samplers_are_values():
    assert make_sampler(0.8, top_p=0.9) == ms.Chain((ms.Temperature(0.8), ms.TopP(0.9)))
    assert make_sampler(0.8) == ms.Temperature(0.8) and make_sampler() == ms.Greedy()
    assert make_sampler(1.0, 40, 0.9, 0.05) == ms.Chain((ms.Temperature(1.0), ms.TopK(40), ms.TopP(0.9), ms.MinP(0.05)))
    traces = []

    @jax.jit
    def draw(sampler, logits, key):
        traces.append(sampler)
        return sampler(logits, key)

    for sampler in (ms.TopK(3), ms.TopK(3), ms.TopK(4), ms.TopP(0.5), ms.MinP(0.5)):
        draw(sampler, jnp.arange(5.0), jax.random.key(0))
    assert traces == [ms.TopK(3), ms.TopK(4), ms.TopP(0.5), ms.MinP(0.5)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ms.TopK(0), "k is 0; it must be a whole number of at least 1"),
        (lambda: ms.TopP(0.0), "p is 0.0; it must be a number from 1e-06 to 1"),
        (lambda: ms.TopP(1.5), "p is 1.5; it must be a number from"),
        (lambda: ms.MinP(-0.1), "p is -0.1; it must be a number from 0 to 1"),
        (lambda: ms.MinP(float("nan")), "p is nan; it must be a number"),
        (lambda: make_sampler(0.0, top_k=5), "top_k is 5, but temperature 0 draws nothing"),
        (lambda: make_sampler(-1.0), "temperature is -1.0; it must be at least 0"),
        (lambda: make_sampler(1.0, top_p=2.0), "top_p: p is 2.0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError) as refused:
        make()
    assert message in str(refused.value)
