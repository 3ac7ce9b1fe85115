"""convert: byte-level tokenizers out of a GGUF file against those of Hugging Face's tokenizer.json."""

import json
import pydoc_data.topics
import unicodedata

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from convert.gguf.tokenizer import read_tokenizer
from convert.pre_tokenizers import WORDS

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{SIGNS}"
QWEN2 = rf"{CONTRACTION}|{WORD}|\p{{N}}|{SIGNS}"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SEED_CODER = rf"{CONTRACTION}|{WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
SMALL_LAST = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
CAPITAL_FIRST = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{SMALL_LAST}|{CAPITAL_FIRST}|\p{{N}}|{SLASHES}"
GPT4O = rf"{SMALL_LAST}{CONTRACTION}?|{CAPITAL_FIRST}{CONTRACTION}?|\p{{N}}{{1,3}}|{SLASHES}"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
# Letters with a case, in the blocks that DeepSeek's list has.
LEFT_OUT = [(0x560, 0x588), (0x10C6, 0x10FF), (0x1C80, 0x1C8F), (0x2D00, 0x2D2F), (0xA790, 0xA7FF)]
LEFT_OUT += [(0xAB30, 0xAB6F), (0x10570, 0x105BF), (0x10D50, 0x10D8F), (0x16E40, 0x16EDF), (0x1D400, 0x1DFFF)]
CASED = [
    chr(point)
    for point in range(0x110000)
    if unicodedata.category(chr(point)) in ("Lu", "Ll", "Lt")
    and not any(first <= point <= last for first, last in LEFT_OUT)
]
EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
MARKS = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
DEEPSEEK3 = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LETTERS = {**GPT2, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
NFC = {"type": "NFC"}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def cut(*steps):
    return {
        "type": "Sequence",
        "pretokenizers": [split(step) if isinstance(step, str) else step for step in steps],
    }


FALCON = cut(
    {"type": "Punctuation", "behavior": "Contiguous"},
    GPT2,
    {"type": "Digits", "individual_digits": False},
    "[0-9][0-9][0-9]",
)
# Normalizer, pre-tokenizer and ignore_merges, by `tokenizer.ggml.pre` of the files made from such a tokenizer.json;
# where that of the family is not known, as llama.cpp says it.
HUGGINGFACE = {
    "gpt-2 phi-2 jais trillion mellum a.x-4.0 gigachat granite-docling exaone4": (None, GPT2, False),
    "mpt olmo": (NFC, GPT2, False),
    "smollm starcoder refact codeshell exaone minerva-7b": (None, cut(DIGITS, GPT2), False),
    "command-r": (NFC, cut(DIGITS, GPT2), False),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 smaug-bpe": (None, cut(LLAMA3, LETTERS), True),
    "dbrx glm4 chatglm-bpe": (None, cut(LLAMA3, LETTERS), False),
    "minicpm5": (None, cut(r"\p{N}{1,3}", LLAMA3.replace("{1,3}", "+"), LETTERS), True),
    "tekken": (None, cut(TEKKEN, LETTERS), True),
    "gpt-4o llama4 kanana2": (None, cut(GPT4O, LETTERS), False),
    "qwen2 deepseek-r1-qwen f2llmv2 hunyuan": (NFC, cut(QWEN2, LETTERS), False),
    "megrez kormo": (None, cut(QWEN2, LETTERS), False),
    "deepseek-llm": (
        None,
        cut(r"[\r\n]", rf"\s?[{''.join(CASED)}]+", rf"\s?{MARKS}", r"\s+$", EAST_ASIAN, DIGITS, LETTERS),
        False,
    ),
    "deepseek-coder": (None, cut(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, DIGITS, LETTERS), False),
    "deepseek-v3 hunyuan-dense": (None, cut(*DEEPSEEK3, LETTERS), False),
    "falcon": (None, FALCON, False),
    "bailingmoe bailingmoe2 llada-moe": (None, cut(BAILING, LETTERS), False),
    "seed-coder": (None, cut(SEED_CODER, LETTERS), False),
    "poro-chat bloom gpt3-finnish": (None, cut(BLOOM, LETTERS), False),
    "viking": (None, cut(BLOOM, DIGITS, LETTERS), False),
    "superbpe": (None, cut(r"\p{N}+", r"(?=(\d{3})+(?!\d))", LETTERS), False),
}
STARTS = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 tekken".split()
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
# All letters with a case and all signs of the first blocks, each beside letters and digits.
LETTERS_AND_SIGNS = ["".join(CASED), "".join(f"a{chr(point)}1" for point in range(0x20, 0x600))]


@pytest.fixture(scope="module", params=HUGGINGFACE)
def pair(request):
    """Names, the reference, and by way of GGUF metadata the same tokenizer under the first of the names."""
    names = request.param
    normalizer, words, whole = HUGGINGFACE[names]
    reference = Tokenizer(models.BPE())
    fields = json.loads(reference.to_str())
    fields |= {"normalizer": normalizer, "pre_tokenizer": words, "decoder": {**GPT2, "add_prefix_space": True}}
    reference = Tokenizer.from_str(json.dumps(fields))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    text = pydoc_data.topics.topics["strings"][:10_000]
    reference.train_from_iterator([text, *TEXTS[:-1] * 3], trainer)
    fields = json.loads(reference.to_str())
    vocabulary = fields["model"]["vocab"]
    merges = [" ".join(merge) for merge in fields["model"]["merges"]]
    assert len(merges) > 300
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
        "tokenizer.ggml.pre": names.split()[0],
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
    return names, reference, Tokenizer.from_str(facts.tokenizer)


def test_tokens_are_those_of_hugging_face(pair):
    _, reference, ours = pair
    for text in [*TEXTS, "<|end|>".join(TEXTS), pydoc_data.topics.topics["formatstrings"][:5000]]:
        expected = reference.encode(text)
        found = ours.encode(text)
        assert found.ids == expected.ids, text
        assert ours.decode(found.ids) == reference.decode(expected.ids)


def test_a_word_that_is_a_token_stays_whole_where_it_should(pair):
    names, _, ours = pair
    assert (len(ours.encode(" Việt").ids) == 1) == HUGGINGFACE[names][2]


def test_every_name_cuts_as_its_family_does(pair):
    names, reference, _ = pair
    for pre in names.split():
        assert (WORDS[pre].normalizer() is None) == (reference.normalizer is None)
        assert WORDS[pre].whole == HUGGINGFACE[names][2]
        for text in [*TEXTS, *LETTERS_AND_SIGNS]:
            expected = reference.pre_tokenizer.pre_tokenize_str(text)
            assert WORDS[pre].pre_tokenizer().pre_tokenize_str(text) == expected, (pre, text)


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
        ("gpt-4o", ["HTTPServer's", "ĠIT'S", "Ġ", "123", "45", "/Ċ"]),
        ("deepseek-llm", ["HTTPServer", "'", "s", "ĠIT", "'", "S", "Ġ", "1", "2", "3", "4", "5", "/", "Ċ"]),
        ("deepseek-coder", ["HTTPServer", "'", "s", "ĠIT", "'", "S", "Ġ", "1", "2", "3", "4", "5", "/", "Ċ"]),
        ("deepseek-v3", ["HTTPServer", "'s", "ĠIT", "'S", "Ġ", "123", "45", "/Ċ"]),
        ("falcon", ["HTTPServer", "'", "s", "ĠIT", "'", "S", "Ġ", "123", "45", "/", "Ċ"]),
        ("seed-coder", ["HTTPServer", "'s", "ĠIT", "'S", "Ġ", "1", "2", "3", "4", "5", "/", "Ċ"]),
        ("viking", ["HTTPServer's", "ĠIT'S", "Ġ", "1", "2", "3", "4", "5", "/", "Ċ"]),
        ("superbpe", ["HTTPServer's ĠIT'S Ġ".replace(" ", ""), "12", "345", "/Ċ"]),
    ],
)
def test_words_by_hand(pre, words):
    found = WORDS[pre].pre_tokenizer().pre_tokenize_str("HTTPServer's IT'S 12345/\n")
    assert [word for word, _ in found] == words


def test_every_name_is_compared_with_a_definition_or_by_hand():
    assert set(WORDS) == {*" ".join(HUGGINGFACE).split(), "default"}


@pytest.mark.parametrize("pre", WORDS)
def test_bos_where_the_file_does_not_say(pre):
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": ["<s>", "h", "i"],
        "tokenizer.ggml.token_type": [3, 1, 1], "tokenizer.ggml.bos_token_id": 0,
    }  # fmt: skip
    text = read_tokenizer(metadata, []).tokenizer
    assert text is not None
    assert Tokenizer.from_str(text).encode("hi").tokens == (["<s>"] if pre in STARTS else []) + ["h", "i"]
