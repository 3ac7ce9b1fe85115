"""convert: GGUF files, every tensor in its place and every key accounted for."""

import hashlib
import json
import os

import numpy as np
import pytest
from checkpoints import CONFIG, F, H, K, L, N, gguf_metadata, make_weights, to_gguf, write_gguf
from converted import check_equal, loaded, refusal

from convert import convert as run
from convert.gguf.tensors import readable_kinds
from msrnn_jax.config import Rope

YARN = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_every_gguf_tensor_lands_in_its_place(tmp_path, tied, bias):
    weights = make_weights(tied=tied, bias=bias)
    source = write_gguf(tmp_path / "model.gguf", tensors=to_gguf(weights))
    config, params = loaded(source)
    assert config == CONFIG.replace(tied_embeddings=tied, attention_bias=bias, output_bias=bias, mlp_bias=bias)
    check_equal(params, weights)


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")])
def test_gguf_types_that_are_not_quantised(tmp_path, kind, dtype):
    source = write_gguf(tmp_path / "model.gguf", kind=kind)
    config, params = loaded(source)
    assert config.dtype == dtype
    check_equal(params, make_weights(), dtype)


@pytest.mark.parametrize("kinds", [("F16", "F32"), ("BF16", "F32"), ("BF16", "F16")])
def test_the_widest_type_of_the_matrices_is_taken(tmp_path, kinds):
    source = write_gguf(tmp_path / "model.gguf", kind=kinds[0], kinds={"output.weight": kinds[1]})
    config, params = loaded(source)
    assert config.dtype == "float32"
    check_equal(params, make_weights())


def test_one_quantised_tensor_makes_float32(tmp_path):
    source = write_gguf(tmp_path / "model.gguf", kind="F16", kinds={"token_embd.weight": "Q8_0"})
    run(source, tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["dtype"] == "float32"
    record = json.loads((tmp_path / "ours/source.json").read_text())
    assert record["kind"] == "gguf"
    assert record["files"] == {"model.gguf": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert record["tensor_types"] == {"F16": 1 + 7 * L, "F32": 1 + 2 * L, "Q8_0": 1}


def test_what_gguf_metadata_may_leave_out(tmp_path):
    fields = gguf_metadata(
        vocab_size=None,
        rope__freq_base=None,
        rope__dimension_count=None,
        attention__value_length=None,
        attention__layer_norm_rms_epsilon=1e-6,
    )
    config, _ = loaded(write_gguf(tmp_path / "model.gguf", metadata=fields))
    assert config == CONFIG.replace(norm_eps=1e-6)


def test_numbers_that_are_the_same_for_every_layer(tmp_path):
    alike = {"attention__head_count": [N] * L, "attention__head_count_kv": [K] * L, "feed_forward_length": [F] * L}
    neutral = {"logit_scale": 1.0, "attention__scale": 0.0, "residual_scale": 0.0}
    source = write_gguf(tmp_path / "model.gguf", metadata=gguf_metadata(**alike, **neutral))
    config, _ = loaded(source)
    assert config == CONFIG


def llama3_factors(factor, theta):
    """As in llama.cpp's converter."""
    factors = []
    for frequency in 1.0 / (theta ** (np.arange(0, H, 2, dtype=np.float32) / H)):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognised_by_its_factors(tmp_path, factor):
    factors = llama3_factors(factor, 5e5)
    assert len(set(factors)) > 2  # the blend is among them
    tensors = to_gguf(make_weights()) | {"rope_freqs.weight": factors}
    source = write_gguf(tmp_path / "model.gguf", metadata=gguf_metadata(rope__freq_base=5e5), tensors=tensors)
    assert loaded(source)[0].rope == Rope(5e5, "llama3", factor, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"foo": 3}, "unknown key 'llama.foo' = 3"),
        ({"block_count": None}, "missing key 'llama.block_count'"),
        ({"attention__layer_norm_rms_epsilon": None}, "missing key 'llama.attention.layer_norm_rms_epsilon'"),
        ({"attention__layer_norm_rms_epsilon": 0.0}, "epsilon is 0.0; it must be a number above 0"),
        ({"block_count": 9999}, "block_count is 9999, but there are 30 tensors in all"),
        ({"expert_count": 8}, "llama.expert_count 8 (must be 0)"),
        ({"attention__sliding_window": True}, "llama.attention.sliding_window is True; it must be a number of tokens"),
        ({"attention__sliding_window_pattern": 2}, "unknown key 'llama.attention.sliding_window_pattern' = 2"),
        ({"rope__dimension_count": 8}, "llama.rope.dimension_count 8 (must be 16, the width of a head)"),
        ({"attention__value_length": 8}, "llama.attention.value_length 8 (must be 16, the width of a head)"),
        ({"rope__scaling__type": "longrope"}, "llama.rope.scaling.type 'longrope' (must be one of none, linear, yarn)"),
        ({"rope__scaling__type": "yarn"}, "missing key 'llama.rope.scaling.factor'"),
        ({**YARN, "rope__scaling__original_context_length": 0}, "original_context_length is 0; it must be a positive"),
        ({**YARN, "rope__scaling__yarn_ext_factor": 0.5}, "llama.rope.scaling.yarn_ext_factor 0.5 (must be 1.0)"),
        ({**YARN, "rope__scaling__yarn_beta_fast": "x"}, "yarn_beta_fast is 'x'; it must be a number above 0"),
        ({**YARN, "rope__scaling__yarn_log_multiplier": 1.0}, "multiplier 1.0 (must be 0 in a llama file)"),
        ({"rope__scaling__attn_factor": 2.0}, "llama.rope.scaling.attn_factor 2.0 (must be 1.0)"),
        ({"rope__scaling__type": "linear"}, "missing key 'llama.rope.scaling.factor'"),
        ({"rope__freq_base": -1.0}, "llama.rope.freq_base is -1.0; it must be a number above 0"),
        (
            {"attention__head_count_kv": [2, 2, 1]},
            "head_count_kv is [2, 2, 1]; it must be a positive integer, the same",
        ),
        (
            {"attention__head_count": [N] * (L + 1)},
            "head_count is [8, 8, 8, 8]; it must be a positive integer, the same",
        ),
        ({"logit_scale": 8.0}, "llama.logit_scale 8.0 (must be 1.0)"),
        ({"attention__scale": 0.5}, "llama.attention.scale 0.5 (must be 0.0)"),
        ({"attention__key_length": None}, "llama.rope.dimension_count 16 (must be 8, the width of a head)"),
        ({"attention__head_count_kv": 3}, "Config.num_kv_heads is 3; it must be a divisor of num_heads (8)"),
        ({"embedding_length": 32}, "tensor 'token_embd.weight' has shape [53, 64]; it must be [53, 32]"),
    ],
    ids=repr,
)
def test_what_gguf_metadata_is_refused_for(tmp_path, fields, text):
    source = write_gguf(tmp_path / "model.gguf", metadata=gguf_metadata(**fields))
    assert text in refusal(source, tmp_path / "ours")


