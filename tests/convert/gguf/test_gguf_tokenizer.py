"""convert: the tokenizer in a GGUF file, and what is wrong with it."""

import json
import math
import time

import pytest
from checkpoints import BYTE_LEVEL, PIECES, SENTENCEPIECE, V, write_gguf, write_huggingface
from converted import refusal
from tokenizers import Tokenizer

from convert import convert as run
from convert.gguf.tokenizer import read_tokenizer
from convert.pre_tokenizers import WORDS


def read(settings, pre=None):
    problems = []
    facts = read_tokenizer(settings, problems, pre)
    assert problems == []
    return Tokenizer.from_str(facts.tokenizer), (facts.bos_token_id, facts.eos_token_ids)


def refused(settings, pre=None):
    """The lines on a tokenizer that is refused."""
    problems = []
    read_tokenizer(settings, problems, pre)
    return problems


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [
        ("smollm", ["<start>", "h", "o", "w", "Ġhi", "Ġ", "1", "2", "3", "!", "hi"]),
        ("gpt-2", ["<start>", "h", "o", "w", "Ġhi", "Ġ", "123", "!", "hi"]),
        ("default", ["<start>", "h", "o", "w", "Ġhi", "Ġ", "123", "!", "hi"]),
        ("llama-bpe", ["<start>", "how", "Ġhi", "Ġ", "123", "!", "hi"]),  # "how" is whole though no merge makes it
    ],
)
def test_byte_level_tokenizers(pre, tokens):
    settings = {**BYTE_LEVEL, "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False}
    tokenizer, ids = read(settings)
    text = "<start>how hi 123!hi"
    found = tokenizer.encode(text)
    assert found.tokens == tokens
    assert found.ids == [settings["tokenizer.ggml.tokens"].index(token) for token in tokens]
    assert tokenizer.decode(found.ids, skip_special_tokens=False) == text
    assert tokenizer.decode(found.ids) == "how hi 123!hi"
    assert ids == (1, [0])


def test_user_defined_tokens_are_whole_and_not_special():
    tokenizer, _ = read(BYTE_LEVEL)
    ids = tokenizer.encode("hi<note>hi").ids
    assert [tokenizer.id_to_token(token) for token in ids] == ["hi", "<note>", "hi"]
    assert tokenizer.decode(ids) == "hi<note>hi"


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, ["hi"]),
        ({"tokenizer.ggml.add_bos_token": True}, ["<start>", "hi"]),
        ({"tokenizer.ggml.add_eos_token": True}, ["hi", "<end>"]),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, ["<start>", "hi", "<end>"]),
        ({"tokenizer.ggml.pre": "llama-bpe"}, ["<start>", "hi"]),
    ],
    ids=repr,
)
def test_ends_of_a_text_are_added_as_the_file_says(settings, tokens):
    tokenizer, _ = read({**BYTE_LEVEL, **settings})
    assert tokenizer.encode("hi").tokens == tokens
    assert tokenizer.encode("hi", add_special_tokens=False).tokens == ["hi"]


@pytest.mark.parametrize(("eot", "eom", "stops"), [(2, 3, [0, 2, 3]), (2, 0, [0, 2])])
def test_all_that_end_a_turn_are_joined(eot, eom, stops):
    settings = {**BYTE_LEVEL, "tokenizer.ggml.eot_token_id": eot, "tokenizer.ggml.eom_token_id": eom}
    assert read(settings)[1] == (1, stops)


@pytest.mark.parametrize("kind", [1, 3, 4])  # normal, control, user-defined
@pytest.mark.parametrize("end", ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>"])
def test_ends_of_a_turn_are_known_by_their_spelling(end, kind):
    settings = {
        **BYTE_LEVEL,
        "tokenizer.ggml.tokens": [*BYTE_LEVEL["tokenizer.ggml.tokens"], end, "<|im_start|>"],
        "tokenizer.ggml.token_type": [*BYTE_LEVEL["tokenizer.ggml.token_type"], kind, 3],
    }
    tokenizer, ids = read(settings)
    assert ids == (1, [0, 19])
    found = tokenizer.encode(f"hi{end}hi")
    assert found.tokens == ["hi", end, "hi"]
    assert tokenizer.decode(found.ids) == "hihi"  # special, whatever the file says


@pytest.mark.parametrize(
    ("base", "ids"), [(BYTE_LEVEL, (None, [])), (SENTENCEPIECE, (1, [2]))], ids=["byte-level", "sentencepiece"]
)
def test_an_id_of_minus_one_is_no_id(base, ids):
    none = dict.fromkeys((f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "padding")), 2**32 - 1)
    assert read({**base, **none})[1] == ids
    assert read_tokenizer({**base, **dict.fromkeys(none, -1)}, []).bos_token_id == ids[0]


