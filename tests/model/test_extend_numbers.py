"""`extend` where numbers are huge, narrow or none at all: it forgets what the steps forget.

In float32 all that may differ is what follows a near-tie, the first of which is printed (`pytest -rP`).
"""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from extending import FLOAT64, MODES, WATCHED, T, compare, extended, held_table

import msrnn_jax as ms


class Shy(ms.Policy):
    """Forgets what the newest query attends to most."""

    def init(self, rows, slots):
        return jnp.zeros((rows, slots))

    def observe(self, stats, view):
        return -view.probs.sum(axis=(0, 1))[None]

    def score(self, layer, t):
        return layer.stats


# Logits that dwarf the others: one token's keys are so large that queries attend to nothing else, or not at all.

TALL = 49


@cache
def tall_params(dtype):
    """One axis of the residual stream is written by one token's embedding alone, and read into huge keys."""
    params = tiny.params(dtype)
    embedding = params.embedding.at[:, 0].set(0.0).at[TALL, 0].set(5.0)
    layers = tuple(
        layer.replace(
            key=layer.key.at[0].multiply(1e5),
            output=layer.output.at[..., 0].set(0.0),
            down=layer.down.at[:, 0].set(0.0),
        )
        for layer in params.layers
    )
    return params.replace(embedding=embedding, layers=layers)


def tall_tokens():
    tokens = np.where(tiny.tokens(T) == TALL, 0, tiny.tokens(T))
    tokens[[5, 23]] = TALL
    return tokens


def test_the_tall_token_dwarfs_the_rest(x64):
    """In both layers and nearly every head its logit is 1e4 away from all others, which stay small."""
    weights = oracle.as_numpy(tall_params("float64"))
    x = weights.embedding[np.unique(tall_tokens())]
    for layer in weights.layers:
        queries, keys, _ = oracle.projections(FLOAT64, layer, oracle.norm(FLOAT64, x, layer.attention_norm))
        logits = np.einsum("tkgh,skh->kgts", queries.reshape(len(x), 3, 2, 10), keys) / np.sqrt(10)
        assert np.abs(logits[..., :-1]).max() < 200
        assert np.median(np.abs(logits[..., -1])) > 2e4 and np.abs(logits).max() < 1e6


ADVERSE = [
    (ms.Window(), "absolute"),
    (ms.TOVA(scope="head"), "absolute"),
    (ms.TOVA(scope="head"), "cache"),
    (Shy(), "cache"),
    (ms.H2O(), "gap"),
]
SPELLED = [f"{policy}-{mode}" for policy, mode in ADVERSE]


@pytest.mark.parametrize(("policy", "mode"), tiny.few(ADVERSE, ADVERSE[3]), ids=SPELLED)
def test_a_freed_slot_with_a_huge_logit_does_not_wipe_out_the_others(policy, mode, x64):
    params, tokens = tall_params("float64"), tall_tokens()
    _, (states, _), _ = compare(FLOAT64, policy, params, tokens, mode, 7, logits=1e-9, stats=1e-5)
    if not isinstance(policy, ms.H2O):  # which never lets go of what was attended to
        watched = held_table(states.layers[0].positions)[3:8]  # budgets 4 to 8
        assert not watched[..., 5].all()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("policy", "mode"), ADVERSE, ids=SPELLED)
def test_float32_agrees_up_to_near_ties(policy, mode):
    ties, *_ = compare(
        tiny.CONFIG, policy, tiny.params(), tiny.tokens(T), mode, 7, logits=1e-4, stats=1e-4, excused=True
    )
    print(f"{policy}, {mode}: near-ties at (budget, step) {[(b + 1, int(t)) for b, t in enumerate(ties) if t < T]}")
    assert (ties == T).sum() > 0.9 * T  # near-ties are rare, or the test would show little


@pytest.mark.parametrize(("policy", "mode"), tiny.few(ADVERSE, ADVERSE[2]), ids=SPELLED)
def test_float32_survives_huge_logits(policy, mode):
    compare(tiny.CONFIG, policy, tall_params("float32"), tall_tokens(), mode, 7, logits=1e-3, stats=1e-2)


@pytest.mark.parametrize(
    ("policy", "mode", "dtype"),
    [
        (ms.TOVA(), "absolute", "bfloat16"),
        tiny.more(ms.Window(sinks=1), "absolute", "float16"),
        tiny.more(ms.H2O(), "gap", "float16"),
    ],
    ids=str,
)
def test_runs_finite_in_half_precision(policy, mode, dtype):
    config, budgets, lengths = tiny.CONFIG.replace(dtype=dtype), np.array([8, T], np.int32), np.array([T, T], np.int32)
    states, logits = extended(config, policy, tiny.params(dtype), tiny.tokens(T), budgets, lengths, mode, 7)
    assert np.isfinite(logits).all() and logits.dtype == jnp.float32
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(states))
    assert states.layers[0].keys.dtype == dtype
    # With room for everything nothing but rounding differs: 8 bits of mantissa, two layers.
    exact = oracle.full_logits(tiny.CONFIG, tiny.params(), tiny.tokens(T).tolist())
    if mode == "absolute":
        assert np.abs(logits[1] - exact).max() < 0.4 < np.abs(exact).max()


@pytest.mark.exhaustive
@pytest.mark.optimised
@pytest.mark.parametrize("mode", MODES)
def test_a_state_narrower_than_the_weights_rounds_keys_as_steps_do(mode):
    """Unrounded keys move these logits by 0.006 and more, a probability rounded the other way by 0.0015."""
    policy, tokens = ms.Window(sinks=1), tiny.tokens(T)
    state = ms.init_state(tiny.CONFIG, policy, WATCHED, positions=mode, dtype="bfloat16")
    args = (tiny.CONFIG, policy, tiny.params(), state)
    _, (expected, _) = tiny.unroll_jit(*args, tokens)
    for chunk in (1, 7, 64):
        _, logits = ms.extend(*args, tokens, chunk=chunk)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize(
    ("policy", "mode"),
    tiny.few(itertools.product([ms.TOVA(), ms.Window()], MODES), (ms.TOVA(), "cache")),
    ids=str,
)
def test_padding_that_is_no_number_does_not_matter(policy, mode):
    params, tokens = tiny.params(), tiny.tokens(T) % 49
    broken = params.replace(embedding=params.embedding.at[49].set(jnp.nan))
    padded = np.where(np.arange(T) < 20, tokens, 49)
    state = ms.init_state(tiny.CONFIG, policy, WATCHED, positions=mode)
    after, logits = ms.extend(tiny.CONFIG, policy, broken, state, padded, length=20, chunk=8)
    _, expected = ms.extend(tiny.CONFIG, policy, params, state, tokens, length=20, chunk=8)
    np.testing.assert_array_equal(logits, expected)
    assert int(after.t) == 20 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.layers[1].values))
