"""`extend` is the scan of `step`, exactly.

In float64 nothing is excused: every policy in every position mode, every budget, every chunk size.
"""

import inspect
import itertools
from typing import Any

import compilations
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from extending import (
    BUDGETS,
    CHUNKS,
    DEFINED,
    FLOAT64,
    LENGTHS,
    MODES,
    WATCHED,
    Listener,
    T,
    compare,
    compare_with_oracle,
    extended,
    row_of,
)

import msrnn_jax as ms
from msrnn_jax.evaluation.losses import losses_of
from msrnn_jax.model.llama import advance, context_of, run_blocks
from msrnn_jax.recurrence.checks import check_state

ONE_LAYER = FLOAT64.replace(num_layers=1)
# In chunks of one token, in chunks of which the last is padded, and all tokens at once.
EVERY = tiny.few(
    itertools.product(tiny.POLICIES, MODES, CHUNKS),
    *zip(tiny.TYPICAL[1:], ["cache", "gap", "absolute"], [1, 64, 7], strict=True),
)
EVERY.append(
    (ms.Random(scope="head", sinks=1, recent=3), "absolute", 7)
)  # its scores say nothing, yet nothing is static


@pytest.mark.parametrize(("policy", "mode", "chunk"), EVERY, ids=str)
def test_extend_step_and_the_oracle_are_one(policy, mode, chunk, x64):
    params, tokens = tiny.params("float64"), tiny.tokens(T)
    _, (states, found), steps = compare(FLOAT64, policy, params, tokens, mode, chunk, logits=1e-9, stats=1e-7)
    kept = [[tiny.sets(layer.positions[row_of(length)]) for layer in states.layers] for length in range(1, T + 1)]
    compare_with_oracle(policy, mode, found[:T], {WATCHED: kept})
    _, logits, seen = steps
    kept = {b: [[tiny.sets(positions[b - 1, t]) for positions, _ in seen] for t in range(T)] for b in DEFINED}
    compare_with_oracle(policy, mode, logits, kept)


def test_what_padding_holds_does_not_matter():
    """Not a bit of the outputs, nor of what is held."""
    policy, mode, tokens = ms.TOVA(scope="head"), "absolute", tiny.tokens(T)
    other = np.where(np.arange(T) < 20, tokens, tokens[::-1])
    args = (tiny.CONFIG, policy, tiny.params())
    short = LENGTHS <= 20
    results = [extended(*args, text, BUDGETS, LENGTHS, mode, 7) for text in (tokens, other)]
    (first, a), (second, b) = jax.device_get(results)
    np.testing.assert_array_equal(a[short], b[short])
    assert (a[~short] != b[~short]).any()
    for mine, theirs in zip(first.layers, second.layers, strict=True):
        np.testing.assert_array_equal(mine.positions[short], theirs.positions[short])
        for leaf in ("keys", "values", "stats"):
            ours, others = (tiny.by_position(x.positions[short], getattr(x, leaf)[short], T) for x in (mine, theirs))
            np.testing.assert_array_equal(ours, others)


def test_a_row_of_a_batch_equals_the_row_alone(x64):
    policy, params, tokens = ms.TOVA(), tiny.params("float64"), tiny.tokens(T)
    states, logits = extended(FLOAT64, policy, params, tokens, BUDGETS, LENGTHS, "absolute", 64)
    length, row = 17, row_of(17)
    start = ms.init_state(FLOAT64, policy, WATCHED)
    alone, expected = ms.extend(FLOAT64, policy, params, start, tokens[:length], chunk=9)  # other shapes throughout
    np.testing.assert_allclose(logits[row, :length], expected, rtol=0, atol=1e-9)
    for mine, theirs in zip(states.layers, alone.layers, strict=True):
        assert tiny.sets(mine.positions[row]) == tiny.held(theirs)


@pytest.mark.parametrize(
    ("policy", "mode"),
    [(ms.TOVA(), "cache"), tiny.more(ms.H2O(), "gap"), tiny.more(ms.Window(sinks=1), "absolute")],
    ids=str,
)
def test_a_oneshot_prompt_is_to_extend_without_forgetting_and_then_compress(policy, mode, x64):
    count, budget = 19, 7
    params, tokens = tiny.params("float64", config=ONE_LAYER), tiny.tokens(count)
    empty = ms.init_state(ONE_LAYER, policy, budget, positions=mode)
    state, last = ms.prefill(ONE_LAYER, policy, params, empty, tokens, mode="oneshot", chunk=7)
    assert [layer.num_slots for layer in state.layers] == [budget + 1]
    moment = oracle.run(ONE_LAYER, str(policy), params, tokens.tolist(), budget, oneshot=count, positions=mode)[-1]
    np.testing.assert_allclose(last, moment.logits, rtol=0, atol=1e-9)
    assert [tiny.held(layer) for layer in state.layers] == moment.kept
    roomy = ms.init_state(ONE_LAYER, policy, count, positions=mode)
    roomy, logits = ms.extend(ONE_LAYER, policy, params, roomy, tokens, chunk=7)
    np.testing.assert_allclose(logits[-1], moment.logits, rtol=0, atol=1e-9)
    assert [tiny.held(layer) for layer in ms.compress(policy, roomy, budget).layers] == moment.kept


