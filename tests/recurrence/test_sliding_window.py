"""Sliding windows: a token that no later query can see is freed, and only then the policy forgets."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.model.llama import advance
from msrnn_jax.params import abstract_params
from msrnn_jax.recurrence.checks import check_room, check_state
from msrnn_jax.recurrence.sliding_window import room_for, visible_in_window
from msrnn_jax.recurrence.slots import grow_slots
from msrnn_jax.state import POSITION_MODES

T, W = 34, 7
SLOTS = 14
FLOAT64 = tiny.CONFIG.replace(dtype="float64")
EVERY = FLOAT64.replace(sliding_window=W)  # all layers slide
SECOND = FLOAT64.replace(sliding_window=W, sliding_layers=(1,))
ONE = EVERY.replace(num_layers=1)  # compiles in half the time
# Below the window, what it lets see, and above: then less is held than the budget would allow.
BUDGETS = (4, W - 1, 12)
LENGTHS = (T, T, T - 9)  # the last row is padded


def params(config=EVERY):
    made = tiny.params("float64")
    return made.replace(layers=made.layers[: config.num_layers])


def tokens(count=T):
    return tiny.tokens(count)


@cache
def moments(config, policy, budget, oneshot=0, mode="absolute", count=T):
    return oracle.run(config, policy, params(config), tokens(count).tolist(), budget, oneshot=oneshot, positions=mode)


def budget_of(config, policy, budget):
    """One per layer: layers that do not slide hold everything under a policy that forgets nothing."""
    if policy.forgets:
        return (budget,) * config.num_layers
    return tuple(budget if config.window_of(layer) else T for layer in range(config.num_layers))


def expect(logits, layers, expected):
    """Logits [T, V] and the layers of the last state are those of the oracle."""
    np.testing.assert_allclose(logits, np.stack([moment.logits for moment in expected]), rtol=0, atol=1e-9)
    assert [tiny.held(layer) for layer in layers] == expected[-1].kept


extend = jax.jit(ms.extend, static_argnames="chunk")
prefill = jax.jit(ms.prefill, static_argnames=("mode", "chunk"))
unroll = jax.jit(tiny.unroll)


def row(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


@partial(jax.jit, static_argnames=("chunk", "slots"))
def batch(config, policy, params, tokens, budgets, lengths, *, chunk, slots):
    """`extend` for a batch of budgets and lengths; stepping where there is no chunk."""

    def one(budget, length):
        state = ms.init_state(config, policy, budget, slots=slots)
        if chunk is not None:
            return ms.extend(config, policy, params, state, tokens, length=length, chunk=chunk)

        def step(state, item):
            token, index = item
            before = state
            state, logits = ms.step(config, policy, params, state, token)
            real = index < length
            state = jax.tree.map(lambda new, old: jnp.where(real, new, old), state, before)
            return state, jnp.where(real, logits, 0)

        return jax.lax.scan(step, state, (tokens, jnp.arange(T, dtype=jnp.int32)))

    return jax.vmap(one)(budgets, lengths)


@tiny.each_policy
def test_step_and_extend_equal_the_definition(policy, x64):
    config = SECOND if policy in (ms.TOVA(), ms.Full()) else ONE
    budgets = [budget_of(config, policy, budget) for budget in BUDGETS]
    if not policy.forgets:  # it needs what the window lets it see, and no more
        budgets[0] = budgets[1]
    slots = SLOTS if policy.forgets else T + 1
    for chunk in (None, 5, T) if policy == ms.Window(sinks=4) else (None, 5):
        given = (
            config,
            policy,
            params(config),
            tokens(),
            jnp.asarray(budgets, jnp.int32),
            jnp.asarray(LENGTHS, jnp.int32),
        )
        states, logits = batch(*given, chunk=chunk, slots=slots)
        for number, (budget, length) in enumerate(zip(budgets, LENGTHS, strict=True)):
            expected = moments(config, str(policy), tuple(budget))[:length]
            expect(logits[number][:length], row(states, number).layers, expected)
            assert not np.asarray(logits[number][length:]).any()


@pytest.mark.parametrize("chunk", [1, 64])
def test_full_attention_within_a_window_needs_as_many_slots_less_one(chunk, x64):
    """A text of any length, as the parallel transformer sees it, under a mask."""
    config, text = EVERY, tokens(3 * W + 2)
    expected = oracle.full_logits(config, params(), text.tolist())
    state = ms.init_state(config, ms.Full(), W - 1)
    assert state.layers[0].num_slots == W
    last, logits = extend(config, ms.Full(), params(), state, text, chunk=chunk)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)
    assert tiny.held(last.layers[1]) == [[*range(2 * W + 3, 3 * W + 2)]]  # W - 1 of them
    _, (logits, _) = unroll(config, ms.Full(), params(), state, text)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)
    # The window is what made the difference.
    wide = oracle.full_logits(FLOAT64, params(), text.tolist())
    assert np.abs(expected - wide)[W:].max() > 0.1


def test_room_is_refused_only_where_a_layer_that_does_not_slide_needs_it():
    every, second = (config.replace(dtype="float32") for config in (EVERY, SECOND))
    weights, text = abstract_params(every), tokens()  # nothing is computed
    with pytest.raises(ValueError, match=f"budget is {W - 2}, but full forgets nothing and must hold {W - 1} tokens"):
        ms.extend(every, ms.Full(), weights, ms.init_state(every, ms.Full(), W - 2), text)
    with pytest.raises(ValueError, match=f"budget is {W - 1}, but full forgets nothing and must hold {T} tokens"):
        ms.extend(second, ms.Full(), weights, ms.init_state(second, ms.Full(), W - 1), text)
    check_room(second, ms.Full(), ms.init_state(second, ms.Full(), [T, W - 1]), T)
    assert [room_for(config, "absolute", T) for config in (every, second)] == [W - 1, T]
    assert room_for(every, "absolute", 3) == 3
    with pytest.raises(ValueError, match="must hold 17 tokens"):
        ms.generate(second, ms.Full(), weights, text[None, :5], budget=W - 1, max_new_tokens=12)


def test_room_for_places_is_room_for_all_tokens():
    """In the mode "cache" nothing expires, so a policy that forgets nothing ends where the window does."""
    every = EVERY.replace(dtype="float32")
    state = ms.init_state(every, ms.Full(), W - 1, positions="cache")
    check_room(every, ms.Full(), state, W - 1)
    with pytest.raises(ValueError, match=f"budget is {W - 1}, but full forgets nothing and must hold {W} tokens"):
        check_room(every, ms.Full(), state, W)
    assert room_for(every, "cache", T) == T


PROMPTS = [(ms.TOVA(), 5), (ms.H2O(), 5), (ms.H2O(), 64), (ms.Window(sinks=2), 5), (ms.Full(), 5)]


@pytest.mark.parametrize(
    ("policy", "chunk", "mode"),
    tiny.few(
        [(*prompt, mode) for prompt in PROMPTS for mode in ("absolute", "cache")],
        *[(ms.TOVA(), 5, "cache"), (ms.H2O(), 64, "absolute"), (ms.Full(), 5, "absolute")],
    ),
    ids=str,
)
def test_a_prompt_read_at_once(policy, mode, chunk, x64):
    """Nothing goes before its end, so attention is masked; what has expired by then goes before the policy chooses."""
    config, budget, prompt = ONE, W - 1, 3 * W
    if mode == "cache" and not policy.forgets:
        prompt = W - 1  # more is refused there
    expected = moments(config, str(policy), budget, oneshot=prompt, mode=mode, count=prompt + 3)
    state = ms.init_state(config, policy, budget, positions=mode)
    text = np.pad(tokens(prompt), (0, 4))
    state, logits = prefill(config, policy, params(config), state, text, prompt, mode="oneshot", chunk=chunk)
    np.testing.assert_allclose(logits, expected[prompt - 1].logits, rtol=0, atol=1e-9)
    assert [tiny.held(layer) for layer in state.layers] == expected[prompt - 1].kept
    if mode == "absolute":
        assert all(position >= prompt + 1 - W for layer in state.layers for row in tiny.held(layer) for position in row)
    elif policy == ms.Window(sinks=2):
        assert tiny.held(state.layers[0])[0][:2] == [0, 1]  # places are all that count there
    if mode == "cache" and not policy.forgets:
        return
    _, (logits, _) = unroll(config, policy, params(config), state, tokens(prompt + 3)[prompt:])
    np.testing.assert_allclose(logits, [moment.logits for moment in expected[prompt:]], rtol=0, atol=1e-9)


@jax.jit
def remembering(state, tokens):
    """A chunk, and step after step, none of which forgets."""
    read = partial(advance, ONE, ms.TOVA(), params(ONE), forgetting=False)
    return read(state, tokens), jax.lax.scan(read, state, tokens)


def test_stepping_without_forgetting_is_masked_by_the_window(x64):
    """`advance` token by token with room for all, as a chunk of them."""
    for mode in ("absolute", "cache"):
        state = ms.init_state(ONE, ms.TOVA(), W - 1, positions=mode)
        wide = state.replace(layers=tuple(grow_slots(ms.TOVA(), layer, T) for layer in state.layers))
        (together, x), (last, each) = remembering(wide, jnp.asarray(tokens()))
        np.testing.assert_allclose(each, x, rtol=0, atol=1e-10)
        assert [tiny.held(layer) for layer in last.layers] == [tiny.held(layer) for layer in together.layers]


def test_cutting_to_a_smaller_budget_in_mid_text(x64):
    """What is held at a cut has not expired, so that a cut is a cut as ever; the text goes on within the window."""
    policy, first = ms.TOVA(), 20
    state = ms.init_state(ONE, policy, 12)
    state, _ = extend(ONE, policy, params(ONE), state, tokens()[:first])
    assert tiny.held(state.layers[0]) == moments(ONE, "tova", 12)[first - 1].kept[0]
    small = ms.compress(policy, state, 3, shrink=True)
    assert [len(layer[0]) for layer in map(tiny.held, small.layers)] == [3]
    again, logits = extend(ONE, policy, params(ONE), small, tokens()[first:])
    _, (stepped, _) = unroll(ONE, policy, params(ONE), small, tokens()[first:])
    np.testing.assert_allclose(logits, stepped, rtol=0, atol=1e-9)
    assert min(tiny.held(again.layers[0])[0]) >= T + 1 - W


@pytest.mark.parametrize("policy", [ms.TOVA(), ms.Window(sinks=4)], ids=str)
def test_places_among_what_is_held_never_leave_the_window(policy, x64):
    """In the mode "cache" nothing expires: a model with a window is the same without."""
    without = ONE.replace(sliding_window=None)
    expected = moments(without, str(policy), W - 1, mode="cache")
    state = ms.init_state(ONE, policy, W - 1, positions="cache")
    last, logits = extend(ONE, policy, params(ONE), state, tokens(), chunk=9)
    expect(logits, last.layers, expected)
    if policy.sinks:
        assert tiny.held(last.layers[0])[0][:4] == [0, 1, 2, 3]


def test_what_is_in_sight_is_counted_in_places_where_positions_are_places():
    empty = ms.EMPTY
    positions = jnp.asarray([[0, 30, empty, 28, 31, 33]], jnp.int32)
    queries = jnp.asarray([[4, 5]], jnp.int32)  # the slots of 31 and 33
    seen = {
        mode: np.asarray(visible_in_window(mode, positions, queries, 4))[0, :, [0, 1, 3, 4]].T
        for mode in POSITION_MODES
    }
    assert seen["absolute"].tolist() == [[False, True, True, True], [False, True, False, True]]
    assert seen["cache"].tolist() == [[True, True, True, True], [False, True, True, True]]


def test_position_modes_that_a_window_rules_out():
    config, policy = SECOND.replace(dtype="float32"), ms.TOVA()
    with pytest.raises(ValueError, match="positions is 'gap', but layer 1 has a sliding window of 7 true positions"):
        ms.init_state(config, policy, 4, positions="gap")
    with pytest.raises(ValueError, match="there are 8 slots, but layer 1 has a sliding window of 7; .* at most 7"):
        ms.init_state(config, policy, W, positions="cache")
    with pytest.raises(ValueError, match="there are 9 slots"):
        ms.MultiStateCell(config, policy, tiny.params(), 4, slots=9, positions="cache")
    state = ms.init_state(config, policy, W - 1, positions="cache")
    check_state(config, policy, state)
    # A state of a model without windows, or one that was given more slots, is refused where it is used.
    roomy = ms.init_state(tiny.CONFIG, policy, W, positions="cache")
    with pytest.raises(ValueError, match="there are 8 slots"):
        ms.step(config, policy, tiny.params(), roomy, jnp.int32(1))
    with pytest.raises(ValueError, match="there are 8 slots"):
        ms.extend(config, policy, tiny.params(), ms.adopt(ms.H2O(scope="layer"), state, W), tokens())


@pytest.mark.parametrize("fields", [{}, {"sliding_layers": (0,)}, {"unrotated_layers": (1,)}], ids=repr)
def test_layers_that_slide_pass_through_json(fields):
    config = EVERY.replace(**fields)
    assert ms.Config.from_json(config.to_json()) == config
    assert ms.Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"sliding_window": 1}, "sliding_window is 1; it must be a whole number of at least 2"),
        ({"sliding_window": True}, "sliding_window is True"),
        (
            {"sliding_window": 4, "sliding_layers": (2,)},
            r"sliding_layers is \(2,\); it must be a tuple of layers from 0",
        ),
        ({"sliding_window": 4, "sliding_layers": (1, 0)}, "ascending and distinct"),
        ({"sliding_window": 4, "sliding_layers": ()}, "sliding_layers is"),
        ({"sliding_layers": (1,)}, "layers with a sliding_window"),
        ({"unrotated_layers": (0, 0)}, "ascending and distinct"),
        ({"unrotated_layers": [0]}, "it must be a tuple"),
    ],
    ids=repr,
)
def test_what_a_config_refuses(fields, text):
    with pytest.raises(ValueError, match=text):
        tiny.CONFIG.replace(**fields)
