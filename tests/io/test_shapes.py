"""States and weights are shown in a line, whatever their leaves are."""

import jax
import jax.numpy as jnp
import tiny

import msrnn_jax as ms


def test_a_state_shows_shapes_and_what_it_has_seen():
    state = ms.init_state(tiny.CONFIG, ms.H2O(), 4, positions="cache")
    state, _ = ms.step(tiny.CONFIG, ms.H2O(), tiny.params(), state, jnp.int32(3))
    layer = (
        "LayerState(keys=float32[3,5,10], values=float32[3,5,10], positions=int32[3,5], stats=float32[3,5], budget=4)"
    )
    assert repr(state) == f"MultiState(layers=2 x {layer}, t=1, mode='cache')"


def test_layers_that_differ_are_shown_one_by_one():
    state = ms.init_state(tiny.CONFIG, ms.TOVA(), [4, 6])
    assert "budget=4" in repr(state) and "budget=6" in repr(state)


def test_weights_show_no_numbers():
    text = repr(ms.attach_adapters(tiny.CONFIG, tiny.params(), ms.init_adapters(tiny.CONFIG, 2, jax.random.key(0))))
    assert text.startswith("Params(embedding=float32[50,24], layers=2 x LayerParams(") and len(text) < 600
    assert "query=float32[24,60]" in text and "bias" not in text


def test_leaves_need_not_be_arrays_of_numbers():
    state = ms.init_state(tiny.CONFIG, ms.TOVA(), 4)
    seen = []
    jax.jit(lambda state: seen.append(repr(state)) or state.t)(state)
    assert "t=int32[]" in seen[0]
    assert "keys=float32[3,5,10]" in repr(jax.eval_shape(lambda: state))
    assert "keys=None" not in repr(jax.tree.map(lambda leaf: None, state))
    assert "'x'" in repr(jax.tree.map(lambda leaf: "x", state))
    assert "int32[2]" in repr(
        jax.vmap(lambda budget: ms.init_state(tiny.CONFIG, ms.TOVA(), budget, slots=5))(jnp.arange(2) + 1)
    )
