"""convert: byte-level tokenizers out of a GGUF file against those of Hugging Face's tokenizer.json."""

import json
import pydoc_data.topics

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from convert.gguf_tokenizer import read_tokenizer
from convert.gguf_words import WORDS

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2]}
NFC = {"type": "NFC"}


def split(pattern):
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {**GPT2, "use_regex": False}]}


# Normalizer, pre-tokenizer and ignore_merges, by `tokenizer.ggml.pre` of the files made from such a tokenizer.json.
HUGGINGFACE = {
    "gpt-2": (None, GPT2, False),
    "smollm": (None, DIGITS, False),
    "starcoder": (None, DIGITS, False),
    "refact": (None, DIGITS, False),
    "llama-bpe": (None, split(LLAMA3), True),
    "llama3": (None, split(LLAMA3), True),
    "llama-v3": (None, split(LLAMA3), True),
    "falcon3": (None, split(LLAMA3), True),
    "pixtral": (None, split(LLAMA3), True),
    "smaug-bpe": (None, split(LLAMA3), True),
    "tekken": (None, split(TEKKEN), True),
    "qwen2": (NFC, split(QWEN2), False),
    "deepseek-r1-qwen": (NFC, split(QWEN2), False),
}
TEXTS = [
    "Hello, world! It's 12345 o'clock; we'LL see IF I'm HE'd.",
    "def f(x):\n\treturn  x+1\r\n\r\n\n   # done  \n  ",
    "camelCase HTTPServer XMLHttpRequest aBC ABc/def//\n/usr/lib\n",
    "naïve cafe\u0301 caf\u00e9 \u1e9b\u0323 \u0644\u0651\u0627 हिन्दी ไทย",
    "日本語のテキスト、中文文本。한국어 \u3000 full",
    "١٢٣ ½ Ⅻ 3.14159 1,000,000 2024-12-31",
    "👩‍👩‍👧 🦙🦙 ✅ \u200b zero \u00a0 width",
    "   leading,  inner   and trailing   ",
    "\t\ttabs\n\n\nnewlines\n \n  \n",
    "((([[[{{{ '' \"\" ``` ... !!! ???  <|x|> $5+5=10^~",
    " Việt whole",
]


@pytest.fixture(scope="module", params=HUGGINGFACE)
def pair(request):
    """The name, the reference, and the same tokenizer by way of GGUF metadata."""
    pre = request.param
    normalizer, cut, whole = HUGGINGFACE[pre]
    reference = Tokenizer(models.BPE())
    fields = json.loads(reference.to_str())
    fields |= {"normalizer": normalizer, "pre_tokenizer": cut, "decoder": {**GPT2, "add_prefix_space": True}}
    reference = Tokenizer.from_str(json.dumps(fields))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    text = pydoc_data.topics.topics["strings"][:20_000]
    reference.train_from_iterator([text, *TEXTS[:-1] * 3], trainer)
    fields = json.loads(reference.to_str())
    vocabulary = fields["model"]["vocab"]
    merges = [" ".join(merge) for merge in fields["model"]["merges"]]
    assert len(merges) > 500
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    unreachable = letters.pre_tokenize_str(" Việt")[0][0]
    vocabulary[unreachable] = len(vocabulary)  # a word that no merges make
    vocabulary["<|end|>"] = len(vocabulary)
    fields["model"]["ignore_merges"] = whole
    reference = Tokenizer.from_str(json.dumps(fields))
    reference.add_special_tokens(["<|end|>"])
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token == "<|end|>" else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": vocabulary["<|end|>"],
        "tokenizer.ggml.add_bos_token": False,
    }
    problems = []
    facts = read_tokenizer(metadata, problems)
    assert problems == [] and facts.tokenizer is not None
    assert facts.eos_token_ids == [vocabulary["<|end|>"]]
    return pre, reference, Tokenizer.from_str(facts.tokenizer)


def test_tokens_are_those_of_hugging_face(pair):
    _, reference, ours = pair
    for text in [*TEXTS, "<|end|>".join(TEXTS), pydoc_data.topics.topics["formatstrings"][:5000]]:
        expected = reference.encode(text)
        found = ours.encode(text)
        assert found.ids == expected.ids, text
        assert ours.decode(found.ids) == reference.decode(expected.ids)


def test_a_word_that_is_a_token_stays_whole_where_it_should(pair):
    pre, _, ours = pair
    assert (len(ours.encode(" Việt").ids) == 1) == HUGGINGFACE[pre][2]


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["HTTPServer", "'s", "ĠIT", "'", "S", "Ġ12345", "/", "Ċ"]),
        ("smollm", ["HTTPServer", "'s", "ĠIT", "'", "S", "Ġ", "1", "2", "3", "4", "5", "/", "Ċ"]),
        ("llama-bpe", ["HTTPServer", "'s", "ĠIT", "'S", "Ġ", "123", "45", "/Ċ"]),
        ("smaug-bpe", ["HTTPServer", "'s", "ĠIT", "'S", "Ġ", "123", "45", "/Ċ"]),
        ("qwen2", ["HTTPServer", "'s", "ĠIT", "'S", "Ġ", "1", "2", "3", "4", "5", "/Ċ"]),
        ("tekken", ["HTTPServer", "'s", "ĠIT", "'S", "Ġ", "1", "2", "3", "4", "5", "/Ċ"]),
        ("default", ["HTTPServer", "'", "s", "ĠIT", "'", "S", "Ġ", "123", "45", "/", "Ċ"]),
    ],
)
def test_words_by_hand(pre, words):
    found = WORDS[pre].pre_tokenizer().pre_tokenize_str("HTTPServer's IT'S 12345/\n")
    assert [word for word, _ in found] == words


def test_capitals_part_words_in_tekken_alone():
    for pre, cut in WORDS.items():
        found = [word for word, _ in cut.pre_tokenizer().pre_tokenize_str("camelCase")]
        assert found == (["camel", "Case"] if pre == "tekken" else ["camelCase"]), pre


def test_contractions_part_words_whatever_their_case():
    for pre, cut in WORDS.items():
        found = [word for word, _ in cut.pre_tokenizer().pre_tokenize_str("we'LLama")]
        caseless = cut.cuts and pre not in ("default", "smollm", "starcoder", "refact", "tekken")
        assert (found == ["we", "'LL", "ama"]) == bool(caseless), pre


def test_every_name_is_compared_with_a_definition_or_by_hand():
    assert set(WORDS) == {*HUGGINGFACE, "default"}


@pytest.mark.parametrize("pre", WORDS)
def test_bos_where_the_file_does_not_say(pre):
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": ["<s>", "h", "i"],
        "tokenizer.ggml.token_type": [3, 1, 1], "tokenizer.ggml.bos_token_id": 0,
    }  # fmt: skip
    text = read_tokenizer(metadata, []).tokenizer
    assert text is not None
    starts = pre in ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")
    assert Tokenizer.from_str(text).encode("hi").tokens == (["<s>"] if starts else []) + ["h", "i"]
