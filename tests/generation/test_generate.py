"""Generation against a plain loop over steps."""

from functools import partial

import compilations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.generation.decoding import BLOCK, decode
from msrnn_jax.generation.generate import _generate

CONFIG = tiny.SHALLOW
params = partial(tiny.params, config=CONFIG)
generate = ms.generate


def by_hand(policy, prompt, budget, count, stop=(), mode="stepwise", config=CONFIG):
    """Greedy continuation, one step at a time."""
    params = tiny.params(config=config)
    state = ms.init_state(config, policy, budget)
    if mode == "oneshot":
        padded = np.pad(prompt, (0, 11 - len(prompt)))  # one shape, one program
        state, logits = ms.prefill(config, policy, params, state, padded, len(prompt), mode=mode)
    else:
        for token in prompt:
            state, logits = tiny.step(config, policy, params, state, jnp.int32(token))
    tokens = []
    while len(tokens) < count and not (tokens and tokens[-1] in stop):
        tokens.append(int(jnp.argmax(logits)))
        state, logits = tiny.step(config, policy, params, state, jnp.int32(tokens[-1]))
    return tokens, state


@pytest.mark.parametrize("mode", ["stepwise", "oneshot"])
@pytest.mark.parametrize("policy", [ms.TOVA(), *map(tiny.more, (ms.H2O(), ms.Window(sinks=1)))], ids=str)
def test_every_row_of_a_ragged_batch_equals_the_row_alone(policy, mode):
    prompts = [tiny.tokens(n, seed) for seed, n in enumerate([5, 11, 1, 8])]
    padded = np.full((4, 11), 13, np.int32)  # what padding holds must not matter
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    plain, _ = by_hand(policy, prompts[0], 5, 20, mode=mode)
    stop = (plain[7],)  # a token that some row is known to reach
    tokens, lengths, states = generate(
        CONFIG,
        policy,
        params(),
        padded,
        [len(p) for p in prompts],
        budget=5,
        max_new_tokens=20,
        stop=stop,
        mode=mode,
    )
    assert lengths[0] == plain.index(stop[0]) + 1
    for row, prompt in enumerate(prompts):
        expected, state = by_hand(policy, prompt, 5, 20, stop, mode)
        assert tokens[row, : lengths[row]].tolist() == expected
        assert not tokens[row, lengths[row] :].any()
        mine = jax.tree.map(lambda leaf, row=row: leaf[row], states)
        assert int(mine.t) == len(prompt) + len(expected)
        assert [tiny.held(layer) for layer in mine.layers] == [tiny.held(layer) for layer in state.layers]


def test_the_state_has_seen_everything_and_goes_on():
    policy, prompt = ms.TOVA(), tiny.tokens(6)
    tokens, _, states = generate(CONFIG, policy, params(), prompt[None], budget=5, max_new_tokens=12)
    first, _, half = generate(CONFIG, policy, params(), prompt[None], budget=5, max_new_tokens=11)
    assert first[0].tolist() == tokens[0, :11].tolist()
    state = jax.tree.map(lambda leaf: leaf[0], half)
    state, _ = tiny.step(CONFIG, policy, params(), state, tokens[0, 11])
    last = jax.tree.map(lambda leaf: leaf[0], states)
    assert int(state.t) == int(last.t) == 18
    assert [tiny.held(layer) for layer in state.layers] == [tiny.held(layer) for layer in last.layers]