def test_empty_tokens_are_no_token_twice():
    settings = {
        **BYTE_LEVEL,
        "tokenizer.ggml.tokens": [*BYTE_LEVEL["tokenizer.ggml.tokens"], "", ""],
        "tokenizer.ggml.token_type": [*BYTE_LEVEL["tokenizer.ggml.token_type"], 1, 1],
    }
    tokenizer, _ = read(settings)
    assert tokenizer.get_vocab_size() == 21
    assert tokenizer.encode("hi").tokens == ["hi"]


@pytest.mark.parametrize("stated", [None, "gemma4", "smollm"])
def test_the_caller_may_say_how_words_are_cut(stated):
    settings = {**BYTE_LEVEL, "tokenizer.ggml.pre": stated}
    assert read(settings, "gpt-2")[0].encode("hi 123").tokens == ["hi", "Ġ", "123"]


def test_a_file_that_does_not_say_how_words_are_cut_is_refused_with_the_option_that_does(tmp_path):
    first, *rest = refused({key: value for key, value in BYTE_LEVEL.items() if key != "tokenizer.ggml.pre"})
    assert "tokenizer.ggml.pre is missing" in first and "--pre NAME" in first
    assert {name for line in rest for name in line.strip(" ,").split(", ")} == set(WORDS)
    source = write_gguf(tmp_path / "model.gguf", tokenizer=BYTE_LEVEL)
    assert "pre is 'gpt3'; it must be one of default, gpt-2," in refusal(source, tmp_path / "ours", pre="gpt3")


def test_a_pre_is_refused_where_nothing_is_cut_by_one(tmp_path):
    text = "pre is 'qwen2', but tokenizer.ggml.model is 'llama'; only gpt2 has a pre"
    assert refused(SENTENCEPIECE, "qwen2") == [text]
    folder = write_huggingface(tmp_path / "folder")
    assert f"pre is 'qwen2', but {folder} is no .gguf file" in refusal(folder, tmp_path / "ours", pre="qwen2")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("abc", ["<s>", "▁abc"]),  # bc first, which scores best, then a bc
        ("ab a", ["<s>", "▁", "ab", "▁a"]),  # ab scores above ▁a
        ("é\n", ["<s>", "▁", "<0xC3>", "<0xA9>", "<0x0A>"]),
        ("xx", ["<s>", "▁", "<unk>"]),  # fused
        ("a<turn>b", ["<s>", "▁a", "<turn>", "▁", "b"]),
        ("  b", ["<s>", "▁", "▁", "▁", "b"]),
    ],
)
def test_sentencepiece_tokenizers(text, tokens):
    tokenizer, ids = read(SENTENCEPIECE)
    found = tokenizer.encode(text)
    assert found.tokens == tokens
    assert found.ids == [list(PIECES).index(token) for token in tokens]
    if "<unk>" not in tokens and "<turn>" not in tokens:
        assert tokenizer.decode(found.ids) == text
    assert ids == (1, [2])


