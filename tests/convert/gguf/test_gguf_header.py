"""convert: the header of a GGUF file against the gguf package's reader, and every way in which it can be damaged."""

import struct
import time

import gguf
import pytest
from checkpoints import BYTE_LEVEL, SENTENCEPIECE, gguf_metadata, write_gguf

from convert.gguf.cursor import MAX_DEPTH
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
    nested = (
        struct.pack("<IQ", ARRAY, 2) + struct.pack("<IQBB", UINT8, 2, 1, 2) + struct.pack("<IQ", STRING, 1) + text("é")
    )
    entries += [entry("nested", ARRAY, nested), entry("empty", ARRAY, struct.pack("<IQ", STRING, 0))]
    expected = {name: value for name, (_, value) in numbers.items()} | {"nested": [[1, 2], ["é"]], "empty": []}
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
DEEP = struct.pack("<IQ", ARRAY, 1) * MAX_DEPTH + struct.pack("<IQB", UINT8, 1, 7)
ENDS = "but the file ends after"


def value(kind, raw, key="k"):
    return {"entries": [entry(key, kind, raw)]}


def array(kind, count):
    return value(ARRAY, struct.pack("<IQ", kind, count))


def aligned(kind, raw):
    return value(kind, raw, "general.alignment")


def only(shape, **fields):
    return {"tensors": [tensor("t", shape, **fields)]}


def two(first, second, at=0, name="u"):
    return {"tensors": [tensor("t", first, offset=at), tensor(name, second, offset=0 if at else 32)]}


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ({"magic": b"GGML"}, "it starts with b'GGML', not with b'GGUF'"),
        ({"version": 1}, "it is of version 1; the version must be 2 or 3"),
        ({"version": 3 << 24}, "it is big endian; only little-endian files are read"),
        ({"keys": 2**63}, f"the metadata of {2**63} keys needs at least {13 * 2**63} bytes, {ENDS} 4104 more"),
        ({"count": 2**40}, f"the list of {2**40} tensors needs at least {32 * 2**40} bytes, {ENDS} 4104 more"),
        ({"entries": [HUGE]}, f"the name of key 0 needs at least {2**63} bytes, {ENDS} 4096 more"),
        ({"entries": [text(b"\xff\xfe")]}, r"the name of key 0 holds text that is not UTF-8: b'\xff\xfe'"),
        (value(UINT8, b"0", "k" * 70_000), "the name of key 0 is longer than 65535 characters"),
        ({"entries": [entry("k", UINT8, b"0"), entry("k", UINT8, b"1")]}, "the key 'k' is there twice"),
        (value(13, b"0"), "the key 'k' has a value of type 13, which does not exist"),
        (value(BOOL, b"\2"), "the key 'k' is [2]; a boolean must be 0 or 1"),
        (value(STRING, HUGE), f"the key 'k' needs at least {2**63} bytes, {ENDS}"),
        (value(STRING, text(b"ab\xc3")), r"the key 'k' holds text that is not UTF-8: b'ab\xc3'"),
        (array(99, 0), "the key 'k' has a value of type 99, which does not exist"),
        (array(STRING, 600), f"the key 'k' needs at least 4800 bytes, {ENDS}"),
        (array(FLOAT32, 2**62), f"the key 'k' needs at least {2**64} bytes, {ENDS}"),
        (array(ARRAY, 400), f"the key 'k' needs at least 4800 bytes, {ENDS}"),
        (value(ARRAY, DEEP), "the key 'k' holds arrays in arrays, more than 4 deep"),
        (aligned(UINT32, struct.pack("<I", 48)), "general.alignment is 48; it must be a power of two"),
        (aligned(UINT32, bytes(4)), "general.alignment is 0; it must be a power of two"),
        (aligned(BOOL, b"\1"), "general.alignment is True; it must be a power of two"),
        (aligned(STRING, text("32")), "general.alignment is '32'; it must be a power of two"),
        (two((4,), (4,), name="t"), "the tensor 't' is there twice"),
        (only(()), "the tensor 't' has 0 axes; it must have 1 to 4"),
        (only((1,) * 5), "the tensor 't' has 5 axes; it must have 1 to 4"),
        (only((4,), axes=2**31), "the tensor 't' has 2147483648 axes; it must have 1 to 4"),
        (only((4, 0)), "the tensor 't' has shape [4, 0]; no axis may be 0"),
        (only((4,), kind=4), "the tensor 't' has type 4, which the installed gguf package does not know"),
        (only((4, 48), kind=Q4_0), "the tensor 't' has rows of 48, no multiple of the 32 in a block of Q4_0"),
        (only((4,), offset=16), "the tensor 't' starts at 16, no multiple of general.alignment 32"),
        (only((1025,)), "the tensor 't' takes bytes 64 to 4164, but the file ends at 4160"),
        (only((4,), offset=2**64 - 32), f"the tensor 't' takes bytes {2**64 + 32} to {2**64 + 48}, but the file"),
        (only((2**40,) * 4), f"the tensor 't' takes bytes 96 to {96 + 4 * 2**160}, but the file"),
        (two((16,), (16,)), "the tensors 't' and 'u' overlap"),
        (two((16,), (32,), at=64), "the tensors 'u' and 't' overlap"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_header_is_refused(tmp_path, file, problem):
    path = write(tmp_path / "model.gguf", **file)
    with pytest.raises(ValueError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path} is not a readable GGUF file: {problem}")
    assert len(str(caught.value).splitlines()) == 1


def test_values_in_errors_are_short(tmp_path):
    path = write(tmp_path / "model.gguf", [entry("k" * 10_000, UINT8, b"0")] * 2, data=99_999)
    with pytest.raises(ValueError) as caught:
        read_header(path)
    assert len(str(caught.value)) < len(str(path)) + 200


def test_a_header_beyond_the_limit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", [entry("k", STRING, text("x" * 3000))])
    assert len(read_header(path).metadata["k"]) == 3000
    monkeypatch.setattr("convert.gguf.cursor.MAX_HEADER", 2000)
    with pytest.raises(ValueError, match="but a header takes at most 2000 bytes after"):
        read_header(path)


def test_the_last_tensor_needs_no_padding(tmp_path):
    path = write(tmp_path / "model.gguf", tensors=[tensor("t", (3,)), tensor("u", (1,), offset=32)], data=36)
    assert [(found.offset, found.size) for found in read_header(path).tensors] == [(96, 12), (128, 4)]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="the tensor 'u' takes bytes 128 to 132, but the file ends at 131"):
        read_header(path)


def test_lengths_at_the_edge_of_the_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr("convert.gguf.cursor.CHUNK", 7)
    words = [str(number) * (number % 9) for number in range(200)]
    raw = struct.pack("<IQ", STRING, len(words)) + b"".join(text(word) for word in words)
    path = write(tmp_path / "model.gguf", [entry("k", ARRAY, raw), entry("n", UINT8, b"\7")])
    assert read_header(path).metadata == {"k": words, "n": 7}