@pytest.mark.exhaustive
@pytest.mark.parametrize("policy", [ms.TOVA(), ms.H2O()], ids=str)
def test_generation_goes_on_from_states(policy):
    """A second prompt after the first continuation, in each row: what one reading of all its tokens would write."""
    config = tiny.CONFIG  # of two layers, each with a budget of its own
    model, stop = (config, policy, tiny.params()), (3, 4, 5, 6, 7, 8)
    prompts, lengths = np.stack([tiny.tokens(7, seed) for seed in range(3)]), [7, 3, 5]
    more, sizes = np.stack([tiny.tokens(6, 9 + seed) for seed in range(3)]), [2, 6, 4]
    written, ends, states = generate(*model, prompts, lengths, budget=(6, 3), max_new_tokens=8, stop=stop)
    assert len(set(ends.tolist())) > 1  # rows have clocks of their own
    tokens, counts, last = generate(*model, more, sizes, state=states, max_new_tokens=5)
    blocks = list(ms.stream(*model, more, sizes, state=states, max_new_tokens=5))
    assert [layer.num_slots for layer in jax.tree.map(lambda leaf: leaf[0], last).layers] == [7, 4]
    for row in range(3):
        read = [*prompts[row, : lengths[row]], *written[row, : ends[row]].tolist(), *more[row, : sizes[row]]]
        expected, state = by_hand(policy, read, (6, 3), 5, config=config)
        assert tokens[row, : counts[row]].tolist() == expected
        assert np.concatenate([block.tokens[row, : block.counts[row]] for block in blocks]).tolist() == expected
        mine = jax.tree.map(lambda leaf, row=row: leaf[row], last)
        assert [tiny.held(layer) for layer in mine.layers] == [tiny.held(layer) for layer in state.layers]
    begun, _ = ms.extend(*model, ms.init_state(config, policy, 4), prompts[0])  # one state, which all rows share
    tokens, *_ = generate(*model, more, sizes, state=begun, max_new_tokens=5)
    for row in range(3):
        assert tokens[row].tolist() == by_hand(policy, [*prompts[0], *more[row, : sizes[row]]], 4, 5, config=config)[0]


def test_states_to_go_on_from_are_refused_where_they_do_not_fit():
    def refused(message, policy=None, rows=2, **options):
        for start in (generate, ms.stream):
            with pytest.raises(ValueError, match=message):
                start(CONFIG, policy or ms.TOVA(), params(), np.ones((rows, 2), int), max_new_tokens=3, **options)

    one = ms.prefill(CONFIG, ms.TOVA(), params(), ms.init_state(CONFIG, ms.TOVA(), 4), tiny.tokens(5))[0]
    two = ms.fork(one, 2)
    refused("budget is missing; give it, or a state to go on from")
    refused("budget is 4, but the state has its own; give one of the two", state=two, budget=4)
    refused("slots is 9, but the state has its own", state=one, slots=9)
    refused("positions is 'absolute', but the state has its own", state=one, positions="absolute")
    refused("dtype is 'float32', but the state has its own", state=one, dtype="float32")
    refused(r"state has leaves \[2\]; it must be of 3 rows, one per prompt", state=two, rows=3)
    refused("mode 'oneshot' starts from an empty state; this one has seen 5 tokens", state=two, mode="oneshot")
    refused("layer 0 has 1 rows of slots, but h2o forgets by head", ms.H2O(), state=two)
    refused("budget is 4, but tova:sinks=5 protects 5 sinks", ms.TOVA(sinks=5), state=two)
    full = ms.fork(ms.extend(CONFIG, ms.Full(), params(), ms.init_state(CONFIG, ms.Full(), 9), [1] * 5)[0], 2)
    refused("budget is 9, but full forgets nothing and must hold 10 tokens", ms.Full(), state=full)


def test_another_prompt_length_seed_or_budget_compiles_nothing():
    options = {"max_new_tokens": 6, "sampler": ms.Temperature(0.9), "slots": 9}
    with compilations.count(_generate) as compiled:
        for seed, budget, count in [(3, 4, 5), (1, 4, 5), (0, 8, 9), (2, (3,), 17)]:
            policy = ms.parse_policy("tova")
            key = jax.random.key(seed)
            prompt = tiny.tokens(count, seed)[None]
            generate(CONFIG, policy, params(), prompt, budget=budget, key=key, stop=(seed,), **options)
        assert compiled() == 1
        generate(CONFIG, ms.TOVA(), params(), tiny.tokens(40)[None], budget=4, key=jax.random.key(0), **options)
    assert compiled() == 2  # a longer padded size does