def test_sentencepiece_without_a_leading_space():
    settings = {**SENTENCEPIECE, "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    tokenizer, _ = read(settings)
    assert tokenizer.encode("abc a").tokens == ["abc", "▁a"]
    assert tokenizer.decode(tokenizer.encode(" abc a").ids) == " abc a"


def test_control_tokens_are_not_merged_from_text():
    merges = json.loads(read(SENTENCEPIECE)[0].to_str())["model"]["merges"]
    order = ["b c", "a b", "ab c", "a bc", "▁ a", "▁a bc", "▁ abc"]
    assert [" ".join(merge) for merge in merges] == order


def test_a_gguf_without_a_tokenizer_is_converted_and_that_is_said(tmp_path):
    said = []
    settings = {"tokenizer.chat_template": "{{ messages }}"}
    ours = run(write_gguf(tmp_path / "model.gguf", tokenizer=settings), tmp_path / "ours", report=said.append)
    assert sum("holds no tokenizer" in line for line in said) == 1
    assert not (ours / "tokenizer.json").exists()
    assert (ours / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize(
    ("base", "settings", "text"),
    [
        (BYTE_LEVEL, {"tokenizer.ggml.pre": "gemma4"}, "pre is 'gemma4', which is unknown here"),
        (BYTE_LEVEL, {"tokenizer.ggml.merges": ["h o"]}, "merge 'h o' does not join two tokens into a third"),
        (BYTE_LEVEL, {"tokenizer.ggml.merges": ["h"]}, "merge 'h' does not join two tokens into a third"),
        (BYTE_LEVEL, {"tokenizer.ggml.eos_token_id": 99}, "tokenizer.ggml.eos_token_id is 99; it must be below 19"),
        (BYTE_LEVEL, {"tokenizer.ggml.tokens": [*"abbcdefghijklmnopqr"]}, "the token 'b' is there more than once"),
        (BYTE_LEVEL, {"tokenizer.ggml.token_type": [1, 2]}, "tokenizer.ggml: 19 tokens and 2 types of tokens"),
        (SENTENCEPIECE, {"tokenizer.ggml.scores": [1.0]}, "18 tokens and 1 scores"),
        (
            SENTENCEPIECE,
            {"tokenizer.ggml.scores": ["a"] * 18},
            "scores holds 'a' at 0; it must hold values of type float",
        ),
        (SENTENCEPIECE, {"tokenizer.ggml.scores": [math.nan] * 18}, "scores holds a score that is not a number"),
        (SENTENCEPIECE, {"tokenizer.ggml.unknown_token_id": 18}, "unknown_token_id is 18; it must be below 18"),
        (BYTE_LEVEL, {"tokenizer.ggml.model": 7}, "tokenizer.ggml.model 7 (must be one of gpt2, llama)"),
        (BYTE_LEVEL, {"tokenizer.ggml.pre": 3}, "tokenizer.ggml.pre is 3; it must be text"),
        (BYTE_LEVEL, {"tokenizer.ggml.tokens": "abc"}, "tokenizer.ggml.tokens is 'abc'; it must be a list"),
        (BYTE_LEVEL, {"tokenizer.ggml.tokens": [1, 2]}, "tokens holds 1 at 0; it must hold values of type str only"),
        (BYTE_LEVEL, {"tokenizer.ggml.token_type": [True] * 19}, "token_type holds True at 0; it must hold values of"),
        (BYTE_LEVEL, {"tokenizer.ggml.bos_token_id": True}, "bos_token_id is True; it must be below 19"),
        (BYTE_LEVEL, {"tokenizer.ggml.eot_token_id": 1.0}, "eot_token_id is 1.0; it must be below 19"),
        (BYTE_LEVEL, {"tokenizer.ggml.add_bos_token": 1}, "add_bos_token is 1; it must be true or false"),
        (SENTENCEPIECE, {"tokenizer.ggml.add_space_prefix": 2}, "add_space_prefix is 2; it must be true or false"),
        (BYTE_LEVEL, {"tokenizer.chat_template": 7}, "tokenizer.chat_template is 7; it must be text"),
    ],
    ids=repr,
)
def test_what_a_gguf_tokenizer_is_refused_for(base, settings, text):
    assert any(text in line for line in refused({**base, **settings}))


def test_all_that_is_wrong_with_a_tokenizer_is_told_at_once():
    damaged = {
        **BYTE_LEVEL,
        "tokenizer.chat_template": 7,
        "tokenizer.ggml.merges": "x",
        "tokenizer.ggml.bos_token_id": -2,
        "tokenizer.ggml.eos_token_id": False,
        "tokenizer.ggml.add_bos_token": 0,
    }
    problems = []
    assert read_tokenizer(damaged, problems).tokenizer is None
    assert problems == [
        "tokenizer.chat_template is 7; it must be text",
        "tokenizer.ggml.bos_token_id is -2; it must be below 19, the number of tokens",
        "tokenizer.ggml.eos_token_id is False; it must be below 19, the number of tokens",
        "tokenizer.ggml.add_bos_token is 0; it must be true or false",
        "tokenizer.ggml.merges is 'x'; it must be a list",
    ]


def test_an_absurdly_long_piece_costs_little():
    pieces = {**PIECES, "ab" * 100_000: (1, 0.0)}
    settings = {
        **SENTENCEPIECE,
        "tokenizer.ggml.tokens": list(pieces),
        "tokenizer.ggml.token_type": [kind for kind, _ in pieces.values()],
        "tokenizer.ggml.scores": [score for _, score in pieces.values()],
    }
    start = time.perf_counter()
    problems = []
    assert read_tokenizer(settings, problems).tokenizer is not None and problems == []
    assert time.perf_counter() - start < 2  # some hundredths; minutes if all of its splits were tried


def test_more_tokens_than_the_embedding_has_are_refused(tmp_path):
    tokens = {"tokenizer.ggml.tokens": [f"t{number}" for number in range(V + 1)]}
    settings = {**BYTE_LEVEL, **tokens, "tokenizer.ggml.token_type": [1] * (V + 1), "tokenizer.ggml.merges": []}
    source = write_gguf(tmp_path / "model.gguf", tokenizer=settings)
    text = refusal(source, tmp_path / "ours")
    assert "tokenizer.ggml.tokens holds 54 tokens, more than vocab_size (53)" in text


def test_a_bos_that_must_be_added_must_be_there():
    settings = {**BYTE_LEVEL, "tokenizer.ggml.add_bos_token": True}
    del settings["tokenizer.ggml.bos_token_id"]
    assert refused(settings) == ["tokenizer.ggml.bos_token_id is missing, yet that token is added"]
