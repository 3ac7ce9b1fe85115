"""Programs for GPU and TPU at the sizes of real models, lowered here without either and without weights."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax import export

import msrnn_jax as ms
from experiments.common.shapes import SHAPES
from experiments.compiled import targets
from msrnn_jax.params import abstract_params
from msrnn_jax.recurrence.kernel_choice import SWITCH

PLATFORMS = ("cuda", "tpu")
BUDGET, READ = 512, 1024

LAYERS = 2  # of most cases: layers are alike, and every one of a model's 32 or 80 is traced and lowered anew

# The paper's policy on both models in both modes, the others where they differ most: forgetting by head, the
# closed form, StreamingLLM.
CASES = [
    *[(shape, ms.TOVA(), mode) for shape in ("llama-2-7b", "llama-3-70b") for mode in ("absolute", "cache")],
    ("llama-2-7b", ms.Window(sinks=4), "absolute"),
    ("llama-2-7b", ms.Window(sinks=4), "cache"),
    ("llama-3-70b", ms.H2O(), "absolute"),
    ("llama-2-7b", ms.H2O(), "cache"),
    ("llama-3-70b", ms.TOVA(), "gap"),
]


def integers(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@cache
def arguments(shape, policy, mode, layers=LAYERS):
    """Config, policy, weights and an empty state, all without memory; no number of layers takes the model's."""
    config = SHAPES[shape] if layers is None else SHAPES[shape].replace(num_layers=layers)
    state = jax.eval_shape(partial(ms.init_state, config, policy, BUDGET, positions=mode))
    return config, policy, abstract_params(config), state


def described(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch):
    """A program for several platforms at once can have none: JAX lowers what is for one of them for all."""
    monkeypatch.setenv(SWITCH, "off")


def check(function, *args):
    """Exports for all platforms at once, and returns the results' shapes and dtypes as a tree."""
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    assert "callback" not in text  # the host is not asked anything
    assert "tensor<?" not in text and not re.search(r"tensor<[0-9x]*\?", text)  # every shape is known
    # Nothing is left to a kernel that one of the platforms may lack.
    assert set(re.findall(r"custom_call @([\w.]+)", text)) <= {"Sharding"}
    return jax.tree.unflatten(exported.out_tree, exported.out_avals)


@pytest.mark.parametrize(
    ("shape", "policy", "mode", "layers"),
    tiny.few([(*CASES[0], None), *((*case, LAYERS) for case in CASES[1:])], (*CASES[1], LAYERS), (*CASES[-1], LAYERS)),
    ids=str,
)
def test_step_and_extend_are_exported(shape, policy, mode, layers):
    config, _, _, state = args = arguments(shape, policy, mode, layers)
    assert len(state.layers) == (layers or 32)
    heads = 1 if policy.scope == "layer" else config.num_kv_heads
    assert state.layers[0].keys.shape == (config.num_kv_heads, BUDGET + 1, config.head_dim)
    assert state.layers[-1].positions.shape == (heads, BUDGET + 1)
    for function, tokens in [(ms.step, integers()), (ms.extend, integers(READ))]:
        after, logits = check(function, *args, tokens)
        assert (logits.shape, logits.dtype) == ((*tokens.shape, config.vocab_size), jnp.float32)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert described(after) == described(state)


@pytest.mark.parametrize(("shape", "policy", "mode"), tiny.few(CASES[1:3], CASES[1]), ids=str)
def test_generate_is_exported(shape, policy, mode):
    """A batch of prompts, each with its length."""
    config, policy, params, state = arguments(shape, policy, mode)
    rows, new = 2, 64

    def answer(config, policy, params, prompts, lengths):
        options = {"budget": BUDGET, "max_new_tokens": new, "stop": (2,), "positions": mode}
        return ms.generate(config, policy, params, prompts, lengths, **options)

    tokens, lengths, states = check(answer, config, policy, params, integers(rows, READ), integers(rows))
    assert (tokens.shape, tokens.dtype) == ((rows, new), jnp.int32)
    assert (lengths.shape, lengths.dtype) == ((rows,), jnp.int32)
    assert described(states) == [((rows, *shape), dtype) for shape, dtype in described(state)]


@pytest.mark.parametrize(
    ("platform", "target", "kernel"), [("tpu", "v5e", "tpu_custom_call"), ("cuda", "h100", "__gpu$xla.gpu.triton")]
)
def test_a_program_for_one_platform_has_our_kernel(platform, target, kernel, monkeypatch):
    """One a layer, and it is lowered without a device, too."""
    monkeypatch.setenv(SWITCH, "on")
    args = (*arguments("llama-3-70b", ms.H2O(), "absolute"), integers(READ))
    # Another function each time: JAX would find what it has traced with the switch off.
    checks = [export.DisabledSafetyCheck.custom_call(kernel)]  # JAX promises nothing of Triton's programs of tomorrow
    program = jax.jit(lambda *args: ms.extend(*args))
    with targets.described(target):
        text = export.export(program, platforms=[platform], disabled_checks=checks)(*args).mlir_module()
    assert re.findall(r"custom_call @([\w.$]+)", text).count(kernel) == LAYERS
    assert re.search(r"custom_call @[\w.$]+", text.replace(kernel, "")) is None


@pytest.mark.exhaustive
def test_the_shapes_are_those_of_the_models(smollm2):
    """By their numbers of weights, as published; and our own checkpoint's config."""
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
        for name, config in SHAPES.items()
        if name != "tiny"
    }
    assert counts == {
        "llama-2-7b": 6_738_415_616,
        "llama-3-8b": 8_030_261_248,
        "llama-3-70b": 70_553_706_496,
        "smollm2-135m": 134_515_008,
    }
    config, _ = ms.load(smollm2)
    assert SHAPES["smollm2-135m"] == config
    assert {SHAPES[name].dtype for name in ("llama-2-7b", "llama-3-70b")} == {"bfloat16"}
