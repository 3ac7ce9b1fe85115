"""convert: thousands of damaged GGUF files, each of which is read or refused in words, quickly and in little memory."""

import random
import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from checkpoints import BYTE_LEVEL, SENTENCEPIECE, write_gguf

from convert.gguf.reader import read_gguf

CASES = 700  # of each file
EXTREMES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
TEMPLATE = {"tokenizer.chat_template": "{{ messages }}", "general.alignment": 32, "general.tags": ["a", "b"]}
SIZES = {
    "block_count": 1,
    "context_length": 128,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
    "rope.scaling.yarn_log_multiplier": 0.5,
}
FILES = {
    "llama": (SIZES, BYTE_LEVEL, "F32", {"rope_freqs.weight": (8,)}),
    "qwen2": ({**SIZES, "rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, BYTE_LEVEL, "Q8_0", {}),
    "smollm3": (SIZES, SENTENCEPIECE, "BF16", {}),
    "mistral3": ({**SIZES, **YARN}, SENTENCEPIECE, "Q4_0", {}),
}


def make(path, architecture):
    """A small, good file; what its header consists of, and where that ends."""
    fields, tokenizer, kind, more = FILES[architecture]
    shapes = {
        "token_embd.weight": (24, 32), "output_norm.weight": (32,), "blk.0.attn_norm.weight": (32,),
        "blk.0.attn_q.weight": (64, 32), "blk.0.attn_k.weight": (32, 32), "blk.0.attn_v.weight": (32, 32),
        "blk.0.attn_output.weight": (32, 64), "blk.0.ffn_norm.weight": (32,), "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_up.weight": (64, 32), "blk.0.ffn_down.weight": (32, 64), **more,
    }  # fmt: skip
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    metadata = {f"{architecture}.{key}": value for key, value in fields.items()}
    settings = {**TEMPLATE, **tokenizer, "tokenizer.ggml.add_eos_token": True}
    write_gguf(path, metadata=metadata, tensors=tensors, kind=kind, tokenizer=settings, architecture=architecture)
    return path.read_bytes()


def walk(raw):
    """The places of all numbers in a header, by sort, and of all its parts: keys with values, tensors."""
    places = {"length": [], "type": [], "value": []}
    parts = []
    at = 24

    def number(sort, size):
        nonlocal at
        places[sort].append((at, size))
        at += size
        return int.from_bytes(raw[at - size : at], "little")

    def skip(kind):
        nonlocal at
        if kind == gguf.GGUFValueType.STRING:
            length = number("length", 8)
            at += length
        elif kind == gguf.GGUFValueType.ARRAY:
            inner = number("type", 4)
            for _ in range(number("length", 8)):
                skip(inner)
        else:
            number("value", {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}[kind])

    tensors, keys = struct.unpack_from("<QQ", raw, 8)
    for _ in range(keys):
        start = at
        skip(gguf.GGUFValueType.STRING)
        skip(number("type", 4))
        parts.append((start, at))
    for _ in range(tensors):
        start = at
        skip(gguf.GGUFValueType.STRING)
        for _ in range(number("length", 4)):
            number("length", 8)
        number("type", 4)
        number("length", 8)
        parts.append((start, at))
    places["length"] += [(4, 4), (8, 8), (16, 8)]
    return places, parts, at


def mutate(raw, places, parts, end, dice):
    """The file, damaged in one to three ways."""
    new = bytearray(raw)

    def overwrite(sort, values):
        at, size = dice.choice(places[sort])
        new[at : at + size] = (dice.choice(values) % 256**size).to_bytes(size, "little")

    def change_by_one():
        at, size = dice.choice(places["length"])
        value = int.from_bytes(new[at : at + size], "little") + dice.choice([-2, -1, 1, 2])
        new[at : at + size] = (value % 256**size).to_bytes(size, "little")

    def flip():
        for _ in range(dice.randint(1, 8)):
            new[dice.randrange(end)] ^= 1 << dice.randrange(8)

    def run():
        at, size = dice.randrange(end), dice.choice([1, 2, 4, 8, 16])
        new[at : at + size] = dice.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * size

    def cut():
        at = dice.choice([dice.randrange(end + 64), dice.choice(parts)[0], dice.choice(places["length"])[0]])
        del new[at : dice.choice([len(new), at + dice.randint(1, 40)])]

    def repeat():
        (start, stop), (at, _) = dice.choice(parts), dice.choice(parts)
        new[at:at] = new[start:stop]

    def swap():
        (start, stop), (other, there) = sorted(dice.sample(parts, 2))
        new[start:there] = new[other:there] + new[stop:other] + new[start:stop]

    ways = [
        lambda: overwrite("length", EXTREMES),
        lambda: overwrite("type", [*range(14), 31, 99, 2**31]),
        lambda: overwrite("value", EXTREMES),
        change_by_one,
        flip,
        run,
        cut,
        repeat,
        swap,
    ]
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        dice.choice(ways)()
        if len(new) < end:
            break  # the places are no longer where they were
    return bytes(new)


@pytest.mark.parametrize("architecture", FILES)
def test_damaged_files_are_read_or_refused_in_words(tmp_path, architecture):
    path = tmp_path / "model.gguf"
    raw = make(path, architecture)
    read_gguf(path, None, lambda line: None)  # the undamaged one is good
    places, parts, end = walk(raw)
    assert len(raw) - end > 5_000 and len(parts) > 25
    dice = random.Random(architecture)
    read, problems, slowest = 0, set(), 0.0
    tracemalloc.start()
    try:
        for _ in range(CASES):
            path.write_bytes(mutate(raw, places, parts, end, dice))
            tracemalloc.reset_peak()
            start = time.perf_counter()
            try:
                source = read_gguf(path, None, lambda line: None)
                for tensor in source.stored.values():
                    for rows, block in tensor.blocks(4):
                        assert block.shape == (rows.stop - rows.start, *tensor.shape[1:])
                read += 1
            except ValueError as error:
                message = str(error)
                assert message.startswith(str(path))
                assert len(message) < 8000 and message.replace("\n", " ").isprintable()
                problems.add(message.removeprefix(str(path))[:60])
            slowest = max(slowest, time.perf_counter() - start)
            assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()
    assert slowest < 5  # seconds; usually some hundredths
    assert CASES * len(FILES) >= 2000
    assert 0.03 * CASES < read < 0.6 * CASES  # else the damage is too heavy, or none
    assert len(problems) > 30  # different ones
