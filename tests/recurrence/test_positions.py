"""Position modes: how far apart remembered tokens count as being, and what that makes invariant."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.recurrence.positions import _logits_at_once, _logits_by_halves, _logits_one_by_one, angles_for, distances
from msrnn_jax.state import POSITION_MODES

CONFIG = tiny.CONFIG
FLOAT64 = CONFIG.replace(dtype="float64")
E = ms.EMPTY

extend = jax.jit(ms.extend, static_argnames="chunk")
by_halves, one_by_one, at_once = (
    jax.jit(of, static_argnums=(0, 1)) for of in (_logits_by_halves, _logits_one_by_one, _logits_at_once)
)


def test_the_distances_of_rows_with_holes():
    """Behind the newest of each row; what a free slot gets does not matter."""
    positions = jnp.asarray([[7, E, 0, 30, 19, 20], [E, 21, 11, 10, E, 0]], jnp.int32)
    held = np.asarray(positions) != E
    ranks = np.asarray(distances("cache", positions, jnp.float32))
    assert ranks[held].tolist() == [3, 4, 0, 2, 1] + [0, 1, 2, 3]
    # 0 .. 7 .. 19 . 20 .. 30: gaps of 7, 12, 1 and 10; and 0 .. 10 . 11 .. 21: of 10, 1 and 10.
    gaps = np.asarray(distances("gap", positions, jnp.float32))
    twelve = math.log(math.log(12))
    expected = [11 + twelve, 18 + twelve, 0, 11, 10] + [0, 10, 11, 21]
    np.testing.assert_allclose(gaps[held], expected, rtol=1e-6)


@pytest.mark.parametrize("gap", [1, 2, 9, 10, 11, 12, 1000, 70_000])
def test_one_gap_counts_in_full_up_to_ten(gap):
    positions = jnp.asarray([[gap + 5, 5, E, gap + 8]], jnp.int32)
    whole = gap if gap <= 10 else math.log(math.log(gap))  # 11 counts less than 1
    np.testing.assert_allclose(distances("gap", positions, jnp.float32)[0, [0, 1, 3]], [3, 3 + whole, 0], rtol=1e-6)
    assert distances("cache", positions, jnp.float32)[0, jnp.asarray([0, 1, 3])].tolist() == [1, 2, 0]


@pytest.mark.parametrize("mode", ["cache", "gap"])
@pytest.mark.parametrize("rows", [1, 3])
def test_products_by_halves_are_those_with_rotated_keys(mode, rows, x64):
    """The first is what a GPU computes, the second a TPU, the last what a CPU does."""
    random, heads, width = np.random.default_rng(0), 3, FLOAT64.head_dim
    positions = jnp.asarray(random.permuted(np.tile(np.arange(0, 21, 3), (rows, 1)), axis=1), jnp.int32)
    query, keys = (jnp.asarray(random.normal(size=(heads, count, width))) for count in (2, positions.shape[1]))
    angles = angles_for(FLOAT64, mode, jnp.int32(0), positions.shape[1])
    wanted = at_once(FLOAT64, mode, angles, query, keys, positions)
    for of in (by_halves, one_by_one):
        np.testing.assert_allclose(of(FLOAT64, mode, query, keys, positions), wanted, rtol=0, atol=1e-12)


def test_distances_far_into_a_text_are_exact():
    """Positions are subtracted as integers: float32 cannot tell 2**25 from its neighbour."""
    positions = jnp.asarray([[2**25 + 1, 2**25, 2**25 + 4]], jnp.int32)
    assert distances("gap", positions, jnp.float32).tolist() == [[3, 4, 0]]
    assert distances("cache", positions, jnp.float32).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("mode", [tiny.more("cache"), "gap"])
def test_where_everything_is_held_all_modes_are_one(mode, x64):
    """Ranks are then true positions, and no gap is longer than one."""
    policy, params, tokens = ms.H2O(), tiny.params("float64"), tiny.tokens(20)
    expected = oracle.full_logits(FLOAT64, params, tokens.tolist())
    empty = ms.init_state(FLOAT64, policy, 20, slots=23, positions=mode)
    _, (logits, _) = tiny.unroll_jit(FLOAT64, policy, params, empty, tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)
    _, logits = extend(FLOAT64, policy, params, empty, tokens, chunk=5)  # which leaves no padding
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)


WINDOW = ms.Window(sinks=2)


def shifted(state, first, by):
    """The same state, further into a text that had `by` more tokens before token `first`."""
    layers = []
    for layer in state.layers:
        later = layer.positions >= first
        layers.append(layer.replace(positions=jnp.where(later, layer.positions + by, layer.positions)))
    return state.replace(layers=tuple(layers), t=state.t + by)


@pytest.fixture(scope="module")
def streams():
    """Logits of 10 tokens after a window and its sinks have slid over 30, by mode; and after the window was shifted."""
    found = {}
    with jax.enable_x64(True):
        params, tokens = tiny.params("float64"), tiny.tokens(40)
        for mode in POSITION_MODES:
            state = ms.init_state(FLOAT64, WINDOW, 7, positions=mode)
            for start in (0, 10, 20):
                state, _ = extend(FLOAT64, WINDOW, params, state, tokens[start : start + 10], chunk=10)
            for name, first, by in [("as is", 0, 0), ("window", 2, 1000), ("all", 0, 50)]:
                moved = shifted(state, first, by)
                after, logits = extend(FLOAT64, WINDOW, params, moved, tokens[30:], chunk=10)
                found[mode, name] = jax.device_get((moved, after, logits))
    return found


def test_with_cache_positions_only_the_order_of_what_is_held_matters(streams):
    """However far into the text, and however far the window is from its sinks: StreamingLLM's point."""
    _, after, expected = streams["cache", "as is"]
    _, later, logits = streams["cache", "window"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)
    for layer, other in zip(after.layers, later.layers, strict=True):
        assert tiny.held(layer) == [[0, 1, 35, 36, 37, 38, 39]]
        assert tiny.held(other) == [[0, 1, 1035, 1036, 1037, 1038, 1039]]