def test_a_seed_gives_the_same_text_alone_and_in_a_batch():
    """Whatever stands beside it; of equal prompts, the first."""
    prompts = np.stack([tiny.tokens(6, seed) for seed in (0, 1, 0, 2)])
    lengths = [6, 5, 6, 3]
    prompts[1, 5:], prompts[3, 3:] = 7, 9  # what padding holds does not matter
    key = jax.random.key(7)
    options = {"budget": 5, "max_new_tokens": 10, "sampler": ms.Temperature(1.5)}
    together, *_ = generate(CONFIG, ms.TOVA(), params(), prompts, lengths, key=key, **options)
    rows = [tuple(row) for row in together.tolist()]
    assert len(set(rows)) == 4  # the second of two equal prompts draws differently
    for row in (0, 1, 3):
        prompt = prompts[row : row + 1, : lengths[row]]
        alone, *_ = generate(CONFIG, ms.TOVA(), params(), prompt, key=key, **options)
        assert tuple(alone[0].tolist()) == rows[row]
    flat = ms.Temperature(1e3)  # nothing but noise, which other prompts must not share
    noise, *_ = generate(CONFIG, ms.TOVA(), params(), prompts, lengths, key=key, **{**options, "sampler": flat})
    assert all((noise[i] == noise[j]).mean() < 0.5 for i in range(4) for j in range(i))
    keys = jax.random.split(key, 4)
    own, *_ = generate(CONFIG, ms.TOVA(), params(), prompts, lengths, key=keys, **options)
    alone, *_ = generate(CONFIG, ms.TOVA(), params(), prompts[2:3], key=keys[2:3], **options)
    assert alone.tolist() == own[2:3].tolist()


def test_any_of_several_stop_tokens_ends_a_row():
    prompt = tiny.tokens(6)
    plain, _ = by_hand(ms.TOVA(), prompt, 5, 12)
    last = next(index for index, token in enumerate(plain) if plain.index(token) == index > 2)
    for stop in ((plain[last], 49), (49, plain[last]), (49, 48, plain[last])):
        assert not {48, 49} & set(plain[: last + 1])
        tokens, lengths, _ = generate(CONFIG, ms.TOVA(), params(), prompt[None], budget=5, max_new_tokens=12, stop=stop)
        assert lengths.tolist() == [last + 1] and tokens[0].tolist() == [*plain[: last + 1], *[0] * (11 - last)]


