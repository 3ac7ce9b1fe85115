"""`extend` is the scan of `step` on real weights too, whose attention is as peaked as attention gets.

Of the model its first fifth is enough for that, and takes a fifth of the time to compile.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.text.documents import default_text

pytestmark = [pytest.mark.optimised, pytest.mark.exhaustive]

REAL, BUDGET = 128, 64


@pytest.fixture(scope="module")
def model(smollm2):
    tokens = ms.load_tokenizer(smollm2).encode(default_text())[:REAL]
    config, params = ms.load(smollm2)
    few = config.num_layers // 5
    return config.replace(num_layers=few), params.replace(layers=params.layers[:few]), jnp.asarray(tokens)


@pytest.mark.parametrize(
    ("policy", "mode"),
    [
        (ms.Full(), "absolute"),
        (ms.Random(), "absolute"),
        (ms.Window(sinks=4), "absolute"),
        (ms.H2O(), "absolute"),
        (ms.TOVA(), "absolute"),
        (ms.TOVA(scope="head"), "absolute"),
        (ms.Window(sinks=4), "cache"),
        (ms.TOVA(), "gap"),
    ],
    ids=str,
)
def test_real_weights_agree_up_to_the_first_near_tie(model, policy, mode):
    config, params, tokens = model
    state = ms.init_state(config, policy, tiny.budget_for(policy, REAL, BUDGET), positions=mode)
    watch = jax.jit(tiny.watch)
    _, expected, seen = jax.device_get(watch(config, policy, params, state, tokens))
    tie = tiny.first_near_tie(tiny.margins(policy, state, seen))
    print(f"{policy}, {mode}: the first near-tie is at step {tie if tie < REAL else None} of {REAL}")
    extend = jax.jit(ms.extend, static_argnames="chunk")
    assert tie > BUDGET  # something was forgotten by then
    for length in (tie, 2 * tie // 3):  # before the first near-tie everything is the same, inside a chunk as well
        after, logits = jax.device_get(
            extend(config, policy, params, state, tokens, length=jnp.int32(length), chunk=64)
        )
        np.testing.assert_allclose(logits[:length], expected[:length], rtol=0, atol=2e-3)
        for layer, (positions, stats) in zip(after.layers, seen, strict=True):
            ours, theirs = layer.positions, positions[length - 1]
            assert tiny.sets(ours) == tiny.sets(theirs)
            for mine, other in zip(jax.tree.leaves(layer.stats), jax.tree.leaves(stats), strict=True):
                mine, other = tiny.by_position(ours, mine, REAL), tiny.by_position(theirs, other[length - 1], REAL)
                np.testing.assert_allclose(mine, other, rtol=1e-4)
