"""convert: a model in several GGUF files is the same model, and what does not belong together is refused."""

import hashlib
import json
import os

import pytest
from checkpoints import BYTE_LEVEL, gguf_metadata, make_weights, write_gguf
from converted import check_equal, loaded, refusal

import msrnn_jax as ms
from convert import convert as run

COUNT = 4  # of the parts; there are 30 tensors


def split(folder, **options):
    """The first of several files, as the gguf package writes them."""
    folder.mkdir()
    options = {"tokenizer": BYTE_LEVEL, "split_max_tensors": 8, **options}
    write_gguf(folder / "model.gguf", **options)
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == [f"model-{part:05}-of-00004.gguf" for part in range(1, COUNT + 1)]
    return paths


def replace(path, **options):
    """Writes one file alone in the place of a part."""
    write_gguf(path, **{"metadata": {}, "tensors": {}, **options})


def split_metadata(number, **changes):
    return {"split.no": number, "split.count": COUNT, "split.tensors.count": 30, **changes}


def test_parts_are_one_model(tmp_path):
    paths = split(tmp_path / "parts")
    ours = run(paths[0], tmp_path / "ours")
    check_equal(ms.load(ours)[1], make_weights())
    record = json.loads((ours / "source.json").read_text())
    assert record["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert sum(record["tensor_types"].values()) == 30
    whole = run(write_gguf(tmp_path / "model.gguf", tokenizer=BYTE_LEVEL), tmp_path / "whole")
    assert (ours / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()


def test_one_part_of_one_is_a_model(tmp_path):
    source = write_gguf(tmp_path / "model.gguf", metadata={**gguf_metadata(), "split.count": 1, "split.no": 0})
    check_equal(loaded(source)[1], make_weights())


def test_only_the_first_part_can_be_named(tmp_path):
    paths = split(tmp_path / "parts")
    text = refusal(paths[2], tmp_path / "ours")
    assert text == f"{paths[2]} is a part of a model, split.no 2; name the first part, {paths[0].name} (split.no 0)"


def test_parts_must_keep_their_names(tmp_path):
    paths = split(tmp_path / "parts")
    for name in ("model.gguf", "model-00001-of-00003.gguf", "model-1-of-4.gguf"):
        os.rename(paths[0], tmp_path / "parts" / name)
        text = refusal(tmp_path / "parts" / name, tmp_path / "ours")
        assert text.endswith(f"{name} is one of 4 parts (split.count), so its name must end in -00001-of-00004.gguf")
        os.rename(tmp_path / "parts" / name, paths[0])
    os.rename(paths[1], tmp_path / "other")
    os.rename(paths[0], paths[1])
    assert "split.no 0; name the first part, model-00001-of-00004.gguf" in refusal(paths[1], tmp_path / "ours")


def test_all_missing_parts_are_named(tmp_path):
    paths = split(tmp_path / "parts")
    os.remove(paths[1])
    os.remove(paths[3])
    os.mkdir(paths[3])
    assert refusal(paths[0], tmp_path / "ours").splitlines() == [
        f"{paths[0]} cannot be converted:",
        "  missing file 'model-00002-of-00004.gguf', one of 4 parts",
        "  missing file 'model-00004-of-00004.gguf', one of 4 parts",
    ]


def test_a_damaged_part_is_named(tmp_path):
    paths = split(tmp_path / "parts")
    os.truncate(paths[2], 100)
    assert refusal(paths[0], tmp_path / "ours").startswith(f"{paths[2]} is not a readable GGUF file: ")


@pytest.mark.parametrize("count", ["4", True, 100_000, [4]])
def test_a_count_of_parts_that_is_none(tmp_path, count):
    source = write_gguf(tmp_path / "model-00001-of-00004.gguf", metadata={**gguf_metadata(), "split.count": count})
    text = refusal(source, tmp_path / "ours")
    assert f"split.count is {count!r}; it must be the number of files" in text


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        (split_metadata(3), "model-00002-of-00004.gguf: split.no is 3; it must be 1"),
        (split_metadata(1, **{"split.count": 5}), "model-00002-of-00004.gguf: split.count is 5; it must be 4"),
        ({}, "model-00002-of-00004.gguf: split.no is None; it must be 1"),
        (
            split_metadata(1, **{"llama.rope.freq_base": 5e5}),
            "'llama.rope.freq_base' is 500000.0, but 10000.0 in the first part",
        ),
        (split_metadata(1, **{"llama.foo": 1}), "'llama.foo' is 1, but None in the first part"),
        (split_metadata(1), "split.tensors.count is 30, but the parts hold 22 tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_that_do_not_belong_together(tmp_path, metadata, problem):
    paths = split(tmp_path / "parts")
    replace(paths[1], metadata=metadata)
    text = refusal(paths[0], tmp_path / "ours")
    assert text.startswith(f"{paths[0]} cannot be converted:\n") and problem in text


def test_a_tensor_in_two_parts_is_refused(tmp_path):
    paths = split(tmp_path / "parts")
    os.replace(paths[0].with_name(paths[3].name), tmp_path / "last")
    name = "blk.0.attn_norm.weight"
    replace(paths[3], metadata=split_metadata(3), tensors={name: make_weights()["0.attention_norm"]})
    text = refusal(paths[0], tmp_path / "ours")
    assert f"tensor '{name}' is in model-00001-of-00004.gguf and in model-00004-of-00004.gguf" in text