def test_a_traced_length_outside_counts_as_the_nearest():
    tokens = tiny.tokens(8)
    state = ms.init_state(tiny.CONFIG, ms.TOVA(), 5)
    read = jax.jit(
        lambda length: ms.extend(tiny.CONFIG, ms.TOVA(), tiny.params(), state, tokens, length=length, chunk=3)
    )
    after, logits = read(jnp.int32(20))
    expected, exactly = read(jnp.int32(8))
    assert int(after.t) == 8
    np.testing.assert_array_equal(logits, exactly)
    assert [tiny.held(layer) for layer in after.layers] == [tiny.held(layer) for layer in expected.layers]


def test_prefill_and_nll_read_in_chunks_as_extend_does(x64):
    policy, params, tokens = ms.TOVA(), tiny.params("float64", config=ONE_LAYER), tiny.tokens(24)
    args = (ONE_LAYER, policy, params, ms.init_state(ONE_LAYER, policy, 6, positions="cache"))
    state, logits = ms.extend(*args, tokens[:-1], length=20, chunk=5)
    after, losses = ms.nll(*args, tokens[:-1], tokens[1:], 20, chunk=7)
    np.testing.assert_allclose(losses[:20], losses_of(logits, jnp.asarray(tokens[1:]))[:20], rtol=0, atol=1e-9)
    assert not losses[20:].any()
    filled, last = ms.prefill(*args, tokens[:-1], 20, chunk=9)
    np.testing.assert_allclose(last, logits[19], rtol=0, atol=1e-9)
    for layers in zip(state.layers, after.layers, filled.layers, strict=True):
        assert tiny.held(layers[0]) == tiny.held(layers[1]) == tiny.held(layers[2])


def test_the_layers_of_a_cell_take_chunks_too():
    policy, tokens = ms.TOVA(), jnp.asarray(tiny.tokens(9))
    cell = ms.MultiStateCell(tiny.CONFIG, policy, tiny.params(), 4)
    empty = ms.init_state(tiny.CONFIG, policy, 4)

    @jax.jit
    def by_modules(state, tokens):
        context = context_of(tiny.CONFIG, state, tokens)
        return run_blocks(policy, cell.params.embedding, list(cell.layers), state, context)

    expected, x = jax.jit(advance)(tiny.CONFIG, policy, tiny.params(), empty, tokens)
    state, y = by_modules(empty, tokens)
    np.testing.assert_allclose(y, x, atol=1e-5)
    assert [tiny.held(layer) for layer in state.layers] == [tiny.held(layer) for layer in expected.layers]
    assert int(state.t) == 9


def test_a_head_is_applied_to_the_logits_and_tokens_of_every_chunk():
    policy, tokens, config = ms.TOVA(), tiny.tokens(T), tiny.SHALLOW
    args = (config, policy, tiny.params(config=config), ms.init_state(config, policy, 6))

    def head(logits, tokens):
        best = jnp.argmax(logits, axis=-1)
        return {"best": best, "right": best == tokens, "both": (logits[:, :3], losses_of(logits, tokens))}

    state, logits = ms.extend(*args, tokens, length=31, chunk=7)
    again, kept = ms.extend(*args, tokens, length=31, chunk=7, head=head)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    expected = head(logits, jnp.asarray(tokens))
    assert jax.tree.structure(kept) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(kept), jax.tree.leaves(expected), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and not ours[31:].any()
        np.testing.assert_allclose(ours[:31], theirs[:31], atol=1e-5)
    assert ms.extend(*args, tokens, chunk=7, head=lambda logits, tokens: ())[1] == ()


