"""The real SmolLM2-135M gives the numbers that transformers gave, recorded by data/record_smollm2.py."""

import json
import pathlib

import jax
import numpy as np
import pytest
import tiny

import msrnn_jax as ms

pytestmark = pytest.mark.optimised

RECORDED = json.loads((pathlib.Path(__file__).parents[1] / "data" / "smollm2_logits.json").read_text())
RUNS = sorted(RECORDED["runs"])
LONGEST = max(len(run["tokens"]) for run in RECORDED["runs"].values())
# float32 sums in another order, through 30 layers; logits reach 31, and 5e-5 was the largest difference.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def model(smollm2):
    return ms.load(smollm2)


def logits_of(model, policy, tokens):
    """Logits [T, V] by stepping, with room for everything; padded so that all texts share a compilation."""
    config, params = model
    padded = np.pad(np.asarray(tokens, np.int32), (0, LONGEST - len(tokens)))
    state = ms.init_state(config, policy, budget=LONGEST)
    _, (logits, _) = tiny.unroll_jit(config, policy, params, state, padded)
    return np.asarray(logits[: len(tokens)])


@pytest.mark.exhaustive
def test_the_tokenizer_gives_the_recorded_tokens(smollm2):
    tokenizer = ms.load_tokenizer(smollm2)
    assert tokenizer.encode(RECORDED["text"]) == RECORDED["runs"]["text"]["tokens"]
    assert tokenizer.chat(RECORDED["messages"]) == RECORDED["runs"]["chat"]["tokens"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("policy", [ms.Full(), ms.TOVA()], ids=str)
def test_logits_equal_the_recorded_ones(model, policy, name):
    run = RECORDED["runs"][name]
    logits = logits_of(model, policy, run["tokens"])
    chosen = logits[run["positions"]]
    np.testing.assert_array_equal(chosen.argmax(axis=1), run["argmax"])
    np.testing.assert_allclose(chosen[:, RECORDED["watched"]], run["logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(jax.nn.logsumexp(chosen, axis=1), run["logsumexp"], rtol=0, atol=TOLERANCE)
    losses = jax.nn.logsumexp(logits, axis=1)[:-1] - logits[np.arange(len(logits) - 1), run["tokens"][1:]]
    np.testing.assert_allclose(losses.mean(), run["loss"], rtol=0, atol=TOLERANCE)
