"""convert: every type of GGUF tensor, row by row and as part of a model."""

import tracemalloc

import gguf
import numpy as np
import pytest
from checkpoints import flatten, gguf_metadata, make_weights, to_gguf, write_gguf
from converted import check_equal, loaded

from convert import convert as run
from convert.gguf.header import read_header
from convert.gguf.tensors import PLAIN, in_half_split_order, readable_kinds, to_stored

QUANTISED = [kind for kind in readable_kinds() if kind not in PLAIN]

# Rows are multiples of 256, the largest block, and all else is different.
SIZES = {"V": 7, "D": 256, "N": 8, "K": 4, "H": 64, "F": 768}
SHAPES = {
    "token_embd.weight": "VD", "output.weight": "VD", "output_norm.weight": "D", "blk.0.attn_norm.weight": "D",
    "blk.0.attn_q.weight": "ND", "blk.0.attn_k.weight": "KD", "blk.0.attn_v.weight": "KD",
    "blk.0.attn_output.weight": "DN", "blk.0.ffn_norm.weight": "D", "blk.0.ffn_gate.weight": "FD",
    "blk.0.ffn_up.weight": "FD", "blk.0.ffn_down.weight": "DF",
}  # fmt: skip
METADATA = gguf_metadata(
    block_count=1, embedding_length=256, feed_forward_length=768, attention__head_count=8, attention__head_count_kv=4,
    attention__key_length=64, attention__value_length=64, rope__dimension_count=64, vocab_size=7,
)  # fmt: skip