def test_a_head_may_close_over_arrays_under_jit_and_gets_their_gradient():
    policy, tokens, config = ms.TOVA(), tiny.tokens(T), tiny.SHALLOW
    args = (config, policy, tiny.params(config=config), ms.init_state(config, policy, 6), tokens)

    @jax.jit
    def probe(weight):
        def head(logits, _):
            return logits @ weight

        kept = ms.extend(*args, length=31, chunk=7, head=head)[1]
        return kept.sum(), kept

    _, logits = ms.extend(*args, length=31, chunk=7)
    for seed in range(2):
        weight = np.random.default_rng(seed).normal(size=(50, 4)).astype(np.float32)
        gradient, kept = jax.grad(probe, has_aux=True)(weight)
        np.testing.assert_allclose(kept, logits @ weight, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(gradient, np.stack([logits.sum(axis=0)] * 4, axis=1), rtol=1e-4, atol=1e-4)


def test_a_second_call_outside_jit_compiles_nothing():
    tokens = tiny.tokens(23)

    def call(policy, budget, length, seed):
        state = ms.init_state(tiny.CONFIG, ms.TOVA(sinks=1), budget, slots=9)
        return ms.extend(tiny.CONFIG, policy, tiny.params(), state, tiny.tokens(23, seed), length=length, chunk=8)

    with compilations.count() as compiled:
        call(ms.TOVA(sinks=1), 5, 23, 0)
    assert compiled() > 0
    with compilations.count() as compiled:
        call(ms.parse_policy("tova:sinks=1"), 8, 9, 1)
        call(ms.TOVA(sinks=1).replace(), np.int64(3), np.int32(4), 2)
    assert compiled() == 0
    for policy in (ms.TOVA(), Listener(weight=jnp.ones(2))):  # whose statistics start with Python's numbers
        empty = ms.init_state(tiny.CONFIG, policy, 4)
        with compilations.count() as compiled:
            ms.extend(tiny.CONFIG, policy, tiny.params(), empty, tokens)
        first = compiled()
        with compilations.count() as compiled:
            state, _ = ms.extend(tiny.CONFIG, policy, tiny.params(), empty, tokens[::-1].tolist())
            ms.extend(tiny.CONFIG, policy, tiny.params(), state, tokens)  # from a state that it made itself
        assert compiled() == 0 < first


def test_refusals_name_what_is_wrong():
    params, policy, full = tiny.params(), ms.TOVA(), ms.Full()
    state, room = ms.init_state(tiny.CONFIG, policy, 6), ms.init_state(tiny.CONFIG, full, 6)

    extend = inspect.unwrap(ms.extend)  # without the tests' own type checks

    def refused(message, tokens: Any = (1, 2, 3), policy: Any = policy, state=state, **options):
        with pytest.raises(ValueError, match=message):
            extend(tiny.CONFIG, policy, params, state, tokens, **options)

    refused(r"tokens has shape \(0,\); it must be \[T\] with at least one token", np.zeros(0, np.int32))
    refused(r"tokens has shape \(0,\); it must be \[T\] with at least one token", [])
    refused(r"tokens has shape \(1, 3\); it must be \[T\]", np.array([[1, 2, 3]]))
    refused(r"tokens has shape \(\); it must be \[T\]", np.array(3))
    refused("tokens holds the token 50; it must be from 0 to 49", [50])
    refused("tokens holds the token -1; it must be from 0 to 49", [0, -1])
    refused("tokens has dtype float64; token numbers must be integers", np.array([0.5]))
    refused("chunk is 0; it must be a whole number of at least 1", chunk=0)
    refused("chunk is -3; it must be a whole number of at least 1", chunk=-3)
    refused("chunk is True; it must be a whole number of at least 1", chunk=True)
    refused("chunk is 7.0; it must be a whole number of at least 1", chunk=7.0)
    refused("length is 0; it must be from 1 to 3, the number of tokens given", length=0)
    refused("length is 4; it must be from 1 to 3, the number of tokens given", length=4)
    refused("length has dtype bool; lengths must be integers", length=True)
    refused(r"length has shape \(3,\); it must be one number, so vmap over a batch", length=np.array([1, 2, 3]))
    refused(r"tokens is \[1, \[2\]\]; its rows must have one length", [1, [2]])
    with pytest.raises(ValueError, match="state is 3; it must be a MultiState"):
        inspect.unwrap(check_state)(tiny.CONFIG, policy, 3)
    refused("head is 3; it must be a hashable function", head=3)
    unhashable = type("Unhashable", (), {"__hash__": None, "__call__": losses_of, "__repr__": lambda _: "unhashable"})
    refused("head is unhashable; it must be a hashable function", head=unhashable())
    refused(r"head returned an array of shape \(50,\); its first axis must be", head=lambda logits, _: logits.sum(0))
    refused(r"head returned an array of shape \(\); its first axis must be", head=lambda logits, _: (logits[:, 0], 0.0))
    refused("budget is 6, but full forgets nothing and must hold 7 tokens", [0] * 7, full, room)
    read = room.replace(t=jnp.int32(4))
    refused("budget is 6, but full forgets nothing and must hold 7 tokens", [0] * 3, full, read)
    ms.extend(tiny.CONFIG, full, params, read, [0] * 3, length=2)  # padding needs no room
    refused("forgets by head, which takes 3", policy=ms.TOVA(scope="head"))
    refused("other statistics than those of window", policy=ms.Window())
    refused("budget is 6, but tova:sinks=7 protects 7 sinks", policy=ms.TOVA(sinks=7))
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state)
    refused("so vmap over a batch", state=batch)
