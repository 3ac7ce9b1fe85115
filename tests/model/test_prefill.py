"""Prompts: the recurrence, and the authors' one cut."""

import compilations
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny

import msrnn_jax as ms

CONFIG = tiny.CONFIG
FULL = ms.Full()
prefill = jax.jit(ms.prefill, static_argnames="mode")


@tiny.each_policy
def test_oneshot_equals_the_oracle_and_goes_on_stepwise(policy, x64):
    prompt, more, budget = 20, 8, 7
    if not policy.forgets:
        budget = prompt + more
    config = (CONFIG if isinstance(policy, ms.TOVA) else tiny.SHALLOW).replace(dtype="float64")
    params, tokens = tiny.params("float64", config=config), tiny.tokens(prompt + more)
    moments = oracle.run(config, str(policy), params, tokens, budget, oneshot=prompt)
    state = ms.init_state(config, policy, budget)
    state, logits = prefill(config, policy, params, state, jnp.asarray(tokens[:prompt]), mode="oneshot")
    assert [layer.num_slots for layer in state.layers] == [budget + 1] * config.num_layers
    assert int(state.t) == prompt
    cut = moments[prompt - 1]
    assert [tiny.held(layer) for layer in state.layers] == [[list(row) for row in layer] for layer in cut.kept]
    np.testing.assert_allclose(logits, cut.logits, atol=1e-9)
    state, (logits, _) = tiny.unroll_jit(config, policy, params, state, tokens[prompt:])
    np.testing.assert_allclose(logits, np.stack([m.logits for m in moments[prompt:]]), atol=1e-9)
    last = moments[-1].kept
    assert [tiny.held(layer) for layer in state.layers] == [[list(row) for row in layer] for layer in last]


@pytest.mark.parametrize("policy", [ms.H2O(), *map(tiny.more, (ms.TOVA(), ms.Window(sinks=1)))], ids=str)
@pytest.mark.parametrize("mode", ["stepwise", "oneshot"])
def test_padding_is_not_read(policy, mode):
    """A prompt padded on the right, whatever the padding, equals the prompt alone."""
    tokens = tiny.tokens(17)
    padded = jnp.asarray(np.concatenate([tokens, np.full(6, 49, np.int32)]))
    state = ms.init_state(CONFIG, policy, 6)
    alone, expected = prefill(CONFIG, policy, tiny.params(), state, jnp.asarray(tokens), mode=mode)
    after, logits = prefill(CONFIG, policy, tiny.params(), state, padded, jnp.int32(17), mode=mode)
    np.testing.assert_allclose(logits, expected, atol=1e-5)  # other shapes round differently
    assert int(after.t) == int(alone.t) == 17
    assert [tiny.held(layer) for layer in after.layers] == [tiny.held(layer) for layer in alone.layers]


@pytest.mark.parametrize("length", [1, 4, 5, 9])
def test_a_prompt_that_ends_chunks_before_its_padding_gets_the_logits_of_its_own_last_token(length):
    policy, tokens = ms.TOVA(), tiny.tokens(17)
    state = ms.init_state(CONFIG, policy, 6)
    _, (expected, _) = tiny.unroll_jit(CONFIG, policy, tiny.params(), state, tokens)
    _, logits = ms.prefill(CONFIG, policy, tiny.params(), state, tokens, length, chunk=4)
    np.testing.assert_allclose(logits, expected[length - 1], atol=1e-5)


def test_stepwise_is_the_recurrence():
    policy, tokens = ms.TOVA(), jnp.asarray(tiny.tokens(20))
    state = ms.init_state(CONFIG, policy, 6)
    last, (logits, _) = tiny.unroll_jit(CONFIG, policy, tiny.params(), state, tokens)
    after, only = prefill(CONFIG, policy, tiny.params(), state, tokens)
    np.testing.assert_allclose(only, logits[-1], atol=1e-5)
    again, parted = prefill(CONFIG, policy, tiny.params(), state, tokens[:10])
    again, parted = prefill(CONFIG, policy, tiny.params(), again, tokens[10:])
    np.testing.assert_allclose(parted, only, atol=1e-5)
    for layers in zip(last.layers, after.layers, again.layers, strict=True):
        assert tiny.held(layers[0]) == tiny.held(layers[1]) == tiny.held(layers[2])


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", ["stepwise", "oneshot"])
def test_a_second_call_outside_jit_compiles_nothing(mode):
    state = ms.init_state(CONFIG, ms.TOVA(), 6)
    calls = [
        lambda ids, length=None: ms.prefill(CONFIG, ms.parse_policy("tova"), tiny.params(), state, ids, length, mode)
    ]
    if mode == "stepwise":
        calls.append(lambda ids, length=None: ms.nll(CONFIG, ms.TOVA(), tiny.params(), state, ids, ids, length))
    for call in calls:
        with compilations.count() as compiled:
            call(jnp.asarray(tiny.tokens(13)))
            call(jnp.asarray(tiny.tokens(13)), 9)
        assert compiled() > 0
        with compilations.count() as compiled:
            call(jnp.asarray(tiny.tokens(13, seed=1)))
            call(jnp.asarray(tiny.tokens(13, seed=1)), np.int64(4))
        assert compiled() == 0


def test_the_two_modes_differ():
    """Else the tests above would prove nothing about which one ran."""
    state, tokens = ms.init_state(CONFIG, ms.TOVA(), 6), jnp.asarray(tiny.tokens(20))
    a, b = (prefill(CONFIG, ms.TOVA(), tiny.params(), state, tokens, mode=m)[0] for m in ("stepwise", "oneshot"))
    assert [tiny.held(layer) for layer in a.layers] != [tiny.held(layer) for layer in b.layers]


def test_refusals_name_what_is_wrong():
    state, params = ms.init_state(CONFIG, ms.Full(), 6), tiny.params()

    def refused(message, tokens, length=None, mode="stepwise", state=state, policy=FULL):
        with pytest.raises(ValueError, match=message):
            ms.prefill(CONFIG, policy, params, state, tokens, length, mode)

    refused(r"tokens has shape \(0,\); it must be \[T\] with at least one token", np.zeros(0, np.int32))
    refused("tokens holds the token 50; it must be from 0 to 49", tiny.tokens(3) * 0 + 50)
    refused("tokens holds the token -1; it must be from 0 to 49", tiny.tokens(3) * 0 - 1)
    refused("tokens has dtype bool; token numbers must be integers", [True, False])
    refused("budget is 6, but window:sinks=9 protects 9 sinks", tiny.tokens(3), policy=ms.Window(sinks=9))
    refused("length is 0; it must be from 1 to 3", tiny.tokens(3), 0)
    refused("length is 4; it must be from 1 to 3", tiny.tokens(3), 4)
    refused("mode is 'chunked'; it must be one of stepwise, oneshot", tiny.tokens(3), mode="chunked")
    refused("budget is 6, but full forgets nothing and must hold 7 tokens", tiny.tokens(7))
    refused("budget is 6, but full forgets nothing and must hold 7 tokens", tiny.tokens(7), mode="oneshot")
    read, _ = ms.prefill(CONFIG, ms.Full(), params, state, jnp.asarray(tiny.tokens(4)))
    refused("budget is 6, but full forgets nothing and must hold 7 tokens", tiny.tokens(3), state=read)
    refused("mode 'oneshot' starts from an empty state; this one has seen 4 tokens", [1], mode="oneshot", state=read)
