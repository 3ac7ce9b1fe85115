"""Text of any length: angles are exact at every position, and at the end of int32 nothing wraps."""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.recurrence.rotary import inverse_frequencies, rotation
from msrnn_jax.state import POSITION_MODES

CONFIG = tiny.CONFIG
MOST = 2**31 - 1  # tokens that a state can have seen
TWO_PI = Fraction("6.2831853071795864769252867665590057683943387987502")
ROPES = [
    ms.Rope(),
    ms.Rope(theta=5e6),
    ms.Rope(kind="linear", factor=3.0),
    ms.Rope(theta=500.0, kind="llama3", factor=8.0, original_length=64),
    ms.Rope(theta=500.0, kind="yarn", factor=4.0, original_length=40, beta_fast=3.0, beta_slow=0.2),
]


def exact(config, place):
    """Cosines and sines of a place's angles, reduced as fractions."""
    frequencies = inverse_frequencies(config.rope, config.head_dim).tolist()
    angles = [float(Fraction(place) * Fraction(frequency) % TWO_PI) for frequency in frequencies]
    return np.cos(angles), np.sin(angles)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 4e-7), ("bfloat16", 4e-7), ("float16", 4e-7), ("float64", 2e-15)]
)
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: f"{rope.kind}, {rope.theta:g}")
def test_angles_are_exact_at_every_position(rope, dtype, tolerance):
    """Those of narrow models are float32 numbers too: bfloat16 knows no position beyond 256 from its neighbour."""
    with jax.enable_x64(dtype == "float64"):
        config = CONFIG.replace(rope=rope, dtype=dtype)
        places = [0, 1, 2, 257, 1000, 65_535, 65_536, 100_003, 2**24 + 1, 2**30 + 7, MOST - 1]
        cosines, sines = rotation(config, jnp.asarray(places, jnp.int32))
        for place, cos, sin in zip(places, cosines, sines, strict=True):
            wanted = exact(config, place)
            np.testing.assert_allclose((cos, sin), wanted, rtol=0, atol=tolerance, err_msg=str(place))


@pytest.mark.parametrize("place", [0.5, -3.0, -7.25, 40_961.75, -100_003.5])
def test_places_between_tokens_and_before_them_have_angles_too(place):
    """The position mode "gap" has places that are not whole, and turns keys back by them."""
    cos, sin = rotation(CONFIG, jnp.float32(place))
    np.testing.assert_allclose((cos, sin), exact(CONFIG, place), rtol=0, atol=4e-7)


@jax.jit
def stepped(config, policy, params, state, tokens, targets):
    def one(state, pair):
        state, logits = ms.step(config, policy, params, state, pair[0])
        return state, -jax.nn.log_softmax(logits)[pair[1]]

    return jax.lax.scan(one, state, (tokens, targets))[1]


@pytest.mark.parametrize("mode", tiny.few(POSITION_MODES, "absolute", "gap"))
@pytest.mark.parametrize("policy", [tiny.more(ms.Window()), ms.TOVA()], ids=str)
def test_the_same_tokens_lose_the_same_at_every_place_of_a_text(policy, mode):
    params, tokens = tiny.params(), jnp.asarray(tiny.tokens(25))
    empty = ms.init_state(CONFIG, policy, 6, positions=mode)
    read = jax.jit(partial(ms.nll, chunk=8))
    expected = stepped(CONFIG, policy, params, empty, tokens[:-1], tokens[1:])
    for t in (0, 100_000, 2**24 + 1, 2**30, MOST - 24):
        state = empty.replace(t=jnp.int32(t))
        after, losses = read(CONFIG, policy, params, state, tokens[:-1], tokens[1:])
        np.testing.assert_allclose(losses, expected, rtol=0, atol=2e-5, err_msg=f"extend at {t}")
        np.testing.assert_allclose(
            stepped(CONFIG, policy, params, state, tokens[:-1], tokens[1:]), expected, rtol=0, atol=2e-5, err_msg=f"{t}"
        )
        assert int(after.t) == t + 24


def at_the_end(count, policy=ms.TOVA()):  # noqa: B008, a frozen value
    """A state in which `count` more tokens fit."""
    return ms.init_state(CONFIG, policy, 6).replace(t=jnp.int32(MOST - count))


def test_what_reads_refuses_to_go_beyond_the_last_position():
    policy, params, tokens = ms.TOVA(), tiny.params(), tiny.tokens(7)
    said = "the state would have seen 2147483648 tokens in the end; it can see 2147483647, since positions are int32"
    for read in (
        lambda: ms.extend(CONFIG, policy, params, at_the_end(6), tokens),
        lambda: ms.prefill(CONFIG, policy, params, at_the_end(5), tokens, 6),
        lambda: ms.nll(CONFIG, policy, params, at_the_end(6), tokens, tokens),
        lambda: next(ms.stream(CONFIG, policy, params, tokens[None, :2], budget=6, max_new_tokens=2**31 - 2)),
    ):
        with pytest.raises(ValueError, match=said):
            read()


def test_the_last_tokens_that_fit_are_read_beside_padding():
    """Padding stands at positions that are none."""
    params, tokens = tiny.params(), tiny.tokens(7)
    for policy in (ms.TOVA(), ms.Window(sinks=2)):
        state, logits = ms.extend(CONFIG, policy, params, at_the_end(3, policy), tokens, length=3, chunk=4)
        assert int(state.t) == MOST and tiny.held(state.layers[0]) == [[MOST - 3, MOST - 2, MOST - 1]]
        _, expected = ms.extend(CONFIG, policy, params, ms.init_state(CONFIG, policy, 6), tokens, chunk=4)
        expected = expected[:3]
        np.testing.assert_allclose(logits[:3], expected, rtol=0, atol=1e-4)


def test_at_the_end_of_int32_the_clock_of_step_stands_still():
    """As its docstring says; a position below zero would be none, or the oldest of all."""
    step, state = jax.jit(ms.step), at_the_end(2)
    for seen in (MOST - 1, MOST, MOST, MOST):
        state, logits = step(CONFIG, ms.TOVA(), tiny.params(), state, jnp.int32(3))
        assert int(state.t) == seen and np.isfinite(logits).all()
        positions = np.asarray(state.layers[0].positions)
        assert set(positions[positions != ms.EMPTY].tolist()) <= {MOST - 2, MOST - 1}


def test_a_state_that_cannot_go_on_is_not_loaded(tmp_path):
    policy, params, path = ms.TOVA(), tiny.params(), tmp_path / "state"
    state, _ = ms.extend(CONFIG, policy, params, at_the_end(3), tiny.tokens(2))
    ms.save_state(path, CONFIG, policy, params, state)
    assert int(ms.load_state(path, CONFIG, policy, params)[0].t) == MOST - 1
    for t in (MOST, -(2**31)):
        ms.save_state(path, CONFIG, policy, params, state.replace(t=jnp.int32(t)))
        said = f"it has seen {t} tokens; that must be from 0 to 2147483646, so that it can go on"
        with pytest.raises(ValueError, match=said):
            ms.load_state(path, CONFIG, policy, params)


def test_gaps_as_wide_as_a_text_can_be_count_by_their_logarithm():
    """Of the two tokens before the last, one went a whole text ago."""
    from msrnn_jax.recurrence.positions import distances

    positions = jnp.asarray([[0, MOST - 1, ms.EMPTY]], jnp.int32)
    found = distances("gap", positions, jnp.float32)[0, :2]
    np.testing.assert_allclose(found, [math.log(math.log(MOST - 1)), 0.0], rtol=1e-6)
