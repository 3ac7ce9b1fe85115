"""convert: hundreds of damaged GGUF files, each of which is read or refused in words, quickly and in little memory."""

import random
import time
import tracemalloc

import numpy as np
import pytest
from checkpoints import BYTE_LEVEL, SENTENCEPIECE, write_gguf

from convert.gguf.header import read_header
from convert.gguf.reader import read_gguf

CASES = 120  # of each file
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


def damage(raw, end, dice):
    """The file, its header damaged in one to three ways."""
    new = bytearray(raw)
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        at, size = dice.randrange(4, min(end, len(new))), dice.choice([1, 2, 4, 8])
        way = dice.choice(["flip", "number", "number", "length", "cut", "repeat"])
        if way == "flip":
            new[at] ^= 1 << dice.randrange(8)
        elif way == "number":
            new[at : at + size] = (dice.choice(EXTREMES) % 256**size).to_bytes(size, "little")
        elif way == "length":  # what precedes a text says how long it is
            at = max(new.rfind(b"\0" * 7, 0, at) - 1, 4)
            new[at] = (new[at] + dice.choice([-2, -1, 1, 2])) % 256
        elif way == "cut":
            del new[at : dice.choice([len(new), at + dice.randint(1, 40)])]
        else:
            new[at:at] = new[at : at + dice.randint(1, 200)]
    return bytes(new)


@pytest.mark.parametrize("architecture", FILES)
def test_damaged_files_are_read_or_refused_in_words(tmp_path, architecture):
    path = tmp_path / "model.gguf"
    raw = make(path, architecture)
    read_gguf(path, None, lambda line: None)  # the undamaged one is good
    end = read_header(path).tensors[0].offset
    dice = random.Random(architecture)
    read, problems, slowest = 0, set(), 0.0
    tracemalloc.start()
    try:
        for _ in range(CASES):
            path.write_bytes(damage(raw, end, dice))
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
    assert 0.03 * CASES < read < 0.6 * CASES  # else the damage is too heavy, or none
    assert len(problems) > 15  # different ones