def test_with_gap_positions_only_gaps_matter(streams):
    """Where there are no sinks to protect, which positions say, the whole text may stand anywhere."""
    state, _, expected = streams["gap", "as is"]
    _, _, moved = streams["gap", "window"]  # the gap of 24 becomes 1024: ln ln 24 = 1.16, ln ln 1024 = 1.94
    assert 1e-3 < np.abs(moved - expected).max()
    moved, _, logits = streams["gap", "all"]  # the first token after the shift sees the same gaps
    np.testing.assert_allclose(logits[0], expected[0], rtol=0, atol=1e-9)
    assert (moved.layers[0].positions - state.layers[0].positions)[state.layers[0].positions != E].tolist() == [50] * 7


def test_with_absolute_positions_the_place_in_the_text_matters(streams):
    """Else the two tests above would show nothing."""
    _, _, expected = streams["absolute", "as is"]
    for name in ("window", "all"):
        assert np.abs(streams["absolute", name][2][0] - expected[0]).max() > 1e-3


def test_distances_stay_bounded_however_long_the_text(streams):
    found = {}
    for mode in ("cache", "gap"):
        positions = streams[mode, "window"][1].layers[0].positions
        found[mode] = np.sort(np.asarray(distances(mode, jnp.asarray(positions), jnp.float32))[positions != E])
    assert found["cache"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    far = math.log(math.log(1034))  # from token 1 to token 1035
    np.testing.assert_allclose(found["gap"], [0, 1, 2, 3, 4, 4 + far, 5 + far], rtol=1e-6)


@pytest.mark.parametrize("mode", POSITION_MODES)
def test_the_mode_travels_with_the_state(mode):
    """No function that takes a state is told the mode, and all that return one keep it."""
    policy, params, tokens = ms.TOVA(), tiny.params(), jnp.asarray(tiny.tokens(6))
    args = (CONFIG, policy, params, ms.init_state(CONFIG, policy, 4, positions=mode))
    results = [
        jax.eval_shape(ms.step, *args, tokens[0]),
        jax.eval_shape(ms.extend, *args, tokens),
        jax.eval_shape(ms.prefill, *args, tokens),
        jax.eval_shape(partial(ms.prefill, mode="oneshot"), *args, tokens),
        jax.eval_shape(ms.nll, *args, tokens, tokens),
        (jax.eval_shape(partial(ms.compress, policy, budget=2), args[-1]),),
        (jax.eval_shape(partial(ms.compress, policy, budget=2, shrink=True), args[-1]),),
        (ms.MultiStateCell(CONFIG, policy, params, 4, positions=mode).initialize_carry((2,)),),
    ]
    assert [state.mode for state, *_ in results] == [mode] * len(results)
    assert jax.tree.structure(results[0][0]) == jax.tree.structure(args[-1])  # so that it can be scanned


def test_every_entry_point_takes_a_mode():
    """`generate`, the cell and the losses of a segment, against what `extend` and `step` do in that mode."""
    config = tiny.SHALLOW
    policy, params, tokens = ms.TOVA(), tiny.params(config=config), tiny.tokens(12)
    state, logits = ms.extend(config, policy, params, ms.init_state(config, policy, 4, positions="cache"), tokens)
    _, other = ms.extend(config, policy, params, ms.init_state(config, policy, 4), tokens)
    assert np.abs(logits - other).max() > 0.1
    found, _, after = ms.generate(config, policy, params, tokens[None], budget=4, max_new_tokens=5, positions="cache")
    assert after.mode == "cache"
    last = logits[-1]
    for token in found[0]:
        assert int(token) == int(jnp.argmax(last))
        state, last = tiny.step(config, policy, params, state, token)
    empty = ms.init_state(config, policy, 4, positions="cache")
    _, losses = ms.nll(config, policy, params, empty, tokens[:-1], tokens[1:])
    expected = -jax.nn.log_softmax(logits[:-1], axis=-1)[jnp.arange(11), tokens[1:]]
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    cell = ms.MultiStateCell(config, policy, params, 4, positions="cache")
    _, y = jax.jit(lambda carry, token: cell(carry, token))(cell.initialize_carry(()), jnp.int32(tokens[0]))
    np.testing.assert_allclose(y, logits[0], atol=1e-4)


def test_unknown_modes_are_refused():
    policy, params = ms.TOVA(), tiny.params()
    with pytest.raises(ValueError, match="positions is 'ranks'; it must be one of absolute, cache, gap"):
        ms.init_state(CONFIG, policy, 4, positions="ranks")
    with pytest.raises(ValueError, match="positions is 'ranks'; it must be one of absolute, cache, gap"):
        ms.generate(CONFIG, policy, params, tiny.tokens(3)[None], budget=4, positions="ranks")
    state = ms.init_state(CONFIG, policy, 4).replace(mode="ranks")
    for read, token in [(ms.step, jnp.int32(1)), (ms.extend, [1])]:
        with pytest.raises(ValueError, match="positions are 'ranks'; they must be one of absolute, cache, gap"):
            read(CONFIG, policy, params, state, token)
