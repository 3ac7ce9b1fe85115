"""The Flax cell: the same numbers as the step, and weights that every Flax tool reaches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

import msrnn_jax as ms

pytestmark = pytest.mark.optimised

UNTIED = tiny.CONFIG
BIASED = tiny.CONFIG.replace(tied_embeddings=True, attention_bias=True, output_bias=True, mlp_bias=True)


def make(policy, config=UNTIED, budget=6):
    return ms.MultiStateCell(config, policy, tiny.params(config=config), budget)


@nnx.jit
def run(cell, tokens):
    """The last carry, and the outputs."""
    return nnx.RNN(cell, return_carry=True)(tokens)


@pytest.mark.parametrize(
    ("policy", "config"),
    tiny.few(itertools.product([ms.TOVA(), ms.H2O(), ms.Window(sinks=1)], [UNTIED, BIASED]), (ms.H2O(), BIASED)),
    ids=lambda value: {UNTIED: "untied", BIASED: "tied and biased"}.get(value, str(value)),
)
def test_rnn_equals_the_step(policy, config):
    """Bit by bit on [T]; a batch [B, T] multiplies in other shapes, so up to rounding there."""
    cell, tokens = make(policy, config), jnp.asarray(tiny.tokens(24))
    state = ms.init_state(config, policy, 6)
    last, (logits, _) = jax.jit(tiny.unroll)(config, policy, tiny.params(config=config), state, tokens)
    carry, outputs = run(cell, tokens)
    np.testing.assert_array_equal(outputs, logits)
    jax.tree.map(np.testing.assert_array_equal, carry, last)
    rows = jnp.stack([tokens, tokens[::-1]])
    batched = nnx.RNN(cell)(rows)
    assert batched.shape == (2, 24, config.vocab_size)
    np.testing.assert_allclose(batched[0], logits, atol=2e-5)
    np.testing.assert_allclose(batched[1], run(cell, rows[1])[1], atol=2e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("config", [tiny.more(UNTIED), BIASED], ids=["untied", "tied and biased"])
def test_one_optimizer_step_changes_every_weight(config):
    cell, tokens = make(ms.TOVA(), config), jnp.asarray(tiny.tokens(30))
    optimizer = nnx.Optimizer(cell, optax.adam(1e-3), wrt=nnx.Param)
    before = jax.tree.map(jnp.copy, cell.params)

    @nnx.jit
    def train(cell, optimizer):
        def loss(cell):
            logits = nnx.RNN(cell)(tokens[:-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:]).mean()

        value, gradient = nnx.value_and_grad(loss)(cell)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of an int32
            optimizer.update(cell, gradient)
        return value

    first, second = train(cell, optimizer), train(cell, optimizer)
    assert second < first
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), before, cell.params)
    assert all(jax.tree.leaves(changed)), changed
    assert len(jax.tree.leaves(nnx.state(cell, nnx.Param))) == len(jax.tree.leaves(before))


def test_params_go_in_and_out_without_a_copy():
    params = tiny.params(config=BIASED)
    cell = ms.MultiStateCell(BIASED, ms.TOVA(), params, 6)
    given, returned = jax.tree.leaves(params), jax.tree.leaves(cell.params)
    assert jax.tree.structure(params) == jax.tree.structure(cell.params)
    pointers = [[leaf.unsafe_buffer_pointer() for leaf in leaves] for leaves in (given, returned)]
    assert pointers[0] == pointers[1]


def test_every_weight_has_sharding_names():
    for param in jax.tree.leaves(nnx.state(make(ms.TOVA()), nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        names = param.get_metadata("out_sharding")
        assert len(names) == param[...].ndim
    layer = make(ms.TOVA()).layers[0]
    assert layer.query.get_metadata("out_sharding") == ("embed", "heads")
    assert layer.down.get_metadata("out_sharding") == ("mlp", "embed")


def test_a_replaced_layer_is_the_one_that_runs():
    """Whoever wraps a layer, as LoRA does, must see its calls."""

    class Louder(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, policy, layer, x, context):
            layer, x = self.inner(policy, layer, x, context)
            return layer, 3 * x

    cell, tokens = make(ms.TOVA()), jnp.asarray(tiny.tokens(5))
    plain = nnx.RNN(cell)(tokens)
    cell.layers[1] = Louder(cell.layers[1])
    np.testing.assert_allclose(nnx.RNN(cell)(tokens), plain, atol=1e-5)  # a final norm undoes the factor
    cell.layers[0] = Louder(cell.layers[0])
    assert np.abs(np.asarray(nnx.RNN(cell)(tokens) - plain)).max() > 0.1


class Learned(ms.Policy):
    """A scorer with a weight of its own."""

    weight: jax.Array

    def score(self, layer, t):
        return (layer.keys @ self.weight).mean(axis=0)[None]


def test_a_policy_with_arrays_is_one_of_the_weights():
    """They stand in the cell once, as a Param, and what is set there is what runs."""
    cell, tokens = make(Learned(weight=jnp.ones(10))), jnp.asarray(tiny.tokens(20))
    leaves = jax.tree.leaves(nnx.state(cell, nnx.Param))
    assert len(leaves) == len(jax.tree.leaves(tiny.params())) + 1 == len(jax.tree.leaves(nnx.state(cell)))
    _, first = run(cell, tokens)
    nnx.update(cell, jax.tree.map(lambda leaf: -leaf if leaf.shape == (10,) else leaf, nnx.state(cell, nnx.Param)))
    np.testing.assert_array_equal(cell.policy.weight, -np.ones(10))
    state = ms.init_state(UNTIED, Learned(weight=-jnp.ones(10)), 6)
    _, (expected, _) = tiny.unroll_jit(UNTIED, Learned(weight=-jnp.ones(10)), tiny.params(), state, tokens)
    np.testing.assert_allclose(run(cell, tokens)[1], expected, atol=1e-5)
    assert np.abs(np.asarray(first - expected)).max() > 1e-3


def test_a_carry_goes_only_with_its_scope():
    wrong = ms.init_state(UNTIED, ms.H2O(), 6)
    with pytest.raises(ValueError, match="3 rows of slots, but tova forgets by layer, which takes 1"):
        nnx.RNN(make(ms.TOVA()))(jnp.asarray(tiny.tokens(5)), initial_carry=wrong)


@pytest.mark.parametrize("budget", [np.int64(6), np.asarray([6, 4]), [6, np.int32(4)]], ids=repr)
def test_a_budget_may_be_any_integer(budget):
    carry = make(ms.TOVA(), budget=budget).initialize_carry((2,))
    assert carry.layers[0].budget.tolist() == [6, 6]


def test_bad_settings_are_refused_when_the_cell_is_made():
    with pytest.raises(ValueError, match="budget is 0"):
        make(ms.TOVA(), budget=0)
    with pytest.raises(ValueError, match="budget is 3, but window:sinks=4 protects"):
        make(ms.Window(sinks=4), budget=3)
