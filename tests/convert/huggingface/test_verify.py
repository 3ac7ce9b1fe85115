"""A converted checkpoint against its source in transformers: what is right passes, and what is damaged does not."""

import dataclasses
import json
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from checkpoints import gguf_metadata, write_gguf

import msrnn_jax as ms
from convert import convert
from convert.gguf import reader as gguf_file
from convert.huggingface import reader as huggingface
from convert.huggingface.export import export

REASON = "needs torch==2.13.0 and transformers: pip install 'msrnn_jax[test,torch]'"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)
from test_huggingface_reader import LLAMA3, SIZES, write_model  # noqa: E402
from test_roundtrip import BASE, random_params  # noqa: E402

from convert.verify import _load_theirs, _their_logits, check_verifiable, verify  # noqa: E402, test_huggingface_reader needs both


def lines_of(source, ours):
    lines = []
    verify(source, ours, report=lines.append)
    return lines


def refusal(source, ours):
    with pytest.raises(ValueError) as caught:
        lines_of(source, ours)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CHANGES = {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("verify") / "source", **CHANGES)


@pytest.fixture(scope="module")
def ours(source):
    return convert(source, source.with_name("ours"))


@pytest.mark.parametrize(
    "dtype, asked",
    [
        ("float32", None),
        ("float32", "bfloat16"),
        ("float32", "float16"),
        ("bfloat16", "float32"),
        ("float64", None),
    ],
)
def test_what_is_right_passes_in_every_dtype(tmp_path, dtype, asked):
    folder = write_model(tmp_path / "source", dtype)
    lines = lines_of(folder, convert(folder, tmp_path / "ours", dtype=asked))
    assert "2 texts of 64 tokens" in lines[0]
    assert "the largest difference of a logit is " in lines[1] and "128 of 128 greedy tokens agree" in lines[1]


def test_texts_are_no_longer_than_the_context(tmp_path):
    folder = write_model(tmp_path / "source", max_position_embeddings=9, tie_word_embeddings=True)
    lines = lines_of(folder, convert(folder, tmp_path / "ours"))
    assert "2 texts of 9 tokens" in lines[0] and "18 of 18" in lines[1]


def test_shards_biases_and_scaled_rotations_pass(tmp_path, source, ours):
    assert len(lines_of(source, ours)) == 2
    sharded = write_model(tmp_path / "source", max_shard_size="30KB", **CHANGES)
    assert len(lines_of(sharded, convert(sharded, tmp_path / "ours"))) == 2


def layer_changed(**changes):
    """Params with some weights of the second layer changed, by field."""

    def change(params):
        layers = list(params.layers)
        layers[1] = layers[1].replace(**{name: f(getattr(layers[1], name)) for name, f in changes.items()})
        return params.replace(layers=tuple(layers))

    return change


def of_heads(change, width=SIZES["head_dim"]):
    """A change of [D, N, H]."""
    return lambda w: change(w.reshape(len(w), -1, width)).reshape(w.shape)


