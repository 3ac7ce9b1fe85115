"""Checkpoints on disk: whole or not at all, and nothing read from outside."""

import json
import os
import pathlib
import subprocess
import sys

import compilations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.checkpoint.identity import fingerprint

TIED = tiny.CONFIG.replace(tied_embeddings=True, attention_bias=True)


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    ms.save(tmp_path / "model", tiny.CONFIG, tiny.params(), files={"note.txt": "é"})
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("config", [tiny.CONFIG, TIED], ids=["untied", "tied and biased"])
def test_there_and_back(tmp_path, config, dtype):
    config, params = config.replace(dtype=dtype), tiny.params(dtype, config=config)
    ms.save(tmp_path / "deep" / "model", config, params)
    loaded_config, loaded = ms.load(tmp_path / "deep" / "model")
    assert loaded_config == config
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {dtype}


def test_loading_casts_on_request(saved):
    config, params = ms.load(saved, dtype="bfloat16")
    assert config == tiny.CONFIG.replace(dtype="bfloat16")
    jax.tree.map(lambda ours, full: np.testing.assert_array_equal(ours, full.astype("bfloat16")), params, tiny.params())


def test_a_loop_over_loaded_weights_compiles_once(saved):
    config, params = ms.load(saved)
    step, state = jax.jit(ms.step), ms.init_state(tiny.CONFIG, ms.TOVA(), 4)
    state, _ = step(config, ms.TOVA(), params, state, jnp.int32(1))
    with compilations.count() as compiled:
        state, _ = step(config, ms.TOVA(), params, state, jnp.int32(2))
        step(config, ms.TOVA(), params, state, jnp.int32(3))
    assert compiled() == 0


def test_float64_needs_x64(saved, x64):
    config, params = ms.load(saved, dtype="float64")
    assert config.dtype == "float64" and params.embedding.dtype == jnp.float64
    with jax.enable_x64(False), pytest.raises(ValueError, match="dtype is 'float64'; JAX holds it only with"):
        ms.load(saved, dtype="float64")


def test_an_existing_path_is_refused_or_replaced_whole(saved):
    other = tiny.params(seed=1)
    with pytest.raises(ValueError, match="model' exists already; choose another path or overwrite it \\(--force"):
        ms.save(saved, tiny.CONFIG, other)
    np.testing.assert_array_equal(ms.load(saved)[1].embedding, tiny.params().embedding)
    ms.save(saved, tiny.CONFIG, other, overwrite=True)
    np.testing.assert_array_equal(ms.load(saved)[1].embedding, other.embedding)
    assert not (saved / "note.txt").exists() and os.listdir(saved.parent) == ["model"]


