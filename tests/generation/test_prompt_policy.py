"""One policy for the prompt, another for what is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms

CONFIG, BUDGET, NEW = tiny.SHALLOW, 6, 5
PROMPTS = np.stack([tiny.tokens(14, seed) for seed in range(2)])
LENGTHS = [14, 9]


def by_hand(before, after, row, mode):
    """The prompt under one policy; what it holds as a state of the other, made by `adopt`; then step by step."""
    params, prompt = tiny.params(config=CONFIG), PROMPTS[row][: LENGTHS[row]]
    state = ms.init_state(CONFIG, before, BUDGET)
    state, logits = ms.prefill(CONFIG, before, params, state, prompt, mode=mode)
    state = ms.adopt(after, ms.compress(before, state), BUDGET, config=CONFIG)
    written = []
    for _ in range(NEW):
        written.append(int(jnp.argmax(logits)))
        state, logits = ms.step(CONFIG, after, params, state, jnp.int32(written[-1]))
    return written, state


PAIRS = [("snapkv:recent=2,kernel=3", "gkv:recent=2,every=3", "oneshot"), ("window:every=5", "h2o", "stepwise")]


@pytest.mark.parametrize(("before", "after", "mode"), [tiny.more(*PAIRS[0]), PAIRS[1]])
def test_the_second_goes_on_with_what_the_first_has_left(before, after, mode):
    first, second = ms.parse_policy(before), ms.parse_policy(after)
    given = {"budget": BUDGET, "max_new_tokens": NEW, "mode": mode, "prompt_policy": first}
    asked = CONFIG, second, tiny.params(config=CONFIG), PROMPTS, LENGTHS
    tokens, _, states = ms.generate(*asked, **given)
    blocks = list(ms.stream(*asked, **given))
    for row in range(2):
        pieces = [block.tokens[row][: block.counts[row]] for block in blocks]
        assert np.concatenate(pieces).tolist() == tokens[row].tolist()
    for row in range(2):
        written, state = by_hand(first, second, row, mode)
        assert tokens[row].tolist() == written
        held = [tiny.sets(layer.positions[row]) for layer in states.layers]
        assert held == [tiny.held(layer) for layer in state.layers]
    assert jax.tree.structure(jax.tree.map(lambda leaf: leaf[0], states)) == jax.tree.structure(state)


def test_a_prompt_that_was_cut_is_kept_as_far_as_it_is_left():
    policy = ms.Random(scope="head", prompt=True)
    params = tiny.params(config=CONFIG)
    state = ms.init_state(CONFIG, ms.TOVA(), [BUDGET])
    state, _ = ms.prefill(CONFIG, ms.TOVA(), params, state, PROMPTS[0])
    state = ms.compress(ms.TOVA(), state, 4)
    kept = tiny.held(state.layers[0])[0]
    state = state.replace(layers=tuple(layer.replace(budget=jnp.int32(BUDGET)) for layer in state.layers))
    state = ms.hand_over(CONFIG, ms.TOVA(), policy, state)
    state, _ = ms.extend(CONFIG, policy, params, state, PROMPTS[1])
    assert all(set(kept) < set(row) for row in tiny.held(state.layers[0]))


def test_what_cannot_be_is_refused():
    params = tiny.params(config=CONFIG)

    def refused(said, policy, **options):
        with pytest.raises(ValueError, match=said):
            ms.generate(CONFIG, policy, params, PROMPTS, LENGTHS, **{"budget": BUDGET, "max_new_tokens": 2, **options})

    refused("tova forgets by layer, but h2o leaves other tokens in every head", ms.TOVA(), prompt_policy=ms.H2O())
    refused("full forgets nothing; leave one of them out", ms.Full(), prompt_policy=ms.TOVA())
    state = ms.init_state(CONFIG, ms.H2O(), BUDGET)
    refused(
        "prompt_policy is .*, but the state has its own", ms.H2O(), budget=None, state=state, prompt_policy=ms.TOVA()
    )
    with pytest.raises(ValueError, match="gkv keeps statistics of rows; adopt must be given the config of the model"):
        ms.adopt(ms.policies.GKV(), state)
    refused("protects 7 sinks", ms.Window(sinks=7), prompt_policy=ms.TOVA())