swapped, reversed_ = of_heads(lambda w: w[:, jnp.array([1, 0, *range(2, w.shape[1])])]), of_heads(lambda w: w[:, ::-1])
DAMAGES = {
    "query heads in another order": layer_changed(query=swapped),
    "key heads in another order": layer_changed(key=reversed_, value=reversed_),
    "halves of the rotation swapped": layer_changed(key=of_heads(lambda w: jnp.roll(w, w.shape[2] // 2, axis=2))),
    "a bias left out": layer_changed(key_bias=lambda w: jnp.zeros_like(w)),
    "an output bias left out": layer_changed(output_bias=lambda w: jnp.zeros_like(w)),
    "a norm left out": layer_changed(mlp_norm=lambda w: jnp.ones_like(w)),
    "a weight scaled": layer_changed(gate=lambda w: w * 1.001),
    "weights rounded": layer_changed(down=lambda w: w.astype(jnp.float16).astype(w.dtype)),
    "a weight that is not finite": layer_changed(value=lambda w: w.at[0, 0].set(jnp.nan)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_noticed(tmp_path, source, ours, damage):
    config, params = ms.load(ours)
    ms.save(tmp_path / "damaged", config, DAMAGES[damage](params))
    line = refusal(source, tmp_path / "damaged")
    assert f"{tmp_path}/damaged does not compute what {source} does in transformers" in line
    assert "where rounding explains" in line and "greedy tokens agree" in line


@pytest.mark.parametrize(
    "change",
    [
        {"norm_eps": 1.01e-2},
        {"rope": {"theta": 501.0}},
        {"rope": {"factor": 8.1}},
        {"rope": {"kind": "default", "factor": 1.0}},
    ],
    ids=str,
)
def test_a_damaged_config_is_noticed(tmp_path, source, ours, change):
    config, params = ms.load(ours)
    fields = {name: value for name, value in change.items() if name != "rope"}
    rope = dataclasses.replace(config.rope, **change.get("rope", {}))
    ms.save(tmp_path / "damaged", config.replace(rope=rope, **fields), params)
    assert "does not compute what" in refusal(source, tmp_path / "damaged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sliding_window": None, "sliding_layers": None}, "windows [None, None], there [None, 100]"),
        tiny.more({"sliding_window": 101}, "windows [None, 101], there [None, 100]"),
        tiny.more({"sliding_layers": None}, "windows [100, 100], there [None, 100]"),
        ({"max_length": 256}, "context 256, there 512"),
        ({"rope": ms.Rope(theta=10000.0 * (1 + 1e-4))}, "the frequencies of the rotation differ"),
    ],
    ids=str,
)
def test_settings_that_only_longer_texts_show_are_noticed(tmp_path, change, message):
    config = BASE.replace(dtype="float32", max_length=512, attention_bias=True, sliding_window=100, sliding_layers=(1,))
    params = random_params(config)
    ms.save(tmp_path / "ours", config, params)
    folder = export(tmp_path / "ours", tmp_path / "source")
    assert "128 of 128" in lines_of(folder, tmp_path / "ours")[1]
    ms.save(tmp_path / "damaged", config.replace(**change), params)
    assert refusal(folder, tmp_path / "damaged").endswith(f"does in transformers: {message}")


def test_noise_is_a_last_bit_of_every_weight(source):
    """In both directions alike, and the source's weights are otherwise as they were."""
    model, exact = _load_theirs(source), _load_theirs(source)
    tokens = np.zeros((1, 4), np.int32)
    _, noise = _their_logits(model, "float32", tokens)
    assert noise > 0.0
    for moved, weight in zip(model.parameters(), exact.parameters(), strict=True):
        up, down = (moved == torch.nextafter(weight, torch.tensor(end)) for end in (torch.inf, -torch.inf))
        assert (up | down).all()
        assert 0.3 < up.float().mean() < 0.7


def test_another_model_is_noticed(tmp_path, source):
    folder = write_model(tmp_path / "source", vocab_size=60)
    line = refusal(source, convert(folder, tmp_path / "ours"))
    assert f"is not made of {source}: it has 60 logits, and its source 61" in line


def test_a_source_that_transformers_cannot_load(tmp_path, ours):
    folder = tmp_path / "pickle"
    folder.mkdir()
    torch.save({"x": torch.zeros(3)}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    line = refusal(folder, ours)
    assert line.startswith(f"transformers cannot load {folder}: OSError: ") and "safetensors" in line


def test_names_that_transformers_does_not_know_cannot_be_verified(tmp_path, source, ours):
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    shutil.copytree(source, tmp_path / "wrapped")
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(named, tmp_path / "wrapped/model.safetensors", {"format": "pt"})
    assert "cannot be verified: transformers finds no lm_head.weight in it" in refusal(tmp_path / "wrapped", ours)


def test_code_of_the_source_is_not_run(tmp_path, source, ours):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    fields = json.loads((source / "config.json").read_text()) | {"model_type": "own"}
    fields["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(fields))
    assert "transformers cannot load" in refusal(folder, ours)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["torch", "transformers", "accelerate"])
def test_what_is_missing_is_said_before(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError) as caught:
        check_verifiable(gguf=True)
    assert f"the package '{name}' is needed" in str(caught.value)
    assert str(caught.value).endswith("pip install torch transformers accelerate")


def write_gguf_of(folder, path, **metadata):
    """The same model in a GGUF file, matrices in Q8_0."""
    fields = json.loads((folder / "config.json").read_text())
    heads = {"query": fields["num_attention_heads"], "key": fields["num_key_value_heads"]}
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors = {}
    for layer in range(fields["num_hidden_layers"]):
        for field, name in huggingface.NAMES.items():
            tensor = stored.get(name.format(layer=layer))
            if tensor is None:
                continue
            if field in heads:  # neighbours are rotated there, halves here
                tensor = tensor.reshape(heads[field], 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
            tensors[gguf_file.NAMES[field].format(layer=layer)] = tensor
    sizes = {
        "block_count": fields["num_hidden_layers"],
        "embedding_length": fields["hidden_size"],
        "feed_forward_length": fields["intermediate_size"],
        "attention__head_count": fields["num_attention_heads"],
        "attention__head_count_kv": fields["num_key_value_heads"],
        "attention__layer_norm_rms_epsilon": fields["rms_norm_eps"],
        "vocab_size": fields["vocab_size"],
        **dict.fromkeys(
            ("attention__key_length", "attention__value_length", "rope__dimension_count"), fields["head_dim"]
        ),
    }
    return write_gguf(path, metadata=gguf_metadata(**sizes, **metadata), tensors=tensors, kind="Q8_0")


BLOCKS = {  # transformers wants whole heads in the width, Q8_0 rows of 32
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 96,
}


def test_gguf_files(tmp_path, capfd):
    pytest.importorskip("accelerate", reason="needs accelerate: pip install 'msrnn_jax[test,torch]'")
    folder = write_model(tmp_path / "source", **BLOCKS)
    file = write_gguf_of(folder, tmp_path / "tiny.gguf")
    capfd.readouterr()
    ours = convert(file, tmp_path / "ours")
    assert "128 of 128 greedy tokens agree" in lines_of(file, ours)[1]
    assert capfd.readouterr().err == ""
    config, params = ms.load(ours)
    ms.save(tmp_path / "damaged", config, layer_changed(query=of_heads(lambda w: w[:, ::-1], config.head_dim))(params))
    assert "does not compute what" in refusal(file, tmp_path / "damaged")
    scaling = {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}
    file = write_gguf_of(folder, tmp_path / "scaled.gguf", attention__sliding_window=100, **scaling)
    line = refusal(file, convert(file, tmp_path / "scaled"))
    assert "transformers reads no rope scaling (linear) and no sliding window of GGUF files" in line