@pytest.mark.parametrize("moment", ["weights", "texts", "rename"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_save_leaves_no_trace(tmp_path, monkeypatch, moment, overwrite):
    path = tmp_path / "model"
    if overwrite:
        ms.save(path, tiny.CONFIG, tiny.params())

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    if moment == "weights":
        import orbax.checkpoint

        monkeypatch.setattr(orbax.checkpoint.Checkpointer, "save", interrupt)
    elif moment == "texts":
        monkeypatch.setattr(pathlib.Path, "write_text", interrupt)
    else:
        rename = pathlib.Path.rename

        def once(self, target):  # the new folder's own move fails; moving the old one away and back works
            return interrupt() if self.name == "new" else rename(self, target)

        monkeypatch.setattr(pathlib.Path, "rename", once)
    with pytest.raises(KeyboardInterrupt):
        ms.save(path, tiny.CONFIG, tiny.params(seed=1), overwrite=overwrite)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == (["model"] if overwrite else [])
    if overwrite:
        np.testing.assert_array_equal(ms.load(path)[1].embedding, tiny.params().embedding)


def test_nothing_but_a_checkpoint_is_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    for name in ("thesis", "file", "link"):
        with pytest.raises(
            ValueError, match=f"{name}' exists and is no checkpoint of msrnn_jax, so it is not replaced"
        ):
            ms.save(tmp_path / name, tiny.CONFIG, tiny.params(), overwrite=True)
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    ms.save(tmp_path / "empty", tiny.CONFIG, tiny.params(), overwrite=True)
    assert ms.load(tmp_path / "empty")[0] == tiny.CONFIG


def refused(message, call, *args, **options):
    with pytest.raises(ValueError) as raised:
        call(*args, **options)
    assert message in str(raised.value)


def test_what_does_not_fit_is_refused(tmp_path):
    params = tiny.params()
    refused("params do not have the weights that the config describes", ms.save, tmp_path / "a", TIED, params)
    wrong = params.replace(final_norm=jnp.ones(23), embedding=params.embedding.astype("bfloat16"))
    refused(
        "params do not fit the config: .embedding is bfloat16[50, 24]; it must be float32[50, 24]; "
        ".final_norm is float32[23]; it must be float32[24]",
        ms.save,
        tmp_path / "a",
        tiny.CONFIG,
        wrong,
    )
    refused(
        "file name '../note.txt' must be a plain name",
        ms.save,
        tmp_path / "a",
        tiny.CONFIG,
        params,
        files={"../note.txt": ""},
    )
    refused("file name 'config.json' must be", ms.save, tmp_path / "a", tiny.CONFIG, params, files={"config.json": ""})
    assert os.listdir(tmp_path) == []


def test_damage_is_named(saved, tmp_path):
    refused("checkpoint 'nowhere' does not exist; `msrnn convert SRC DST` makes one", ms.load, "nowhere")
    (tmp_path / "empty").mkdir()
    refused("is not a checkpoint of this project: it needs config.json and params/", ms.load, tmp_path / "empty")
    refused("dtype is 'int8'; it must be one of bfloat16", ms.load, saved, dtype="int8")
    refused("has no tokenizer.json; it was converted without a tokenizer", ms.load_tokenizer, saved)
    good = (saved / "config.json").read_text()
    fields = json.loads(good)
    for change, message in [
        ({"num_layer": 3}, "unknown 'num_layer' (did you mean 'num_layers'?)"),
        ({"num_kv_heads": 4}, "num_kv_heads is 4; it must be a divisor of num_heads (6)"),
        ({"head_dim": 9}, "head_dim is 9; it must be even"),
        ({"norm_eps": 0}, "norm_eps is 0; it must be a positive number"),
        ({"vocab_size": True}, "vocab_size is True; it must be a positive integer"),
        ({"dtype": "int4"}, "dtype is 'int4'; it must be one of"),
        ({"rope": {"kind": "dynamic"}}, "Rope.kind is 'dynamic'; it must be one of default, linear, llama3, yarn"),
        ({"rope": {"base": 1}}, "Rope: unknown 'base'"),
        ({"model_dim": 23}, "the weights cannot be read: ['embedding'] is [50, 24]; it must be [50, 23]"),
        ({"num_layers": 3}, "['layers']['2']['attention_norm'] is missing"),
        ({"num_layers": 1}, "['layers']['1']['attention_norm'] is not in the config's model"),
        ({"tied_embeddings": True}, "['unembedding'] is not in the config's model"),
        ({"rope": {"theta": 10**400}}, "config.json' cannot be used"),
    ]:
        (saved / "config.json").write_text(json.dumps({**fields, **change}))
        refused(message, ms.load, saved)
    (saved / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if k != "mlp_dim"}))
    refused("missing 'mlp_dim'", ms.load, saved)
    for text in ("", "[]", good[:40]):
        (saved / "config.json").write_text(text)
        refused("config.json' cannot be used", ms.load, saved)


def test_truncated_weights_are_refused(saved):
    files = sorted((path for path in (saved / "params").rglob("*") if path.is_file()), key=lambda p: -p.stat().st_size)
    largest = files[0]
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    # In a process of its own, since Orbax leaves callbacks behind that complain at any later time.
    code = f"""
import sys
import msrnn_jax as ms
hooks = []
for turn in range(3):
    try:
        ms.load({str(saved)!r})
    except ValueError as error:
        print(error)
    hooks.append(sys.unraisablehook)
print(hooks[0] is hooks[1] is hooks[2])  # none inside the other
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(f"checkpoint {str(saved)!r}: the weights cannot be read: ")
    assert 'Error reading "' in first and last == "True"


def test_links_out_of_the_folder_are_refused(saved, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("{}")
    (saved / "params" / "link").symlink_to(tmp_path / "outside")
    refused("params/link' leads out of the checkpoint's folder", ms.load, saved)
    (saved / "params" / "link").unlink()
    (saved / "config.json").rename(tmp_path / "outside" / "config.json")
    (saved / "config.json").symlink_to(tmp_path / "outside" / "config.json")
    refused("config.json' leads out of the checkpoint's folder", ms.load, saved)
    (saved / "config.json").unlink()
    (tmp_path / "outside" / "config.json").rename(saved / "config.json")
    (saved / "tokenizer.json").symlink_to(tmp_path / "outside" / "secret")
    refused("tokenizer.json' leads out of the checkpoint's folder", ms.load_tokenizer, saved)


def test_a_fingerprint_is_that_of_the_weights(saved):
    original = fingerprint(tiny.CONFIG, tiny.params())
    assert fingerprint(*ms.load(saved)) == original
    params = tiny.params()
    nudged = params.replace(final_norm=params.final_norm.at[3].add(1e-3))
    assert fingerprint(tiny.CONFIG, nudged) != original and len(original) == 16