def blocks(kind, shape, seed):
    """Random tensors of a type: quantised by the gguf package, or else blocks of random bytes that it accepts."""
    random = np.random.default_rng(seed)
    ggml = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[ggml]
    try:
        return gguf.quantize(random.normal(size=shape).astype(np.float32), ggml)
    except NotImplementedError:
        wanted = int(np.prod(shape)) // block
        raw = random.integers(0, 256, (8 * wanted, size), np.uint8)
        with np.errstate(all="ignore"):
            sane = (np.abs(gguf.dequantize(raw, ggml)) < 1e4).all(axis=1)  # neither huge nor NaN
        return raw[sane][:wanted].reshape(*shape[:-1], shape[-1] // block * size)


def test_all_types_that_the_gguf_package_can_dequantise_are_there():
    assert len(QUANTISED) >= 23
    assert {"Q4_0", "Q4_K", "Q6_K", "IQ4_XS", "TQ1_0", "MXFP4"} <= set(QUANTISED)
    assert not {*PLAIN, "I8", "I64", "Q8_K"} & set(QUANTISED)


@pytest.mark.parametrize("kind", QUANTISED)
def test_rows_of_a_quantised_tensor(tmp_path, monkeypatch, kind):
    raw = blocks(kind, (12, 512), seed=1)
    whole = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert whole.shape == (12, 512) and len(np.unique(whole)) > 2
    path = write_gguf(tmp_path / "model.gguf", tensors={"a": raw, "t": raw}, kind=kind)
    stored = to_stored(read_header(path).tensors[1])
    assert (stored.kind, stored.shape, stored.unit) == (kind, (12, 512), 1)
    for piece in (2**19, 600):  # numbers dequantised at once: all, and fewer than two rows
        monkeypatch.setattr("convert.gguf.tensors.PIECE", piece)
        for start, stop in ((0, 12), (0, 1), (5, 9), (11, 12)):
            rows = stored.read(start, stop)
            assert rows.dtype == np.float32 and rows.flags.owndata or rows.base.flags.owndata
            np.testing.assert_array_equal(rows, whole[start:stop])


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "IQ4_XS"])
def test_a_quantised_model(tmp_path, kind):
    shapes = {
        name: [SIZES[letter] * (SIZES["H"] if letter in "NK" else 1) for letter in letters]
        for name, letters in SHAPES.items()
    }
    tensors = {
        name: blocks(kind, shape, seed) if len(shape) == 2 else np.linspace(-1, 1, shape[0], dtype=np.float32)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    ggml = gguf.GGMLQuantizationType[kind]
    exact = {name: gguf.dequantize(value, ggml) if value.ndim == 2 else value for name, value in tensors.items()}
    quantised = write_gguf(tmp_path / "quantised.gguf", metadata=METADATA, tensors=tensors, kind=kind)
    plain = write_gguf(tmp_path / "plain.gguf", metadata=METADATA, tensors=exact)
    config, params = loaded(quantised)
    assert config.dtype == "float32" and loaded(quantised, "bfloat16")[0].dtype == "bfloat16"
    check_equal(params, flatten(loaded(plain)[1]))


@pytest.mark.parametrize("kind", PLAIN)
def test_types_that_are_not_quantised_are_read_as_they_are(tmp_path, kind):
    weight = np.random.default_rng(3).normal(size=(6, 64)).astype(PLAIN[kind])
    tensors = {"a": np.zeros(3, np.float32), "t": weight.astype(np.float64 if kind == "F64" else np.float32)}
    stored = to_stored(read_header(write_gguf(tmp_path / "model.gguf", tensors=tensors, kind=kind)).tensors[1])
    rows = stored.read(2, 5)
    assert rows.dtype == PLAIN[kind]
    np.testing.assert_array_equal(rows, weight[2:5])
    rows[:] = 0  # memory of its own
    np.testing.assert_array_equal(stored.read(0, 6), weight)


def test_a_quantised_vector_is_read_in_whole_blocks(tmp_path):
    vector = np.random.default_rng(4).normal(size=(1, 192)).astype(np.float32)
    raw = gguf.quantize(vector, gguf.GGMLQuantizationType.Q8_0)
    path = write_gguf(tmp_path / "model.gguf", tensors={"t": raw[0]}, kinds={"t": "Q8_0"})
    stored = to_stored(read_header(path).tensors[0])
    assert (stored.shape, stored.unit) == ((192,), 32)
    whole = gguf.dequantize(raw, gguf.GGMLQuantizationType.Q8_0)[0]
    np.testing.assert_array_equal(stored.read(32, 128), whole[32:128])
    turned = in_half_split_order(stored, 48)
    assert turned.unit == 96  # whole heads and whole blocks
    heads = whole.reshape(4, 48)
    np.testing.assert_array_equal(turned.read(96, 192), np.concatenate([heads[2:, 0::2], heads[2:, 1::2]], 1).ravel())


def test_a_file_that_became_shorter_is_named(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", tensors={"t": np.ones((4, 8), np.float32)})
    stored = to_stored(read_header(path).tensors[0])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="it became shorter before the tensor 't' was read"):
        stored.read(0, 4)


def test_values_that_are_not_finite_pass_the_dequantisation(tmp_path):
    tensors = to_gguf(make_weights())
    raw = gguf.quantize(tensors["blk.0.ffn_up.weight"], gguf.GGMLQuantizationType.Q8_0)
    raw[0, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    kinds = {"blk.0.ffn_up.weight": "Q8_0"}
    lines = []
    source = write_gguf(tmp_path / "model.gguf", tensors={**tensors, "blk.0.ffn_up.weight": raw}, kinds=kinds)
    run(source, tmp_path / "ours", report=lines.append)
    assert "warning: tensor 'blk.0.ffn_up.weight' holds values that are not finite" in lines


def test_memory_is_bounded_by_a_part_of_the_tensor(tmp_path):
    weight = gguf.quantize(np.ones((4096, 4096), np.float32), gguf.GGMLQuantizationType.Q8_0)
    path = write_gguf(tmp_path / "model.gguf", tensors={"t": weight}, kind="Q8_0")
    del weight
    tracemalloc.start()
    try:
        stored = to_stored(read_header(path).tensors[0])
        rows = sum(len(block) for _, block in stored.blocks(4))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 4096
    assert peak < 2.5 * 2**25  # bytes: the block, what it was made from, and a little; the tensor has 64 MiB
