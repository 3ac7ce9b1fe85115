"""Losses, segments, and the sums over them."""

import math

import compilations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tiny
from sweeping import perplexity, sweep

import msrnn_jax as ms
from msrnn_jax.evaluation.segments import segment
from msrnn_jax.evaluation.summary import mean_over
from msrnn_jax.evaluation.sweep import _read_rows, check_settings

CONFIG = tiny.CONFIG


def test_nll_is_that_of_the_logits():
    policy, tokens = ms.TOVA(), tiny.tokens(21)
    state = ms.init_state(CONFIG, policy, 6)
    last, (logits, _) = tiny.unroll_jit(CONFIG, policy, tiny.params(), state, tokens[:-1])
    after, losses = jax.jit(ms.nll)(
        CONFIG, policy, tiny.params(), state, jnp.asarray(tokens[:-1]), jnp.asarray(tokens[1:])
    )
    expected = -scipy.special.log_softmax(np.asarray(logits, np.float64), axis=1)[np.arange(20), tokens[1:]]
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    assert [tiny.held(layer) for layer in after.layers] == [tiny.held(layer) for layer in last.layers]


def test_padding_is_not_counted():
    tokens = jnp.asarray(tiny.tokens(16))
    state = ms.init_state(CONFIG, ms.TOVA(), 5)
    args = (CONFIG, ms.TOVA(), tiny.params(), state)
    after, losses = ms.nll(*args, tokens[:-1], tokens[1:], 9)
    _, expected = ms.nll(*args, tokens[:-1], tokens[1:])
    expected = expected[:9]
    np.testing.assert_allclose(losses[:9], expected, atol=1e-5)
    assert not losses[9:].any() and int(after.t) == 9


def test_segments_do_not_overlap_and_lose_nothing():
    cut, lengths = segment(range(1, 12), 4)
    assert cut.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 0]] and lengths.tolist() == [4, 4, 3]
    cut, lengths = segment(range(1, 10), 4)  # a last token alone has nothing to predict
    assert cut.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]] and lengths.tolist() == [4, 4]
    cut, lengths = segment(range(1, 6), 4, bos=9)  # but not after BOS, which is the context of all tokens
    assert cut.tolist() == [[9, 1, 2, 3, 4], [9, 5, 0, 0, 0]] and lengths.tolist() == [5, 2]
    for size, tokens, message in [(1, range(5), "segment size is 1"), (4, [7], "the text has 1 tokens")]:
        with pytest.raises(ValueError, match=message):
            segment(tokens, size)


def test_perplexity_weighs_tokens_and_its_error_is_over_segments():
    rng = np.random.default_rng(0)
    counts = np.array([7, 3, 5])
    losses = np.where(np.arange(7) < counts[:, None], rng.uniform(1, 4, (3, 7)), 0)
    result = perplexity(losses, counts)
    flat = np.concatenate([row[:n] for row, n in zip(losses, counts, strict=True)])
    assert math.isclose(result.nll, flat.mean()) and math.isclose(result.perplexity, math.exp(flat.mean()))
    assert (result.tokens, result.segments) == (15, 3)
    equal = rng.uniform(1, 4, (6, 5))  # equal lengths: the textbook standard error of the mean
    expected = equal.mean(axis=1).std(ddof=1) / math.sqrt(6)
    assert math.isclose(perplexity(equal, [5] * 6).stderr, expected)
    assert math.isnan(perplexity(equal[:1], [5]).stderr)
    assert perplexity(np.array([[800.0]]), [1]).perplexity == math.inf  # no OverflowError
    assert math.isnan(perplexity(np.array([[math.inf], [1.0]]), [1, 1]).stderr)


def test_the_error_of_a_mean_counts_segments_by_their_tokens():
    """Of 2 nats on one token and 9 on three, 2.75 a token: one is 0.75 below what it would have, the other above."""
    found = mean_over([2.0, 9.0], [1, 3])
    assert found.value == 2.75
    assert found.stderr == pytest.approx(math.sqrt(2 / 1 * (0.75**2 + 0.75**2)) / 4)
    assert mean_over([2.0, 6.0, 4.0], [1, 3, 2]).stderr == 0  # 2 nats a token in all of them


def test_a_mean_is_that_of_pairs_when_differences_are_taken():
    """The same noise in both cancels: the error of the difference is far below that of either."""
    rng = np.random.default_rng(1)
    counts = rng.integers(5, 9, 40)
    first = counts * rng.normal(3, 0.5, 40)
    second = first + counts * rng.normal(0.1, 0.01, 40)
    difference = mean_over(second - first, counts)
    assert math.isclose(difference.value, mean_over(second, counts).value - mean_over(first, counts).value)
    assert difference.stderr < 0.1 * mean_over(first, counts).stderr


@pytest.mark.parametrize("batch", [1, 4, tiny.more(100)])
def test_a_sweep_equals_each_setting_alone(batch):
    segments, lengths = segment(tiny.tokens(50), 16)  # the last one is short
    budgets = [3, 9, 5]
    results = sweep(CONFIG, ms.TOVA(), tiny.params(), segments, lengths, budgets, batch=batch)
    for budget, result in zip(budgets, results, strict=True):
        state = ms.init_state(CONFIG, ms.TOVA(), budget)
        losses = [
            ms.nll(CONFIG, ms.TOVA(), tiny.params(), state, row[:-1], row[1:], int(n) - 1)[1]
            for row, n in zip(segments, lengths, strict=True)
        ]
        alone = perplexity(np.stack(losses), lengths - 1)
        np.testing.assert_allclose(result, alone, rtol=1e-5)


def test_a_sweep_over_other_budgets_compiles_nothing():
    segments, lengths = segment(tiny.tokens(32), 16)
    with compilations.count(_read_rows) as compiled:
        sweep(CONFIG, ms.TOVA(), tiny.params(), segments, lengths, [4, 8], batch=4)
        once = compiled()
        sweep(CONFIG, ms.TOVA(), tiny.params(), segments, lengths, [8, 2], batch=4)
    assert compiled() == once == 1


def test_refusals_name_what_is_wrong():
    _, lengths = segment(tiny.tokens(32), 16)
    with pytest.raises(ValueError, match="budget is 8, but full forgets nothing and must hold 15 tokens"):
        check_settings(CONFIG, ms.Full(), lengths, [8])
    state = ms.init_state(CONFIG, ms.TOVA(), 4)
    with pytest.raises(ValueError, match="targets holds the token 50"):
        ms.nll(CONFIG, ms.TOVA(), tiny.params(), state, jnp.zeros(2, jnp.int32), jnp.full(2, 50, jnp.int32))
