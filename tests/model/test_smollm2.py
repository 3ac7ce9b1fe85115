"""What must hold on real weights: toy models have no attention sinks and hide the failures that matter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeping import sweep

import msrnn_jax as ms
from msrnn_jax.evaluation.segments import segment
from msrnn_jax.text.documents import default_text

pytestmark = [pytest.mark.optimised, pytest.mark.exhaustive]

SIZE = 256  # tokens of a segment


@pytest.fixture(scope="module")
def model(smollm2):
    return ms.load(smollm2)


@pytest.fixture(scope="module")
def segments(smollm2):
    tokens = ms.load_tokenizer(smollm2).encode(default_text())
    return segment(tokens[: 4 * SIZE], SIZE)


@pytest.fixture(scope="module")
def measured(model, segments):
    """Perplexity by (policy, budget), each policy compiled once."""
    config, params = model
    found = {}
    for text, budgets in [
        ("full", (SIZE - 1,)),
        ("window", (64, 128)),
        ("window:sinks=4", (64, 128)),
        ("h2o", (64, 128)),
        ("tova", (32, 64, 128, SIZE - 1)),
        ("random", (64,)),
    ]:
        for budget, result in zip(budgets, sweep(config, ms.parse_policy(text), params, *segments, budgets)):  # noqa: B905
            found[text, budget] = result.perplexity
    return found


def test_the_window_collapses_without_sinks(measured):
    """The paper's Table 3 in small: dropping the first tokens is what ruins a window."""
    full = measured["full", SIZE - 1]
    assert 8 < full < 30  # a working model, on technical English
    for budget in (64, 128):
        assert measured["window", budget] > 1.4 * measured["window:sinks=4", budget]
        assert measured["window:sinks=4", budget] < 1.4 * full
    assert measured["random", 64] > measured["window", 64]


def test_the_scored_policies_stay_near_full_attention(measured):
    full = measured["full", SIZE - 1]
    for policy in ("tova", "h2o"):
        assert full < measured[policy, 128] < measured[policy, 64] < 1.35 * full
        assert measured[policy, 128] < 1.1 * full
        assert measured[policy, 64] < measured["window:sinks=4", 64]
    assert measured["tova", 64] < measured["tova", 32]


def test_a_budget_that_holds_everything_is_full_attention(measured):
    np.testing.assert_allclose(measured["tova", SIZE - 1], measured["full", SIZE - 1], rtol=1e-5)


def test_a_decoding_step_updates_the_state_in_place(model):
    """XLA's own count: the donated state is aliased, and temporaries stay below one layer's slots and the logits."""
    config, params = model
    for policy in (ms.TOVA(), ms.H2O(), ms.Window(sinks=4)):
        state = jax.eval_shape(partial(ms.init_state, config, policy, 512))
        step = jax.jit(ms.step, donate_argnames="state")
        analysis = step.lower(config, policy, params, state, jnp.int32(0)).compile().memory_analysis()
        layer = state.layers[0]
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        slots = 4 * (layer.keys.size + layer.values.size)
        assert analysis.alias_size_in_bytes >= size
        assert analysis.temp_size_in_bytes < slots + 4 * config.vocab_size


def test_a_ragged_chat_batch_answers_like_each_row_alone(model, smollm2):
    config, params = model
    tokenizer = ms.load_tokenizer(smollm2)
    questions = ["What is the capital of France?", "Name three colours that a ripe apple can have."]
    prompts = [tokenizer.chat([{"role": "user", "content": question}]) for question in questions]
    padded = np.zeros((2, max(map(len, prompts))), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    options = {"budget": 32, "max_new_tokens": 12, "stop": tokenizer.stop}
    together, lengths, _ = ms.generate(config, ms.TOVA(), params, padded, [len(p) for p in prompts], **options)
    for row, prompt in enumerate(prompts):
        alone, length, _ = ms.generate(config, ms.TOVA(), params, np.asarray([prompt]), **options)
        assert together[row, : lengths[row]].tolist() == alone[0, : length[0]].tolist()
    assert "Paris" in tokenizer.decode(together[0, : lengths[0]])
