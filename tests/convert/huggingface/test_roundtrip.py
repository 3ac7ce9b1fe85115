"""Ours to Hugging Face and back: the same bits, whatever the model, and a folder that transformers loads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from checkpoints import (
    BYTE_LEVEL,
    huggingface_config,
    make_weights,
    tiny_tokenizer,
    to_huggingface,
    write_gguf,
    write_huggingface,
)
from converted import facts_of, loaded
from typer.testing import CliRunner

import msrnn_jax as ms
from convert import convert
from convert.cli import app
from convert.huggingface.export import export, small_files
from msrnn_jax.checkpoint.identity import fingerprint

BASE = tiny.CONFIG.replace(vocab_size=53, dtype="bfloat16", max_length=64)
YARN = ms.Rope(theta=500.0, kind="yarn", factor=4.0, original_length=16)
LLAMA3 = ms.Rope(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=32)
CONFIGS = {
    "llama": BASE,
    "llama, tied, biases, linear": BASE.replace(
        tied_embeddings=True,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        rope=ms.Rope(kind="linear", factor=8.0),
        norm_eps=1e-6,
    ),
    "llama, llama3": BASE.replace(rope=LLAMA3, dtype="float32"),
    "mistral": BASE.replace(sliding_window=9, dtype="float16"),
    "mistral, wide heads": BASE.replace(model_dim=26),  # no multiple of the heads: nothing for LlamaConfig
    "qwen2": BASE.replace(attention_bias=True, rope=YARN),
    "qwen2, sliding": BASE.replace(attention_bias=True, sliding_window=9, sliding_layers=(1,)),
    "qwen3": BASE.replace(qk_norm=True, tied_embeddings=True),
    "qwen3, biases": BASE.replace(qk_norm=True, attention_bias=True, output_bias=True),
    "smollm3": BASE.replace(unrotated_layers=(1,), tied_embeddings=True),
    "smollm3, biases, sliding": BASE.replace(
        unrotated_layers=(0,),
        mlp_bias=True,
        attention_bias=True,
        output_bias=True,
        sliding_window=9,
        sliding_layers=(0,),
    ),
}


def random_params(config: ms.Config) -> ms.Params:
    """No weight is constant, norms and biases neither."""
    keys = iter(jax.random.split(jax.random.key(1), 200))
    params = ms.init_params(config, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: leaf + (0.1 * jax.random.normal(next(keys), leaf.shape)).astype(leaf.dtype), params
    )


def tensors_of(folder) -> dict[str, np.ndarray]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in safetensors.numpy.load_file(file).items()
    }


SOME = ("llama, tied, biases, linear", "llama, llama3", "qwen2, sliding", "qwen3, biases")


@pytest.fixture(scope="module", params=tiny.few(CONFIGS, *SOME))
def exported(request, tmp_path_factory):
    """A model's name, its params and its export."""
    folder = tmp_path_factory.mktemp("exported")
    config = CONFIGS[request.param]
    params = random_params(config)
    ms.save(folder / "ours", config, params)
    return request.param, params, export(folder / "ours", folder / "theirs")


def test_ours_and_back_is_the_same_model(exported):
    name, params, folder = exported
    config, found = loaded(folder)
    assert config == CONFIGS[name]
    assert fingerprint(config, jax.tree.map(jnp.asarray, found)) == fingerprint(config, params)


