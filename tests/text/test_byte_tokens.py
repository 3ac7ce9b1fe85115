"""Text of tokens that are bytes: whole characters, broken ones, and text that only ever grows."""

import random

import pytest
import tiny
from forced import force
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

import msrnn_jax as ms
from msrnn_jax.generation.streaming import Detokenizer, _sure
from msrnn_jax.text.display import token_texts
from msrnn_jax.text.tokenizer import Tokenizer

SPECIAL = ["<s>", "</s>"]


def byte_fallback() -> Tokenizer:
    """As SentencePiece spells: token 2 + b is byte b."""
    vocabulary = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "▁h", "▁hiho"]
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    backend = Backend(models.BPE(numbers, [], unk_token="<s>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(SPECIAL)
    return Tokenizer(backend, bos=0, stop=[1], template=None)


def byte_level() -> Tokenizer:
    """As GPT-2 spells: token 2 + b is byte b."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    numbers = {piece: number for number, piece in enumerate([*SPECIAL, *letters])}
    backend = Backend(models.BPE(numbers, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return Tokenizer(backend, bos=0, stop=[1], template=None)


TOKENIZERS = {"byte fallback": byte_fallback, "byte level": byte_level}


def tokens_of(text: str | bytes) -> list[int]:
    return [2 + byte for byte in (text.encode() if isinstance(text, str) else text)]


def random_bytes(generator: random.Random) -> bytes:
    """Characters, halves of characters, and bytes that are in none."""
    made = b""
    for _ in range(generator.randrange(1, 8)):
        if generator.random() < 0.5:
            made += generator.choice("éa你好🙂▁\ufffd").encode()[: generator.randrange(1, 5)]
        else:
            count = generator.randrange(1, 12) if generator.random() < 0.2 else 1
            made += bytes(generator.choices([0xE4, 0xBD, 0xED, 0xA0, 0xF4, 0xC0, 0xF0, 0xFF, 0x68], k=count))
    return made


def test_a_character_stays_whatever_bytes_come_after_it():
    """One U+FFFD for every byte that is in no character, as `sentencepiece` and llama.cpp have it."""
    tokenizer, tokens = byte_fallback(), tokens_of("你好")
    texts = [tokenizer.decode(tokens[:end]) for end in range(1, 7)]
    assert texts == ["\ufffd", "\ufffd\ufffd", "你", "你\ufffd", "你\ufffd\ufffd", "你好"]
    assert tokenizer.decode(tokens_of(b"<0x41>\xff\xe2\x96\x81")) == "<0x41>\ufffd▁"  # bytes are no names of bytes
    blank, hi = tokenizer.backend.token_to_id("▁"), tokenizer.backend.token_to_id("▁h")
    assert tokenizer.decode([0, hi, *tokens_of(b"\xff"), blank, 1]) == "h\ufffd "
    assert tokenizer.decode([0, hi, *tokens_of(b"\xff"), 1], skip_special=False) == "<s> h\ufffd</s>"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_was_shown_is_never_taken_back(kind):
    """Streams and pieces, joined, are the text, after a prompt that may end within a character, too."""
    tokenizer, generator = TOKENIZERS[kind](), random.Random(1)
    begun = Detokenizer(tokenizer, tokens_of("你")[:1])
    assert begun.text(tokens_of("你")[1:]) == "你" and begun.text(tokens_of("h")) == "h"
    for _ in range(250):
        raw = random_bytes(generator)
        tokens = [generator.randrange(260) if generator.random() < 0.1 else token for token in tokens_of(raw)]
        tokens = [min(token, tokenizer.backend.get_vocab_size() - 1) for token in tokens]
        assert "".join(token_texts(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special=False)
        cut = generator.randrange(len(tokens))
        detokenizer, shown = Detokenizer(tokenizer, tokens[:cut]), ""
        for end in range(cut + 1, len(tokens) + 1):
            text = detokenizer.text(tokens[cut:end])
            assert text.startswith(shown), raw
            shown = text[: _sure(text, ())] if end < len(tokens) else text
        if kind == "byte level":
            assert tokenizer.decode(tokens_of(raw)) == raw.decode("utf-8", "replace")


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("raw", "strings", "text"),
    [
        ("你好 and on", ["好"], "你"),  # three tokens make its last character
        ("say 你好", ["好", "y 你"], "sa"),
        ("abcdef", ["ef", "bcdef", "cx"], "a"),
        ("你b", ["\ufffd"], "你b"),  # half a character, as the first block ends, is none that is broken
        (b"a\xe4b", ["\ufffd"], "a"),
        (b"ab\xff", ["b\ufffd"], "a"),
        ("a\ufffd!", ["\ufffd!"], "a"),
        (b"a\xe4\xbd", ["x"], None),
    ],
)
def test_stop_strings_cut_where_they_begin(monkeypatch, kind, raw, strings, text):
    tokenizer, script = TOKENIZERS[kind](), force(monkeypatch)
    script[:] = tokens_of(raw)
    written = stream(tokenizer, len(script), strings)
    row = written.rows[0]
    assert "".join(piece for (piece,) in written) == row.text == (tokenizer.decode(script) if text is None else text)
    assert row.finish == ("stop string" if row.text != tokenizer.decode(script) else "length")
    assert int(written.states.t[0]) == 1 + len(row.tokens) and row.tokens == script[: len(row.tokens)]


def test_of_strings_that_one_token_completes_the_earliest_cuts(monkeypatch):
    tokenizer, script = byte_fallback(), force(monkeypatch)
    script[:] = [tokenizer.backend.token_to_id("▁hiho")] * 2
    written = stream(tokenizer, 2, ["ho", "ih", "hi"])
    assert "".join(piece for (piece,) in written) == written.rows[0].text == " "
    assert written.rows[0].tokens == script[:1]


def stream(tokenizer, count, strings):
    config = tiny.CONFIG.replace(vocab_size=384)
    options = {"budget": 6, "max_new_tokens": count, "stop_strings": strings}
    return ms.stream_text(config, ms.TOVA(), tiny.params(config=config), tokenizer, [[2 + ord("h")]], **options)