def test_another_architecture_is_refused(tmp_path):
    source = write_gguf(tmp_path / "model.gguf", architecture="gemma")
    assert "general.architecture 'gemma' (must be one of llama, mistral3, qwen2, qwen3, smollm3)" in refusal(
        source, tmp_path / "ours"
    )


def test_files_of_another_type_are_refused(tmp_path):
    metadata = {**gguf_metadata(), "general.type": "adapter"}
    source = write_gguf(tmp_path / "model.gguf", metadata=metadata)
    assert "general.type 'adapter' (must be 'model')" in refusal(source, tmp_path / "ours")


def test_all_gguf_problems_are_told_at_once(tmp_path):
    tensors = to_gguf(make_weights())
    del tensors["output_norm.weight"]
    tensors["rope_freqs.weight"] = np.full(H // 2, 3, np.float32)
    tensors["blk.0.foo.weight"] = np.ones((2, 32), np.float32)
    source = write_gguf(
        tmp_path / "model.gguf",
        metadata=gguf_metadata(foo=3),
        tensors=tensors,
        kinds={"blk.1.ffn_up.weight": "I8"},
        tokenizer={"tokenizer.ggml.model": "bert"},
    )
    assert refusal(source, tmp_path / "ours").splitlines() == [
        f"{source} cannot be converted:",
        "  unknown key 'llama.foo' = 3",
        "  tensor 'rope_freqs.weight' is not the scaling of Llama 3 (low 1, high 4, original length 8192)",
        "  tokenizer.ggml.model 'bert' (must be one of gpt2, llama)",
        "  missing tensor 'output_norm.weight'",
        "  unexpected tensor 'blk.0.foo.weight' [2, 32]",
        f"  tensor 'blk.1.ffn_up.weight' has type I8; it must be one of {', '.join(readable_kinds())}",
    ]


@pytest.mark.parametrize("size", [0, 20, 900, -1])
def test_truncated_ggufs_are_named(tmp_path, size):
    source = write_gguf(tmp_path / "model.gguf")
    os.truncate(source, size if size >= 0 else source.stat().st_size + size)
    assert refusal(source, tmp_path / "ours").startswith(f"{source} is not a readable GGUF file: ")