def test_transformers_computes_the_same(exported):
    """Of the export, up to float32 rounding; where it scales or slides, beyond the original context."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    name, params, folder = exported
    config, params = CONFIGS[name].replace(dtype="float32"), jax.tree.map(lambda leaf: leaf.astype("float32"), params)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert type(model).__name__.lower().startswith(name.split(",")[0])
    tokens = tiny.tokens(80)
    with torch.no_grad():
        wanted = model(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
    state = ms.init_state(config, ms.Full(), 80)
    _, logits = jax.jit(ms.extend)(config, ms.Full(), params, state, jnp.asarray(tokens))
    np.testing.assert_allclose(logits, wanted, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(("dtype", "tied"), [("bfloat16", True), ("float16", False), ("float64", False)])
def test_theirs_and_back_is_the_same_files(tmp_path, dtype, tied):
    tensors = to_huggingface(make_weights(tied=tied, bias=True))
    fields = huggingface_config(
        tie_word_embeddings=tied, attention_bias=True, mlp_bias=True, torch_dtype=dtype, rms_norm_eps=1e-6
    )
    files = {
        "tokenizer.json": tiny_tokenizer(),
        "tokenizer_config.json": {"eos_token": "<turn>", "bos_token": "<s>"},
        "generation_config.json": {"eos_token_id": [2, 7], "bos_token_id": 1},
        "chat_template.jinja": "{{ messages }} ü",
    }
    source = write_huggingface(tmp_path / "source", config=fields, tensors=tensors, dtype=dtype, files=files, shards=2)
    with jax.enable_x64(dtype == "float64"):
        ours = convert(source, tmp_path / "ours")
        back = export(ours, tmp_path / "back")
        again = convert(back, tmp_path / "again")
    wanted, found = tensors_of(source), tensors_of(back)
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].tobytes() == tensor.tobytes(), name
    written = json.loads((back / "config.json").read_text())
    same = fields.keys() & written.keys() - {"eos_token_id"}
    assert {key: written[key] for key in same} == {key: fields[key] for key in same} and len(same) > 15
    assert written["eos_token_id"] == [2, 7]
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (back / name).read_text() == files[name]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (again / name).read_text() == (ours / name).read_text(), name


def test_shards_hold_no_more_than_asked_for(tmp_path):
    params = random_params(BASE)
    ms.save(tmp_path / "ours", BASE, params)
    folder = export(tmp_path / "ours", tmp_path / "theirs", shard_bytes=4000)
    files = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(files) > 3
    assert [file.name for file in files] == [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
    ]
    for file in files:
        held = safetensors.numpy.load_file(file)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 4000
        assert all(index["weight_map"][name] == file.name for name in held)
    assert index["weight_map"].keys() == tensors_of(folder).keys()
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    found = jax.tree.map(jnp.asarray, loaded(folder)[1])
    assert fingerprint(BASE, found) == fingerprint(BASE, params)


@pytest.mark.exhaustive
def test_the_real_model_from_its_gguf_and_from_safetensors(smollm2, tmp_path):
    """GGUF to ours to safetensors to ours; and the tokenizer with it, as transformers reads it."""
    folder = export(smollm2, tmp_path / "theirs", shard_bytes=10**8)
    assert len(list(folder.glob("*.safetensors"))) > 3
    config, params = ms.load(smollm2)
    again, found = ms.load(convert(folder, tmp_path / "again"))
    assert again == config
    assert fingerprint(config, found) == fingerprint(config, params)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_text() == (smollm2 / name).read_text()
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    ours = ms.load_tokenizer(smollm2)
    messages = [{"role": "user", "content": "Größe, 漢字 and 3.14159?\n"}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert theirs(text)["input_ids"] == ours.chat(messages)
    assert theirs.eos_token_id in ours.stop and theirs.bos_token_id == ours.bos


# What chat templates write.


TEMPLATE = (
    "[{{ bos_token }}{{ bos_token is defined }}]"
    "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}{{ eos_token is defined }}"
)
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hh"}]
BOTH = {"bos_token": "<s>", "eos_token": "<turn>"}


def render(folder):
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    return theirs.apply_chat_template(TURNS, tokenize=False), theirs.apply_chat_template(TURNS)["input_ids"]


@pytest.mark.parametrize(
    ("files", "config", "stop", "wanted"),
    [
        ({"generation_config": {"eos_token_id": [2, 7]}, "tokenizer_config": BOTH}, {}, (2, 7), ("<s>", "<turn>")),
        ({"tokenizer_config": BOTH}, {"eos_token_id": 2, "bos_token_id": 2}, (2, 7), ("<s>", "<turn>")),
        ({"tokenizer_config": {"bos_token": None, "eos_token": "</s>"}}, {}, (2,), (None, "</s>")),
        ({"tokenizer_config": {"bos_token": "", "eos_token": None}}, {}, (2,), ("", None)),
        ({}, {}, (2,), (None, None)),
        ({"special_tokens_map": BOTH, "tokenizer_config": {"eos_token": "</s>"}}, {}, (2, 7), ("<s>", "<turn>")),
        (
            {"special_tokens_map": BOTH, "tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": {}}},
            {},
            (2,),
            (None, "</s>"),
        ),
        (
            {"special_tokens_map": {"bos_token": {"content": "</s>"}}, "tokenizer_config": BOTH},
            {},
            (2, 7),
            ("</s>", "<turn>"),
        ),
        (
            {"tokenizer_config": {"tokenizer_class": "GPT2TokenizerFast", "eos_token": "<turn>"}},
            {},
            (2, 7),
            ("<|endoftext|>", "<turn>"),
        ),
        ({"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}}, {}, (2,), (None, None)),
        ({"tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"}}, {}, (2,), (None, "<|endoftext|>")),
        ({"tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"}}, {"model_type": "mistral"}, (2,), (None, None)),
        (
            {"tokenizer_config": {"bos_token": None, "eos_token": "<turn>"}},
            {"model_type": "qwen2"},
            (2, 7),
            (None, "<turn>"),
        ),
    ],
)
def test_templates_write_the_tokenizers_own_tokens(tmp_path, files, config, stop, wanted):
    """Ours, transformers on the source, and transformers on our export write the same conversation."""
    model = CONFIGS[config.get("model_type", "llama")]
    ms.save(tmp_path / "first", model, random_params(model))
    source = export(tmp_path / "first", tmp_path / "source")
    (source / "generation_config.json").unlink()
    fields = json.loads((source / "config.json").read_text())
    files = {"config": {**fields, "bos_token_id": 1, "eos_token_id": 2, **config}, **files}
    for name, content in files.items():
        (source / f"{name}.json").write_text(json.dumps(content))
    (source / "tokenizer.json").write_text(tiny_tokenizer())
    (source / "chat_template.jinja").write_text(TEMPLATE)
    ours = convert(source, tmp_path / "ours")
    back = export(ours, tmp_path / "back")
    tokenizer = ms.load_tokenizer(ours)
    bos, eos = wanted
    text = f"[{bos or ''}{bos is not None}]hi{eos or ''}hh{eos or ''}{eos is not None}"
    theirs = render(source)
    assert theirs == render(back)
    assert theirs[0] == text
    assert tokenizer.render(TURNS, add_generation_prompt=False) == text
    assert tokenizer.stop == stop
    if not {bos, eos} & {"<|endoftext|>"}:  # which these tokenizers lack
        assert tokenizer.chat(TURNS, add_generation_prompt=False) == theirs[1]
    facts = facts_of(back)
    written = json.loads((ours / "tokenizer_config.json").read_text())
    assert (facts.bos_token_id, facts.eos_token_ids) == (written["bos_token_id"], written["eos_token_ids"])


@pytest.mark.parametrize(
    "ids",
    [
        {"tokenizer.ggml.eot_token_id": 2},
        {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.padding_token_id": 2},
        {"tokenizer.ggml.unknown_token_id": 2, "tokenizer.ggml.padding_token_id": 2**32 - 1},  # of which nothing comes
    ],
    ids=str,
)
def test_templates_of_gguf_files(tmp_path, ids):
    metadata = {**BYTE_LEVEL, "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": TEMPLATE, **ids}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    ours = convert(write_gguf(tmp_path / "model.gguf", tokenizer=metadata), tmp_path / "ours")
    tokenizer = ms.load_tokenizer(ours)
    bos = "<start>" if "tokenizer.ggml.bos_token_id" in metadata else ""
    assert tokenizer.render(TURNS, add_generation_prompt=False) == f"[{bos}{bool(bos)}]hi<end>hh<end>True"
    written = json.loads(small_files(ms.load(ours)[0], ours)["tokenizer_config.json"])
    assert (written["bos_token"], written["eos_token"]) == (bos or None, "<end>")
    others = {"unk_token": "tokenizer.ggml.unknown_token_id", "pad_token": "tokenizer.ggml.padding_token_id"}
    for name, key in others.items():
        assert written[name] == ("<note>" if ids.get(key) == 2 else None)


def test_checkpoints_of_an_earlier_version_write_what_they_did(ours):
    (ours / "tokenizer.json").write_text(tiny_tokenizer())
    (ours / "chat_template.jinja").write_text(TEMPLATE)
    for ids, bos, eos in (((1, [2, 7]), "<s>", "</s>"), ((None, []), "", "")):
        text = json.dumps(dict(zip(("bos_token_id", "eos_token_ids"), ids, strict=True)))
        (ours / "tokenizer_config.json").write_text(text)
        assert ms.load_tokenizer(ours).render(TURNS, add_generation_prompt=False) == f"[{bos}True]hi{eos}hh{eos}True"
        written = json.loads(small_files(BASE, ours)["tokenizer_config.json"])
        assert (written["bos_token"], written["eos_token"]) == (bos, eos)


# What cannot be exported.


def refusal(source, destination, **options) -> str:
    with pytest.raises(ValueError) as caught:
        export(source, destination, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def ours(tmp_path):
    ms.save(tmp_path / "ours", BASE, random_params(BASE))
    return tmp_path / "ours"


def test_a_model_that_transformers_does_not_know(tmp_path):
    config = BASE.replace(qk_norm=True, mlp_bias=True)
    ms.save(tmp_path / "ours", config, random_params(config))
    text = refusal(tmp_path / "ours", tmp_path / "theirs")
    assert text.startswith(
        "no model of transformers (llama, mistral, qwen2, qwen3, smollm3) computes what this one does: "
    )
    assert "mlp_bias=True, qk_norm=True" in text
    assert not (tmp_path / "theirs").exists()


def test_only_earlier_exports_are_replaced(ours, tmp_path):
    path = tmp_path / "theirs"
    export(ours, path)
    assert (
        refusal(ours, path)
        == f"{str(path)!r} exists already; choose another path or overwrite it (--force, overwrite=True)"
    )
    export(ours, path, force=True)
    (path / "notes.txt").write_text("mine")
    assert "is no export of msrnn_jax, so it is not replaced" in refusal(ours, path, force=True)
    assert (path / "notes.txt").read_text() == "mine"
    theirs = write_huggingface(tmp_path / "of somebody else")
    assert "is no export of msrnn_jax, so it is not replaced" in refusal(ours, theirs, force=True)
    assert "is no export of msrnn_jax, so it is not replaced" in refusal(ours, ours, force=True)
    inside = tmp_path / "empty" / "ours"
    ms.save(inside, BASE, random_params(BASE))
    with pytest.raises(ValueError, match="exists and is no export"):
        export(inside, tmp_path / "empty", force=True)
    assert ms.load(ours)[0] == BASE


def test_a_damaged_checkpoint_leaves_nothing(ours, tmp_path):
    for file in (ours / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    text = refusal(ours, tmp_path / "deep" / "theirs")
    assert text.startswith(f"checkpoint {str(ours)!r}: the weights cannot be read: ")
    assert "the index of the weights" in text or "local file" in text  # and which
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ours"]


def test_a_damaged_tokenizer_is_named(ours, tmp_path):
    (ours / "tokenizer.json").write_text("{")
    assert refusal(ours, tmp_path / "theirs").startswith(f"{ours / 'tokenizer.json'} is not a tokenizer: ")
    model = {"type": "BPE", "vocab": {"t1": 0, "t2": 1}, "merges": [["t1", "t2"]]}  # the library panics
    (ours / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(ValueError, match="tokenizer.json' cannot be used"):
        ms.load_tokenizer(ours)
    (ours / "tokenizer.json").write_text(tiny_tokenizer())
    (ours / "tokenizer_config.json").write_text('{"bos_token_id": "one"}')
    assert "tokenizer_config.json" in refusal(ours, tmp_path / "theirs")


def test_a_full_disk_is_told_before_anything_is_written(ours, tmp_path, monkeypatch):
    usage = dataclasses.make_dataclass("Usage", ["free"])(1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    text = refusal(ours, tmp_path / "theirs")
    assert text.startswith(f"{str(tmp_path / 'theirs')!r} needs ") and text.endswith(
        "but 0.977 KiB are free on its disk"
    )

    def work(task, total):
        raise AssertionError(f"{task} was begun")

    with pytest.raises(ValueError, match="are free on its disk"):
        convert(write_huggingface(tmp_path / "source"), tmp_path / "again", meter=work)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ours", "source"]


def test_the_command(ours, tmp_path):
    run = CliRunner().invoke
    found = run(app, ["export", str(ours), str(tmp_path / "theirs"), "--shard-size", "4kB"])
    assert (found.exit_code, found.stdout) == (0, f"{tmp_path / 'theirs'}\n")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 3
    found = run(app, ["export", str(ours), str(tmp_path / "theirs2"), "--shard-size", "many"])
    assert found.exit_code == 2
    assert found.stderr.startswith("error: --shard-size is 'many'; it must be a number of bytes")
    found = run(app, ["import", str(tmp_path / "theirs"), str(tmp_path / "again")])
    assert (found.exit_code, found.stdout) == (0, f"{tmp_path / 'again'}\n")
