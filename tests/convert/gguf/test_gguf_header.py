"""convert: the header of a GGUF file against the gguf package's reader, and every way in which it can be damaged."""

import struct
import time

import gguf
import pytest
from checkpoints import BYTE_LEVEL, SENTENCEPIECE, gguf_metadata, write_gguf

from convert.gguf.header import read_header

UINT8, UINT32, FLOAT32, BOOL, STRING, ARRAY = (
    gguf.GGUFValueType[name] for name in ("UINT8", "UINT32", "FLOAT32", "BOOL", "STRING", "ARRAY")
)
F32, Q4_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q4_0


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key, kind, raw):
    return text(key) + struct.pack("<I", kind) + raw


def tensor(name, shape, kind=F32, offset=0, axes=None):
    lengths = struct.pack(f"<{len(shape)}Q", *reversed(shape))
    return (
        text(name)
        + struct.pack("<I", len(shape) if axes is None else axes)
        + lengths
        + struct.pack("<IQ", kind, offset)
    )


def write(path, entries=(), tensors=(), data=4096, version=3, keys=None, count=None, magic=b"GGUF"):
    head = magic + struct.pack(
        "<IQQ", version, len(tensors) if count is None else count, len(entries) if keys is None else keys
    )
    head += b"".join(entries) + b"".join(tensors)
    path.write_bytes(head + bytes(-len(head) % 32 + data))
    return path


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["bytes", "pieces"])
def test_it_says_what_the_gguf_package_says(tmp_path, tokenizer):
    more = {"general.alignment": 64, "a.flag": True, "a.real": 0.5, "a.flags": [True, False], "a.reals": [0.5, 1.5]}
    path = write_gguf(tmp_path / "model.gguf", metadata={**gguf_metadata(), **more}, kind="Q8_0", tokenizer=tokenizer)
    header, other = read_header(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in other.fields.items() if not key.startswith("GGUF.")}
    assert header.metadata == fields
    assert {key: type(value) for key, value in header.metadata.items()} == {
        key: type(value) for key, value in fields.items()
    }
    assert [(tensor.name, tensor.kind, tensor.shape, tensor.offset, tensor.size) for tensor in header.tensors] == [
        (tensor.name, tensor.tensor_type.name, tuple(tensor.shape.tolist()[::-1]), tensor.data_offset, tensor.n_bytes)
        for tensor in other.tensors
    ]


def test_all_types_of_values(tmp_path):
    numbers = {
        "UINT8": ("B", 255), "INT8": ("b", -128), "UINT16": ("H", 65535), "INT16": ("h", -32768),
        "UINT32": ("I", 2**32 - 1), "INT32": ("i", -(2**31)), "UINT64": ("Q", 2**64 - 1), "INT64": ("q", -(2**63)),
        "FLOAT32": ("f", 0.25), "FLOAT64": ("d", 0.1),
    }  # fmt: skip
    entries = [
        entry(name, gguf.GGUFValueType[name], struct.pack(f"<{code}", value)) for name, (code, value) in numbers.items()
    ]
    texts = struct.pack("<IQ", STRING, 2) + text("é") + text("")
    entries += [entry("texts", ARRAY, texts), entry("empty", ARRAY, struct.pack("<IQ", STRING, 0))]
    expected = {name: value for name, (_, value) in numbers.items()} | {"texts": ["é", ""], "empty": []}
    assert read_header(write(tmp_path / "model.gguf", entries)).metadata == expected
    assert read_header(write(tmp_path / "model.gguf", entries, version=2)).metadata == expected


def test_a_real_vocabulary_is_read_in_no_time(tmp_path):
    words = [f"word{number}" for number in range(150_000)]
    settings = {**BYTE_LEVEL, "tokenizer.ggml.tokens": words, "tokenizer.ggml.merges": [f"a {word}" for word in words]}
    path = write_gguf(tmp_path / "model.gguf", tokenizer={**settings, "tokenizer.ggml.token_type": [1] * 150_000})
    start = time.perf_counter()
    assert read_header(path).metadata["tokenizer.ggml.tokens"] == words
    assert time.perf_counter() - start < 2  # 0.2 on an idle machine