@pytest.mark.parametrize("mode", ["oneshot", tiny.more("stepwise")])
def test_blocks_put_together_are_what_generate_returns(mode):
    prompts, lengths = np.stack([tiny.tokens(9, seed) for seed in range(3)]), [9, 4, 6]
    greedy, *_ = generate(CONFIG, ms.TOVA(), params(), prompts, lengths, budget=5, max_new_tokens=40, mode=mode)
    # Row 0 stops within the second block, row 1 perhaps, some row runs to its limit.
    options = {"budget": 5, "max_new_tokens": 40, "stop": (int(greedy[0, 12]),), "mode": mode}
    options |= {"sampler": ms.Temperature(0.7), "key": jax.random.key(1)}
    tokens, ends, states = generate(CONFIG, ms.TOVA(), params(), prompts, lengths, **options)
    blocks = list(ms.stream(CONFIG, ms.TOVA(), params(), prompts, lengths, **options))
    assert len(blocks) == 1 + -(-(int(ends.max()) - 1) // BLOCK) and blocks[0].counts.tolist() == [1, 1, 1]
    for row in range(3):
        pieces = [block.tokens[row, : block.counts[row]] for block in blocks]
        assert np.concatenate(pieces).tolist() == tokens[row, : ends[row]].tolist()
    last = blocks[-1].draft
    assert last.lengths.tolist() == ends.tolist()
    for ours, theirs in zip(jax.tree.leaves(last.states), jax.tree.leaves(states), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    with compilations.count(decode) as compiled:
        next(ms.stream(CONFIG, ms.TOVA(), params(), prompts, lengths, **{**options, "max_new_tokens": 7}))
    assert compiled() == 0


@pytest.mark.exhaustive
def test_sizes_may_be_numpy_integers_and_budgets_traced():
    prompt, options = tiny.tokens(5)[None], {"max_new_tokens": np.int64(4), "slots": np.int64(9)}
    expected, *_ = generate(tiny.CONFIG, ms.TOVA(), tiny.params(), prompt, budget=(4, 5), **options)
    traced = jax.jit(lambda b: generate(tiny.CONFIG, ms.TOVA(), tiny.params(), prompt, budget=[b, b + 1], **options)[0])
    np.testing.assert_array_equal(traced(jnp.int32(4)), expected)


def test_temperature_draws_from_the_softmax():
    logits = jnp.log(jnp.asarray([0.7, 0.2, 0.1]))
    keys = jax.random.split(jax.random.key(0), 4000)
    warm = jnp.bincount(jax.vmap(lambda key: ms.Temperature(1.0)(logits, key))(keys), length=3) / 4000
    np.testing.assert_allclose(warm, [0.7, 0.2, 0.1], atol=0.03)  # four deviations of sqrt(0.21 / 4000)
    cool = jnp.bincount(jax.vmap(lambda key: ms.Temperature(0.5)(logits, key))(keys), length=3) / 4000
    np.testing.assert_allclose(cool, np.array([49, 4, 1]) / 54, atol=0.03)
    cold = jax.vmap(lambda key: ms.Temperature(1e-6)(100 * logits, key))(keys[:50])
    assert not cold.any()  # the limit, without overflow
    assert int(ms.Greedy()(jnp.asarray([1.0, 3.0, 3.0]), keys[0])) == 1


def test_refusals_name_what_is_wrong():
    def refused(message, prompts=None, lengths=None, policy=None, **options):
        prompts = tiny.tokens(4)[None] if prompts is None else prompts
        options = {"budget": 4, "max_new_tokens": 2, **options}
        with pytest.raises(ValueError, match=message):
            generate(CONFIG, policy or ms.TOVA(), params(), prompts, lengths, **options)

    refused(r"prompts has shape \(1, 0\); it must be \[B, T\] with at least one row", np.zeros((1, 0), np.int32))
    refused(r"prompts has shape \(4,\); it must be \[B, T\]", tiny.tokens(4))
    refused("prompts holds the token 99; it must be from 0 to 49", np.full((1, 3), 99))
    refused("prompts has dtype float32; token numbers must be integers", np.ones((1, 3), np.float32))
    refused("prompts holds the token 4294967297; it must be from 0 to 49", np.asarray([[2**32 + 1]]))
    refused("max_new_tokens is 3000000000; it must be at most", max_new_tokens=3 * 10**9)
    refused("lengths is 0; it must be from 1 to 4", lengths=[0])
    refused("lengths is 5; it must be from 1 to 4", lengths=[5])
    refused(r"lengths has shape \(2,\); it must be \[1\], one per prompt", lengths=[1, 2])
    refused("lengths has dtype float32; lengths must be integers", lengths=np.asarray([2.5], np.float32))
    refused("max_new_tokens is 0; it must be a whole number of at least 1", max_new_tokens=0)
    refused("budget is 0; it must be a whole number of at least 1", budget=0)
    refused("stop holds the token 50; it must be from 0 to 49", stop=(50,))
    refused("mode is 'all'; it must be one of stepwise, oneshot", mode="all")
    refused(r"key is missing; Temperature\(temperature=1.0\) draws at random", sampler=ms.Temperature())
    with pytest.raises(ValueError, match="budget has dtype float32; it must be an integer"):
        jax.jit(lambda b: generate(CONFIG, ms.TOVA(), params(), tiny.tokens(4)[None], budget=b, slots=9))(4.7)
    refused(r"key has shape \(3,\); it must be one key or 1", key=jax.random.split(jax.random.key(0), 3))
    refused(
        "budget is 5, but full forgets nothing and must hold 6 tokens",
        policy=ms.Full(),
        budget=5,
    )
    for wrong in (0.0, -1.0, 1e-39, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature is .*; it must be a number from 1e-06"):
            ms.Temperature(wrong)
