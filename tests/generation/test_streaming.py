"""Text as it is written: pieces, stop strings, and what the states have seen."""

from functools import partial

import jax
import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from toy import make_toy

import msrnn_jax as ms
from msrnn_jax.generation.streaming import Detokenizer, _sure
from msrnn_jax.text.tokenizer import Tokenizer

CONFIG = tiny.SHALLOW
params = partial(tiny.params, config=CONFIG)
OPTIONS = {"budget": 6, "max_new_tokens": 45, "sampler": ms.Temperature(1.3), "stop": ()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ms.load_tokenizer(make_toy(tmp_path_factory.mktemp("toy") / "toy"))


def writer(tokenizer, prompts, stop_strings=(), **changes):
    options = {**OPTIONS, "key": jax.random.key(5), **changes}
    return ms.stream_text(CONFIG, ms.TOVA(), params(), tokenizer, prompts, stop_strings=stop_strings, **options)


def written(writer):
    """All pieces of every row, put together."""
    pieces = list(writer)
    assert all(len(piece) == len(writer.rows) for piece in pieces)
    return ["".join(parts) for parts in zip(*pieces, strict=True)]


def test_pieces_make_the_text_of_generate(tokenizer):
    prompts = ["hello", "a b c d e f", "x"]

    def generate(prompt, stop):
        ids = np.asarray([tokenizer.encode(prompt)])
        return ms.generate(CONFIG, ms.TOVA(), params(), ids, budget=6, max_new_tokens=45, stop=(stop,))

    tokens, lengths, _ = generate("hello", 49)
    assert lengths[0] > 20
    stop = int(tokens[0, 20])
    stream = writer(tokenizer, prompts, stop=(stop,), sampler=ms.Greedy())
    texts = written(stream)
    for prompt, text, row in zip(prompts, texts, stream.rows, strict=True):
        tokens, lengths, _ = generate(prompt, stop)
        assert row.tokens == tokens[0, : lengths[0]].tolist()
        assert row.text == text == tokenizer.decode(row.tokens[:-1] if row.finish == "stop" else row.tokens)
        assert row.finish == ("stop" if row.tokens[-1] == stop else "length")
    assert "stop" in {row.finish for row in stream.rows}


def test_the_first_token_is_shown_at_once(tokenizer):
    stream = writer(tokenizer, ["hello", "x"])
    next(iter(stream))
    assert [len(row.tokens) for row in stream.rows] == [1, 1]


@pytest.fixture(scope="module")
def plain(tokenizer) -> list[str]:
    """What is written where no string stops it."""
    return written(writer(tokenizer, ["hello", "goodbye"]))


@pytest.mark.parametrize("end", tiny.few((3, 16, 17, 18, 29, 44), 3, 17))
def test_a_stop_string_ends_a_row_and_its_state_has_seen_no_more(tokenizer, plain, end):
    """Strings of two characters out of the middle of blocks and across their borders, in one row or several."""
    assert [len(text) for text in plain] == [45, 45]  # one character a token
    string = plain[0][end - 2 : end]
    found = [text.find(string) for text in plain]
    assert 0 <= found[0] <= end - 2
    stopped = writer(tokenizer, ["hello", "goodbye"], [string, "never to be seen"])
    cut = [text if place < 0 else text[:place] for text, place in zip(plain, found, strict=True)]
    assert written(stopped) == cut
    for row, text, place in zip(stopped.rows, plain, found, strict=True):
        assert row.finish == ("length" if place < 0 else "stop string")
        assert row.tokens == tokenizer.encode(text[: place + 2 if place >= 0 else None])
    for index, prompt in enumerate(("hello", "goodbye")):
        seen = tokenizer.encode(prompt) + stopped.rows[index].tokens
        state = ms.init_state(CONFIG, ms.TOVA(), 6)
        padded = np.pad(np.asarray(seen, np.int32), (0, 64 - len(seen)))  # one shape, one program
        state, logits = ms.prefill(CONFIG, ms.TOVA(), params(), state, padded, len(seen))
        mine = jax.tree.map(lambda leaf, index=index: leaf[index], stopped.states)
        assert int(mine.t) == len(seen)
        assert [tiny.held(layer) for layer in mine.layers] == [tiny.held(layer) for layer in state.layers]
        np.testing.assert_allclose(stopped.draft.logits[index], logits, atol=1e-4)


@pytest.mark.exhaustive
def test_the_same_seed_gives_the_same_text_alone_and_in_a_batch(tokenizer):
    together = written(writer(tokenizer, ["hello", "goodbye now", "c"]))
    alone = [written(writer(tokenizer, [prompt]))[0] for prompt in ("hello", "goodbye now", "c")]
    assert together == alone and len(set(alone)) == 3
    assert written(writer(tokenizer, ["hello"], key=jax.random.key(6))) != alone[:1]


def test_characters_come_whole_and_words_joined():
    """Characters of several tokens are held back; a leading blank that a decoder drops is kept after a prompt."""
    backend = Backend(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend, bos=None, stop=(), template=None)
    tokens, detokenizer = tokenizer.encode("aé😀b"), Detokenizer(tokenizer, tokenizer.encode("é"))
    sure = [detokenizer.text(tokens[:n])[: _sure(detokenizer.text(tokens[:n]), ())] for n in range(len(tokens) + 1)]
    assert sure == ["", "a", "a", "aé", "aé", "aé", "aé", "aé😀", "aé😀b"]

    words = Backend(models.WordLevel({"▁the": 0, "▁sea": 1}, unk_token="▁the"))
    words.decoder = decoders.Metaspace()
    tokenizer = Tokenizer(words, bos=None, stop=(), template=None)
    assert tokenizer.decode([1]) == "sea" and Detokenizer(tokenizer, [0]).text([1, 0]) == " sea the"


@pytest.mark.parametrize(
    ("text", "strings", "sure"),
    [
        ("abc", ("cd",), 2),
        ("abc", ("bcd", "cx"), 1),
        ("abc", ("abc",), 3),
        ("ab", ("x",), 2),
        ("aab", ("aabb", "b"), 0),
    ],
)
def test_what_may_become_a_stop_string_is_held_back(text, strings, sure):
    assert _sure(text, strings) == sure


def test_refusals(tokenizer):
    for wrong in ("end", [""]):
        with pytest.raises(ValueError, match="stop_strings is .*; it must be a sequence of strings that are not empty"):
            writer(tokenizer, ["hello"], wrong)
    for wrong in ("hello", []):
        with pytest.raises(ValueError, match="prompts is .*; it must be a sequence of at least one prompt"):
            writer(tokenizer, wrong)
    with pytest.raises(ValueError, match="prompt '' is empty; it must have at least one token"):
        writer(tokenizer, ["hello", ""])
