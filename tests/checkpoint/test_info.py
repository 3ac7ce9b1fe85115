"""What `msrnn info` says, against models and states that are really made."""

import dataclasses
import json
import os
import pathlib
import shutil
from types import SimpleNamespace

import jax
import pytest
import tiny
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from msrnn_jax.checkpoint.info import BUDGETS
from msrnn_jax.cli.app import app
from msrnn_jax.devices import memory
from msrnn_jax.io.units import parse_bytes, spell_bytes
from msrnn_jax.params import abstract_params


@pytest.fixture(scope="module")
def hollow(tmp_path_factory) -> str:
    """A checkpoint without its weights: info needs none."""
    folder = pathlib.Path(make_toy(tmp_path_factory.mktemp("models") / "toy"))
    shutil.rmtree(folder / "params")
    (folder / "params").mkdir()
    (folder / "source.json").write_text('{"kind": "random \\u001b[31m"}')
    return str(folder)


def info(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["info", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def real_bytes(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_info_counts_what_is_there(hollow):
    named = ["tova", "h2o", "full", "h2o:every=5", "tova:pyramid=2", "tova:scope=head,adaptive=0.5"]
    policies = [*(word for policy in named for word in ("--policy", policy)), "--budget", "4,9"]
    facts = json.loads(info(hollow, *policies, "--memory", "1MiB", "--dtype", "bfloat16", "--json"))
    params = tiny.params("bfloat16")
    assert facts["dtype"] == "bfloat16" and facts["config"]["dtype"] == "float32"
    assert facts["weight_bytes"] == real_bytes(params)
    assert [row["part"] for row in facts["parameters"]] == [
        "embedding", "attention", "mlp", "norms", "unembedding", "all",
    ]  # fmt: skip
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert facts["parameters"][-1]["count"] == total == sum(row["count"] for row in facts["parameters"][:-1])
    assert facts["parameters"][-1]["bytes"] == {"float32": 4 * total, "bfloat16": 2 * total}
    assert [(row["policy"], row["budget"]) for row in facts["states"]] == [
        ("tova", 4), ("tova", 9), ("h2o", 4), ("h2o", 9), ("full", 2048), ("h2o:every=5", 4), ("h2o:every=5", 9),
        ("tova:pyramid=2", 4), ("tova:pyramid=2", 9),
        ("tova:scope=head,adaptive=0.5", 4), ("tova:scope=head,adaptive=0.5", 9),
    ]  # fmt: skip
    config = tiny.CONFIG.replace(dtype="bfloat16")
    for row in facts["states"]:
        made = ms.init_state(config, ms.parse_policy(row["policy"]), row["budget"])
        assert row["state_bytes"] == real_bytes(made)
        each, room = row["state_bytes"] + row["working_bytes"], 2**20 - facts["weight_bytes"]
        assert 0 < row["largest_batch"] * each <= room < (row["largest_batch"] + 1) * each
    assert facts["tokenizer"] == {
        "vocabulary": 50, "bos": None, "stop": [{"id": 3, "text": "c"}], "chat_template": True,
    }  # fmt: skip
    assert facts["memory"] == "as asked for" and facts["memory_bytes"] == 2**20


def test_info_in_words_says_whose_memory_it_fills(hollow):
    printed = info(hollow)
    assert "this machine's RAM" in printed and "\x1b" not in printed
    rows = [line.split() for line in printed.splitlines()]
    assert [["full", "2,048"], *(["tova", f"{budget:,}"] for budget in BUDGETS)] == [
        row[:2] for row in rows if row and row[0] in ("full", "tova")
    ]
    assert ["stop", "c", "(3)"] in rows


def test_parts_of_a_model_with_everything():
    config = tiny.CONFIG.replace(attention_bias=True, output_bias=True, mlp_bias=True)
    found = memory.part_sizes(abstract_params(config))
    c = SimpleNamespace(**dataclasses.asdict(config))
    heads, key_value = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    assert found == {
        "embedding": c.vocab_size * c.model_dim,
        "attention": 2 * (2 * c.model_dim * (heads + key_value) + heads + 2 * key_value + c.model_dim),
        "mlp": 2 * (3 * c.model_dim * c.mlp_dim + 2 * c.mlp_dim + c.model_dim),
        "norms": 5 * c.model_dim,
        "unembedding": c.vocab_size * c.model_dim,
    }
    tied = memory.part_sizes(abstract_params(config.replace(tied_embeddings=True)))
    assert tied == {**found, "unembedding": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * 2**30),
        ("16GB", 16 * 10**9),
        (" 1.5 gib ", 3 * 2**29),
        ("512MiB", 2**29),
        ("0.5KiB", 512),
        ("2tb", 2 * 10**12),
        ("77", 77),
        ("77B", 77),
    ],
)
def test_a_size_in_words(text, expected):
    assert parse_bytes("size", text) == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "1e9", "nan", "24G", "12 apples", "1,5GB", "0", "0.2B", "9" * 400]
)
def test_no_size(text):
    with pytest.raises(ValueError, match="size is '.*'; it must be"):
        parse_bytes("size", text)


def test_sizes_are_spelled_with_three_digits():
    given = (0, 999, 1024, 999.6 * 1024, 3 * 2**29, 5 * 2**40, 5000 * 2**40)
    assert [*map(spell_bytes, given)] == ["0 B", "999 B", "1 KiB", "0.976 MiB", "1.5 GiB", "5 TiB", "5,000 TiB"]


def test_the_memory_of_an_accelerator_is_what_it_says(monkeypatch):
    device = SimpleNamespace(
        platform="gpu", device_kind="H", memory_stats=lambda: {"bytes_limit": 7, "bytes_in_use": 3}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert memory.total_memory() == (7, "gpu H, what JAX may take of it")
    device.memory_stats = lambda: None
    assert memory.total_memory() == (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine's RAM")
    monkeypatch.delattr(os, "sysconf")
    with pytest.raises(ValueError, match="unknown; give --memory"):
        memory.total_memory()
