"""Damaged safetensors headers: converted or refused in one readable message, quickly and in little memory."""

import json
import random
import time
import tracemalloc

import pytest
from checkpoints import huggingface_config, make_weights, to_huggingface, write_huggingface

from convert.huggingface.reader import read_folder

CASES = 250
SECONDS = 5.0  # for one case; it takes milliseconds
BYTES = 2**25  # of Python's memory; a file has 400 kB
EXTREMES = [0, 1, 7, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1]
JUNK = [
    "",
    "F32",
    "I64",
    "\0",
    "../x",
    -1,
    -(2**63),
    1e308,
    2**64,
    10**30,
    True,
    None,
    [],
    [[]],
    {},
    [1, 2, 3],
    {"a": 1},
]


def mutate(data: bytes, dice: random.Random) -> bytes:
    """One of the ways in which a file may be damaged; the header is `data[8:8 + n]`."""
    length = int.from_bytes(data[:8], "little")
    header, values = data[8 : 8 + length], data[8 + length :]
    match dice.randrange(9):
        case 0:  # cut off, anywhere, mostly in the header
            return data[: dice.randrange(dice.choice([9, 8 + length, len(data)]))]
        case 1:  # another length
            size = dice.choice([*EXTREMES, len(data), length + dice.randrange(-20, 20)]) % 2**64
            return size.to_bytes(8, "little") + data[8:]
        case 2:  # flipped bits
            damaged = bytearray(data[: 8 + length])
            for _ in range(dice.randrange(1, 8)):
                damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
            return bytes(damaged) + values
        case 3:  # a run of bytes that are no text
            at = dice.randrange(length)
            return data[: 8 + at] + dice.randbytes(dice.randrange(1, 40)) + data[8 + at :]
        case 4:  # values too few, too many
            return data + dice.randbytes(100) if dice.random() < 0.5 else data[: -dice.randrange(1, 1000)]
        case 5:  # brackets to the depth of any recursion
            text = b'{"a":' + dice.choice([b"[", b'{"b":']) * dice.choice([100, 10_000, 100_000])
            return len(text).to_bytes(8, "little") + text + values
        case _:  # valid JSON that says something else
            entries = json.loads(header)
            for _ in range(dice.randrange(1, 4)):
                _change(entries, dice)
            text = json.dumps(entries).encode()
            return len(text).to_bytes(8, "little") + text + values


def _change(entries: dict, dice: random.Random) -> None:
    name = dice.choice(sorted(entries))
    entry = entries[name]
    junk = dice.choice([*JUNK, *EXTREMES])
    match dice.randrange(8):
        case 0:
            del entries[name]
        case 1:
            entries[name] = junk
        case 2:
            entries[f"{name}.{dice.randrange(9)}"] = entry
        case 3 if isinstance(entry, dict):
            entry[dice.choice(["dtype", "shape", "data_offsets", "more"])] = junk
        case 4 if isinstance(entry, dict):
            entry["dtype"] = dice.choice(["F64", "F32", "F16", "BF16", "I8", "F8_E4M3", "BOOL", "U64"])
        case 5 if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
            entry["shape"] = [dice.choice([0, 1, 3, *EXTREMES, size]) for size in entry["shape"]] + [
                junk
            ] * dice.randrange(2)
        case 6 if isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list):
            entry["data_offsets"] = [dice.choice([*EXTREMES, end]) for end in entry["data_offsets"]]
        case _:
            other = dice.choice(sorted(entries))
            entries[name], entries[other] = entries[other], entry


def test_damaged_headers_are_refused_or_read(tmp_path):
    folder = write_huggingface(tmp_path / "source", tensors=to_huggingface(make_weights()))
    file = folder / "model.safetensors"
    data = file.read_bytes()
    refused, slowest = 0, 0.0
    tracemalloc.start()
    for case in range(CASES):
        file.write_bytes(mutate(data, random.Random(case)))
        tracemalloc.reset_peak()
        start = time.monotonic()
        try:
            found = read_folder(folder, None, lambda line: None)
            for tensor in found.stored.values():
                for _ in tensor.blocks(4):
                    pass
        except ValueError as error:
            refused += 1
            assert str(folder) in str(error) and "Traceback" not in str(error), (case, error)
            assert len(str(error)) < 20_000 and str(error).isprintable() or "\n  " in str(error), (case, str(error))
        slowest = max(slowest, time.monotonic() - start)
        assert tracemalloc.get_traced_memory()[1] < BYTES, case
    tracemalloc.stop()
    assert 0.6 * CASES < refused  # most are damaged where it matters
    assert slowest < SECONDS


INDICES = [
    ("", "is not valid JSON"),
    ("[]", "it must be an object"),
    ('{"weight_map": []}', "weight_map must map tensor names to file names"),
    ('{"weight_map": {"a": 1}}', "weight_map must map tensor names to file names"),
    ('{"weight_map": {"a": "../source/model-00001-of-00002.safetensors"}}', "is not a plain file name inside"),
    ('{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd' is not a plain file name inside"),
    ('{"weight_map": {"a": "model-00009-of-00002.safetensors"}}', "missing file 'model-00009-of-00002.safetensors'"),
    (
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
        "tensor 'a' is not in model-00001-of-00002.safetensors",
    ),
    ('{"weight_map": {"a": "config.json"}}', "config.json is not a readable safetensors file"),
    ('{"weight_map": {"a": "' + "x" * 5000 + '"}}', "File name too long"),
    ('{"weight_map": {}}', "missing tensor 'model.embed_tokens.weight'"),
    ("[" * 100_000, "is not valid JSON"),
]


@pytest.mark.parametrize(("index", "message"), INDICES)
def test_damaged_indices_are_refused(tmp_path, index, message):
    folder = write_huggingface(tmp_path / "source", shards=2)
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError) as caught:
        read_folder(folder, None, lambda line: None)
    assert message in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"])
def test_pickles_are_refused_with_the_reason_and_what_to_do(tmp_path, name):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(huggingface_config()))
    (folder / name).write_bytes(b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00false\x85R.")
    with pytest.raises(ValueError) as caught:
        read_folder(folder, None, lambda line: None)
    text = str(caught.value)
    assert "\n" not in text and str(folder) in text and name in text
    assert "can run code" in text and "save_pretrained" in text
