"""convert: the same weights under other names are read where it is plain what they are, and else refused in a line."""

import json

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import CONFIG, huggingface_config, make_weights, to_huggingface, write_huggingface
from converted import check_equal, loaded, refusal

REASON = "needs torch==2.13.0 and transformers: pip install 'msrnn_jax[test,torch]'"
TIED = huggingface_config(tie_word_embeddings=True)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: name.replace(".layers.0.", ".layers.0._orig_mod."),  # one layer compiled by itself
        lambda name: f"_fsdp_wrapped_module.{name}".replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
        lambda name: name.removeprefix("model."),
        lambda name: f"module.{name.removeprefix('model.')}",
    ],
    ids=["compile", "parallel", "a-layer", "fsdp", "inner", "parallel-inner"],
)
def test_the_names_of_a_model_saved_from_inside_a_wrapper(tmp_path, rename):
    named = {**to_huggingface(make_weights()), "model.rotary_emb.inv_freq": np.ones(8, np.float32)}
    tensors = {rename(name): tensor for name, tensor in named.items()}
    assert tensors.keys() != named.keys()
    config, params = loaded(write_huggingface(tmp_path / "source", tensors=tensors, shards=2))
    assert config == CONFIG
    check_equal(params, make_weights())


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_one_of_two_tied_matrices_is_enough(tmp_path, name, bare):
    weights = make_weights(tied=True)
    tensors = to_huggingface(weights)
    tensors[name] = tensors.pop("model.embed_tokens.weight")
    if bare:
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    config, params = loaded(write_huggingface(tmp_path / "source", config=TIED, tensors=tensors))
    assert config.tied_embeddings
    check_equal(params, weights)


def test_a_model_without_its_unembedding_lacks_just_that(tmp_path):
    tensors = {name.removeprefix("model."): tensor for name, tensor in to_huggingface(make_weights(tied=True)).items()}
    source = write_huggingface(tmp_path / "source", tensors=tensors)
    assert refusal(source, tmp_path / "ours").splitlines()[1:] == ["  missing tensor 'lm_head.weight'"]


def test_what_transformers_and_torch_really_write(tmp_path):
    torch = pytest.importorskip("torch", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TIED))
    expected = {name: tensor.numpy() for name, tensor in model.model.state_dict().items()}
    model.model.save_pretrained(tmp_path / "inner")
    with safetensors.safe_open(tmp_path / "inner/model.safetensors", "numpy") as file:
        assert "embed_tokens.weight" in file.keys()  # noqa: SIM118, it is no dict
    parallel = {name: tensor.numpy() for name, tensor in torch.nn.DataParallel(model).state_dict().items()}
    assert all(name.startswith("module.") for name in parallel)
    write_huggingface(tmp_path / "parallel", config=TIED, tensors=parallel)
    for folder in ("inner", "parallel"):
        _, params = loaded(tmp_path / folder)
        np.testing.assert_array_equal(params.embedding, expected["embed_tokens.weight"])
        np.testing.assert_array_equal(params.layers[2].down.T, expected["layers.2.mlp.down_proj.weight"])


def test_two_tensors_of_one_name_are_refused_and_nothing_else_is_said(tmp_path):
    tensors = to_huggingface(make_weights())
    tensors["module.model.norm.weight"] = tensors["model.norm.weight"] + 1
    lines = refusal(write_huggingface(tmp_path / "source", tensors=tensors), tmp_path / "ours").splitlines()[1:]
    assert lines == ["  tensors 'model.norm.weight' and 'module.model.norm.weight' are both 'model.norm.weight'"]


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    source = write_huggingface(tmp_path / "source", shards=2)
    first, second = sorted(source.glob("*.safetensors"))
    held = safetensors.numpy.load_file(first)
    name = next(iter(held))
    safetensors.numpy.save_file({**safetensors.numpy.load_file(second), name: held[name] + 1}, second)
    lines = refusal(source, tmp_path / "ours").splitlines()[1:]
    assert lines == [f"  tensor {name!r} is in {first.name} and in {second.name}"]


def test_another_models_tensors_are_refused_in_one_line(tmp_path):
    tensors = {f"transformer.h.{number}.weight": np.ones((2, 2), np.float32) for number in range(30)}
    lines = refusal(write_huggingface(tmp_path / "source", tensors=tensors), tmp_path / "ours").splitlines()[1:]
    assert (
        len(lines) == 1 and "none of the 30 tensors is of a model of this family: 'transformer.h.0.weight'" in lines[0]
    )


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_refused_with_what_to_do(tmp_path, whole):
    source = write_huggingface(tmp_path / "source") if whole else tmp_path / "source"
    source.mkdir(exist_ok=True)
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((2, 64), np.float32)}
    safetensors.numpy.save_file(lora, source / "adapter_model.safetensors")
    (source / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/model"}))
    text = refusal(source, tmp_path / "ours")
    assert text.startswith(
        f"{source} holds a low-rank adapter, adapter_model.safetensors; merge it into its model first"
    )


def test_adapters_among_the_weights_are_refused_in_one_line(tmp_path):
    tensors = {f"base_model.model.{name}": tensor for name, tensor in to_huggingface(make_weights()).items()}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    tensors[name] = np.ones((2, 64), np.float32)
    lines = refusal(write_huggingface(tmp_path / "source", tensors=tensors), tmp_path / "ours").splitlines()[1:]
    assert len(lines) == 1 and f"tensor {name!r} is one of 1 of a low-rank adapter; merge it" in lines[0]
