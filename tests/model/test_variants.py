"""What the families of LLaMA differ in, by the definition: normed heads, layers without rotation, yarn, biases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from flax import nnx

import msrnn_jax as ms
from msrnn_jax.devices.memory import part_sizes
from msrnn_jax.params import abstract_params
from msrnn_jax.recurrence.rotary import inverse_frequencies, query_scale

T = 30
FLOAT64 = tiny.CONFIG.replace(dtype="float64")
# With theta 500 and a width of 10, pairs turn 6.4, 1.8, 0.53, 0.15 and 0.04 times in 40 tokens.
YARN = ms.Rope(theta=500.0, kind="yarn", factor=4.0, original_length=40, beta_fast=3.0, beta_slow=0.2)
VARIANTS = {
    "normed": {"qk_norm": True},
    "biases of queries, keys and values": {"attention_bias": True},
    "bias of the output": {"output_bias": True},
    "unrotated": {"unrotated_layers": (1,)},
    "unrotated and sliding": {"unrotated_layers": (1,), "sliding_window": 9, "sliding_layers": (1,)},
    "yarn": {"rope": YARN},
    "everything": {
        "qk_norm": True,
        "attention_bias": True,
        "output_bias": True,
        "unrotated_layers": (0,),
        "rope": YARN,
    },
}


def random_params(config):
    """Weights of which none keeps its initial value: norms of one and biases of zero would hide a mistake."""
    random = np.random.default_rng(0)

    def weight(path, leaf):
        name, noise = path[-1].name, random.normal(size=leaf.shape)
        if name.endswith("norm"):
            return (1 + 0.3 * noise).astype(leaf.dtype)
        if name.endswith("bias") or name == "embedding":
            return noise.astype(leaf.dtype)
        fan_in = leaf.size // config.model_dim if name in ("output", "down") else leaf.shape[0]
        gain = 4 if name == "query" else 1  # so that attention is far from uniform
        return (gain * noise * fan_in**-0.5).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(weight, abstract_params(config))


@partial(jax.jit, static_argnames=("mode", "chunk", "budget"))
def both(config, policy, params, tokens, *, mode, chunk, budget=8):
    """Stepping and `extend`, from one state."""
    state = ms.init_state(config, policy, budget, positions=mode)
    return tiny.unroll(config, policy, params, state, tokens), ms.extend(
        config, policy, params, state, tokens, chunk=chunk
    )


def without_specials(params):
    """The weights that every model has."""
    fields = ("query_bias", "key_bias", "value_bias", "output_bias", "query_norm", "key_norm")
    return params.replace(layers=tuple(layer.replace(**dict.fromkeys(fields)) for layer in params.layers))


CASES = [(name, "absolute") for name in VARIANTS]
CASES += [(name, mode) for name in ("unrotated", "yarn") for mode in ("cache", "gap")]
CASES += [("unrotated and sliding", "cache")]


@pytest.mark.parametrize(
    ("name", "mode"),
    tiny.few(CASES, ("unrotated and sliding", "absolute"), ("everything", "absolute"), ("yarn", "gap")),
)
def test_every_variant_is_its_definition(name, mode, x64):
    config, policy = FLOAT64.replace(**VARIANTS[name]), ms.TOVA()
    params, tokens = random_params(config), tiny.tokens(T)
    expected = oracle.run(config, "tova", params, tokens.tolist(), 8, positions=mode)
    logits = np.stack([moment.logits for moment in expected])
    (last, (stepped, _)), (state, extended) = both(config, policy, params, tokens, mode=mode, chunk=7)
    for found, layers in ((stepped, last.layers), (extended, state.layers)):
        np.testing.assert_allclose(found, logits, rtol=0, atol=1e-9)
        assert [tiny.held(layer) for layer in layers] == expected[-1].kept
    if mode == "absolute":  # what is special does make a difference
        plain = oracle.run(FLOAT64, "tova", without_specials(params), tokens.tolist(), 8)
        assert np.abs(np.stack([moment.logits for moment in plain]) - logits).max() > 0.1


def test_the_parallel_transformer_of_all_variants_at_once(x64):
    """Where nothing is forgotten, it is what the step computes."""
    config = FLOAT64.replace(**{**VARIANTS["everything"], "sliding_window": 9, "sliding_layers": (1,)})
    params, tokens = random_params(config), tiny.tokens(T)
    (_, (logits, _)), _ = both(config, ms.Full(), params, tokens, mode="absolute", chunk=T, budget=(T, 8))
    expected = oracle.full_logits(config, params, tokens.tolist())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)


def test_the_cell_has_the_norms_of_heads():
    config = tiny.CONFIG.replace(**{**VARIANTS["everything"], "num_layers": 1})
    params, tokens = jax.tree.map(jnp.asarray, random_params(config)), tiny.tokens(9)
    cell = ms.MultiStateCell(config, ms.TOVA(), params, 6)
    assert cell.layers[0].query_norm.shape == (config.head_dim,)
    logits = nnx.RNN(cell)(jnp.asarray(tokens))
    expected = [moment.logits for moment in oracle.run(config, "tova", params, tokens.tolist(), 6)]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)  # the oracle is in float64


def test_norms_of_heads_count_as_norms():
    plain, normed = (part_sizes(abstract_params(tiny.CONFIG.replace(qk_norm=norm))) for norm in (False, True))
    assert normed["norms"] - plain["norms"] == 2 * tiny.CONFIG.num_layers * tiny.CONFIG.head_dim
    assert normed["attention"] == plain["attention"]


def test_yarn_leaves_fast_pairs_and_divides_slow_ones():
    plain, scaled = (inverse_frequencies(rope, 10) for rope in (ms.Rope(theta=500.0), YARN))
    ratios = plain / scaled
    assert ratios[0] == 1 and ratios[-1] == pytest.approx(4)
    assert any(1.1 < ratio < 3.9 for ratio in ratios)  # and some are blended
    assert list(ratios) == sorted(ratios)


def test_yarn_blends_over_pairs_that_all_turn():
    """As in transformers blending ends with pair H - 1 at most, of which there are H / 2."""
    rope = ms.Rope(theta=2.0, kind="yarn", factor=2.0, original_length=1000, beta_fast=159.0, beta_slow=1.0)
    expected = [1, 2**-0.25 * 13 / 14, 2**-0.5 * 12 / 14, 2**-0.75 * 11 / 14]  # from pair 0 to pair 7 of 4
    np.testing.assert_allclose(inverse_frequencies(rope, 8), expected, rtol=1e-12)


def test_yarn_scales_products_by_the_square_of_its_factor():
    assert query_scale(YARN) == pytest.approx((0.1 * np.log(4) + 1) ** 2)
    assert query_scale(ms.Rope(theta=500.0, kind="yarn", factor=4.0, attention_factor=1.5)) == 2.25
    assert query_scale(ms.Rope(theta=500.0, kind="yarn", factor=0.5)) == 1  # nothing to make up for
    assert query_scale(ms.Rope(attention_factor=1.5)) == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"theta": 1.0}, "Rope.theta is 1.0; it must be more than 1"),
        ({"beta_fast": 0.5}, r"Rope.beta_fast is 0.5; it must be at least beta_slow \(1.0\)"),
        ({"attention_factor": 0.0}, "Rope.attention_factor is 0.0; it must be a positive number or None"),
        ({"truncate": 1}, "Rope.truncate is 1; it must be true or false"),
    ],
    ids=repr,
)
def test_what_yarn_refuses(fields, text):
    with pytest.raises(ValueError, match=text):
        ms.Rope(**{"kind": "yarn", "theta": 500.0, **fields})