HUGE = struct.pack("<Q", 2**63)


def value(kind, raw, key="k"):
    return {"entries": [entry(key, kind, raw)]}


def array(kind, count):
    return value(ARRAY, struct.pack("<IQ", kind, count))


def aligned(kind, raw):
    return value(kind, raw, "general.alignment")


def only(shape, **fields):
    return {"tensors": [tensor("t", shape, **fields)]}


def two(first, second):
    return {"tensors": [tensor("t", first), tensor("u", second, offset=32)]}


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ({"magic": b"GGML"}, "it starts with b'GGML', not with b'GGUF'"),
        ({"version": 1}, "it is of version 1; it must be little endian and of version 2 or 3"),
        ({"version": 3 << 24}, "it is of version 50331648; it must be little endian and of version 2 or 3"),
        ({"keys": 2**63}, "the key '' is there twice"),
        ({"count": 2**40}, "the tensor '' has shape []; it must have 1 to 4 axes, none of them 0"),
        ({"entries": [HUGE]}, f"{2**63} bytes must follow at 32, but it ends before"),
        ({"entries": [text(b"\xff\xfe")]}, r"the text b'\xff\xfe' before 34 is not UTF-8"),
        ({"entries": [entry("k", UINT8, b"0"), entry("k", UINT8, b"1")]}, "the key 'k' is there twice"),
        (value(13, b"0"), "a value before 37 has type 13, of which there are none"),
        (value(STRING, HUGE), f"{2**63} bytes must follow at 45, but it ends before"),
        (array(99, 0), "a value before 49 has type 99, of which there are none"),
        (array(STRING, 600), "8 bytes must follow at 4153, but it ends before"),
        (array(FLOAT32, 2**62), f"{2**64} bytes must follow at 49, but it ends before"),
        (array(ARRAY, 400), "a value before 49 has type 9, of which there are none"),
        (aligned(UINT32, struct.pack("<I", 48)), "general.alignment is 48; it must be a power of two"),
        (aligned(UINT32, bytes(4)), "general.alignment is 0; it must be a power of two"),
        (aligned(BOOL, b"\1"), "general.alignment is True; it must be a power of two"),
        (only((1,) * 5), "the tensor 't' has shape [1, 1, 1, 1, 1]; it must have 1 to 4 axes"),
        (only((4,), axes=2**31), f"{2**34} bytes must follow at 37, but it ends before"),
        (only((4, 0)), "the tensor 't' has shape [4, 0]; it must have 1 to 4 axes, none of them 0"),
        (only((4,), kind=4), "the tensor 't' has type 4, which the installed gguf package does not know"),
        (only((4, 48), kind=Q4_0), "the tensor 't' has rows of 48, no multiple of the 32 in a block of Q4_0"),
        (only((4,), offset=16), "the tensor 't' starts at 16, no multiple of general.alignment 32"),
        (only((1025,)), "the tensor 't' takes bytes 64 to 4164, but the file ends at 4160"),
        (only((2**40,) * 4), f"the tensor 't' takes bytes 96 to {96 + 4 * 2**160}, but the file"),
        (two((16,), (16,)), "the tensors 't' and 'u' overlap"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_header_is_refused(tmp_path, file, problem):
    path = write(tmp_path / "model.gguf", **file)
    with pytest.raises(ValueError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path} is not a readable GGUF file: {problem}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_header_beyond_the_limit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", [entry("k", STRING, text("x" * 3000))])
    assert len(read_header(path).metadata["k"]) == 3000
    monkeypatch.setattr("convert.gguf.header.MAX_HEADER", 2000)
    with pytest.raises(ValueError, match="3000 bytes must follow at 45, but it ends before"):
        read_header(path)


def test_the_last_tensor_needs_no_padding(tmp_path):
    path = write(tmp_path / "model.gguf", tensors=[tensor("t", (3,)), tensor("u", (1,), offset=32)], data=36)
    assert [(found.offset, found.size) for found in read_header(path).tensors] == [(96, 12), (128, 4)]
