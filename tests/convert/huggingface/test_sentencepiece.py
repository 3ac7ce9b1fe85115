"""SentencePiece tokenizers without a tokenizer.json: the tokens that SentencePiece itself and transformers make."""

import io
import json
import math
import pathlib
import pickle
import random
import sys
import unicodedata

import numpy as np
import pytest
from checkpoints import huggingface_config, make_weights, to_huggingface, write_huggingface
from tokenizers import Tokenizer

import msrnn_jax as ms
from convert import convert
from convert.folder import Folder
from convert.huggingface.tokenizer import read_tokenizer
from convert.problems import refuse
from msrnn_jax.text.tokenizer import Tokenizer as TextTokenizer

sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install 'msrnn_jax[test]'")

ROOT = pathlib.Path(__file__).parents[3]
SIZE = 420
# As LLaMA's own was trained.
LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}
TEXTS = [
    "",
    "hello world",
    " leading",
    "   three",
    "inside   three",
    "trailing  ",
    " ",
    "a\nb\r\n\n\tc",
    "Größe, naïve, e\u0301",
    "日本語 and 한국어",
    "🙂🙃 \u200d\ufe0f",
    "\u00a0no-break\u3000wide",
    "▁written ▁",
    "2024: 1,234.5",
    "The state has a fixed size, so everything compiles once.",
    "x" * 300,
    "\x00\x07",
    "def f(x):\n    return x  # four spaces\n",
]
ACCENTS = [  # by themselves, several on a letter, on letters that stand for others, and halves of letters
    *(unicodedata.normalize("NFD", text) for text in ("Tiếng Việt đẹp, thế giới ươ", "한국어 각", "がパ", "ṩ Ǻ ᾀ")),
    "a\r\nb",
    "ｶﾞｷﾞ ﾊﾟ",
    "x\u3000\u0301y …\u0302 ①\u0301",
]
SPECIAL = ["<s>", "<s>hello", "a<s>b", "a </s> b", "<unk>x", "<s>[a] </s><s>b"]


def train(model_type="bpe", vocab_size=SIZE, byte_fallback=True, **options):
    """A SentencePiece model of this project's own words."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ROOT / "README.md").read_text(encoding="utf-8").splitlines()),
        model_writer=made,
        model_type=model_type,
        vocab_size=vocab_size,
        byte_fallback=byte_fallback,
        minloglevel=2,
        **{**LLAMA, **options},
    )
    return made.getvalue()


@pytest.fixture(scope="module")
def model():
    return train()


def write(folder, model, settings=None, **files):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def read(folder, **config):
    problems = []
    facts = read_tokenizer(Folder(folder), {"vocab_size": SIZE, **config}, problems)
    refuse(folder, problems)
    assert facts.tokenizer is not None
    return Tokenizer.from_str(facts.tokenizer), facts


def refusal(folder, **config):
    """The one line on a tokenizer that is refused."""
    with pytest.raises(ValueError) as caught:
        read(folder, **config)
    first, line, *rest = str(caught.value).split("\n  ")
    assert not rest and "\n" not in line
    return line


def random_texts(count=300):
    """Words, bytes, spaces and letters of all kinds, put together at random."""
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    generator = random.Random(3)
    odd = [" ", "  ", "\n", "\t", "é", "語", "🙂", "\u00a0", "1", "-", "▁"]
    pieces = lambda: generator.choice(odd) if generator.random() < 0.4 else generator.choice(words)  # noqa: E731
    return ["".join(pieces() for _ in range(generator.randrange(1, 12))) for _ in range(count)]


def check_against_sentencepiece(tokenizer, model, texts):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text), repr(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == theirs.decode(ids), repr(text)


def test_tokens_are_those_of_sentencepiece(tmp_path, model):
    tokenizer, _ = read(write(tmp_path, model))
    check_against_sentencepiece(tokenizer, model, TEXTS + random_texts())


def test_bytes_are_decoded_as_by_sentencepiece(tmp_path, model):
    """Characters, halves of them and bytes of none, among words."""
    theirs, generator = sentencepiece.SentencePieceProcessor(model_proto=model), random.Random(5)
    tokenizer = TextTokenizer(read(write(tmp_path, model))[0], bos=1, stop=[2], template=None)
    bytewise = [theirs.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    odd = [0xE4, 0xBD, 0xA0, 0xED, 0xF4, 0x8F, 0x90, 0xC0, 0xE0, 0xF0, 0xFF]
    for _ in range(1000):
        ids = [generator.randrange(300, SIZE)]
        for _ in range(generator.randrange(1, 8)):
            raw = generator.choice("é你好🙂▁\ufffd").encode()[: generator.randrange(1, 5)]
            raw = raw if generator.random() < 0.5 else bytes([generator.choice([generator.randrange(256), *odd])])
            ids += [bytewise[byte] for byte in raw] if generator.random() < 0.8 else [generator.randrange(3, SIZE)]
        assert tokenizer.decode(ids) == theirs.decode(ids), ids


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nfkc"},
        {"normalization_rule_name": "nfkc_cf"},
        {"add_dummy_prefix": False},
    ],
    ids=str,
)
def test_texts_are_cleaned_as_the_model_says(tmp_path, options):
    model = train(**options)
    tokenizer, _ = read(write(tmp_path, model))
    texts = [text for text in TEXTS + random_texts() if "▁" not in text]  # at the ends, theirs takes it for a space
    check_against_sentencepiece(tokenizer, model, texts + ACCENTS)


def test_a_rule_of_somebodys_own_is_refused(tmp_path):
    (tmp_path / "rule.tsv").write_text("61 62\t63\n")  # "ab" to "c"
    own = train(normalization_rule_tsv=str(tmp_path / "rule.tsv"))
    assert "normalization_rule_name 'user_defined' (must be one of identity, nfkc" in refusal(write(tmp_path, own))


@pytest.mark.parametrize("options", [{}, {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}])
def test_the_models_own_user_defined_tokens_are_found_as_by_sentencepiece(tmp_path, options):
    """After spaces are put in, and none comes after them; one that holds a space itself is never found."""
    model = train(user_defined_symbols=["<sep>", "▁▁", "(", "th", "\\d|.", "the "], **options)
    tokenizer, _ = read(write(tmp_path, model))
    texts = ["a<sep>b", "<sep> b", " <sep>x", "a  b", "   <sep>   (<sep>", "the (th) the th", "\\d|.x", "\n(x\n th"]
    check_against_sentencepiece(tokenizer, model, [*texts, *(text for text in random_texts() if "▁" not in text)])


def test_a_token_that_is_added_to_be_found_in_cleaned_text_is_found_within_words(tmp_path, model):
    """As `add_tokens` of transformers writes it."""
    added = {"content": "<turn>", "special": False, "normalized": True}
    tokenizer, _ = read(write(tmp_path, model, {"added_tokens_decoder": {SIZE: added}}), vocab_size=SIZE + 1)
    assert SIZE in tokenizer.encode("a<turn>b").ids and tokenizer.encode("a b<turn>").ids[-1] == SIZE


@pytest.mark.parametrize(("add_bos", "add_eos"), [(None, None), (True, False), (False, True), (None, True)])
def test_ends(tmp_path, model, add_bos, add_eos):
    stated = {"add_bos_token": add_bos, "add_eos_token": add_eos}
    settings = {key: value for key, value in stated.items() if value is not None}
    tokenizer, facts = read(write(tmp_path, model, settings))
    body = tokenizer.encode("hello", add_special_tokens=False).ids
    before, after = [] if add_bos is False else [1], [2] if add_eos else []
    assert tokenizer.encode("hello").ids == before + body + after
    assert (facts.bos_token_id, facts.eos_token_ids) == (1, [2])


def test_other_names_of_the_ends(tmp_path):
    model = train(bos_piece="<start>", eos_piece="<end>", user_defined_symbols=["<turn>"])
    tokenizer, facts = read(write(tmp_path / "own", model))
    assert tokenizer.encode("a").tokens[0] == "<start>" and facts.eos_token_ids == [2]
    turn = tokenizer.token_to_id("<turn>")
    tokenizer, facts = read(
        write(tmp_path / "stated", model, {"bos_token": "<end>", "eos_token": {"content": "<turn>"}})
    )
    assert tokenizer.encode("a").tokens[0] == "<end>" and (facts.bos_token_id, facts.eos_token_ids) == (2, [turn])
    none = train(bos_id=-1, eos_id=-1)
    tokenizer, facts = read(write(tmp_path / "none", none))
    assert (facts.bos_token_id, facts.eos_token_ids) == (None, [])
    assert tokenizer.encode("hello").ids == sentencepiece.SentencePieceProcessor(model_proto=none).encode("hello")


def theirs(folder, **options):
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaTokenizer.from_pretrained(folder, local_files_only=True, **options)


@pytest.mark.parametrize(("prefix", "add_eos"), [(None, True), (True, False), (False, False)])
def test_without_legacy_all_is_as_in_transformers(tmp_path, model, prefix, add_eos):
    settings = {"add_bos_token": True, "add_eos_token": add_eos, "legacy": False, "add_prefix_space": prefix}
    folder = write(tmp_path, model, {**settings, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    ours, other = read(folder)[0], theirs(folder)
    for text in TEXTS + SPECIAL + random_texts(100):
        ids = ours.encode(text).ids
        assert ids == other(text)["input_ids"], repr(text)
        assert ours.decode(ids, skip_special_tokens=True) == other.decode(ids, skip_special_tokens=True), repr(text)


@pytest.mark.parametrize("legacy", [True, None])
def test_with_legacy_it_is_as_in_transformers_but_for_texts_that_start_with_a_space(tmp_path, model, legacy):
    """Those, SentencePiece puts another space before; transformers 5 does not, though transformers 4 did."""
    folder = write(tmp_path, model, {"add_bos_token": True, "legacy": legacy})
    ours, other = read(folder)[0], theirs(folder, legacy=True)
    texts = TEXTS + SPECIAL + random_texts(100)
    assert any(text.startswith(" ") for text in texts)
    for text in texts:
        parts = text.replace("</s>", "<s>").replace("<unk>", "<s>").split("<s>")
        if not any(part.startswith((" ", "▁")) for part in parts):
            assert ours.encode(text).ids == other(text)["input_ids"], repr(text)
    space = sentencepiece.SentencePieceProcessor(model_proto=model).encode(" hello")
    assert ours.encode(" hello").ids == [1, *space] != other(" hello")["input_ids"]


def test_added_tokens(tmp_path, model):
    settings = {
        "added_tokens_decoder": {
            "1": {"content": "<s>", "special": True, "normalized": False},
            str(SIZE): {"content": "<|turn|>", "special": True, "rstrip": True, "normalized": False},
            str(SIZE + 1): {"content": "<|word|>", "special": False, "normalized": False},
        },
        "eos_token": "<|turn|>",
        "pad_token": "<pad>",  # nowhere: gets the next number
        "additional_special_tokens": ["<|word|>"],
    }
    folder = write(tmp_path / "new", model, {**settings, "legacy": False})
    tokenizer, facts = read(folder, vocab_size=SIZE + 3)
    other = theirs(folder)
    for text in ("a<|turn|>  b<|word|> c", "<pad>x", "<|turn|>", "x <|word|>"):
        assert (
            tokenizer.encode(text, add_special_tokens=False).ids == other(text, add_special_tokens=False)["input_ids"]
        )
    assert facts.eos_token_ids == [SIZE] and tokenizer.token_to_id("<pad>") == SIZE + 2
    assert tokenizer.decode([SIZE, SIZE + 1]) == other.decode([SIZE, SIZE + 1], skip_special_tokens=True)
    old = write(tmp_path / "old", model, {}, added_tokens={"<|x|>": SIZE}, special_tokens_map={"eos_token": "<|x|>"})
    tokenizer, facts = read(old, vocab_size=SIZE + 1)
    assert tokenizer.encode("a<|x|>").ids[-1] == SIZE and facts.eos_token_ids == [SIZE]


def test_added_tokens_without_a_row_of_the_embedding_are_text(tmp_path, model):
    folder = write(tmp_path, model, {"pad_token": "[PAD]"}, added_tokens={"[PAD]": SIZE})
    tokenizer, _ = read(folder)
    assert tokenizer.token_to_id("[PAD]") is None and max(tokenizer.encode("[PAD]").ids) < SIZE


def test_what_is_refused(tmp_path, model):
    cases = [
        (model, {"tokenizer_class": "OwnTokenizer"}, "tokenizer_class 'OwnTokenizer' (beside tokenizer.model"),
        (model, {"auto_map": {"AutoTokenizer": ["own.Own", None]}}, "auto_map names code, which is never run"),
        (model, {"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder 'x' is"),
        (model, {"added_tokens_decoder": 3}, "added_tokens_decoder '' is 3"),
        (train("unigram"), {}, "model_type 'unigram' (must be 'bpe')"),
        (train(byte_fallback=False), {}, "byte_fallback False (must be True)"),
    ]
    for number, (content, settings, message) in enumerate(cases):
        assert message in refusal(write(tmp_path / str(number), content, settings))
    folder = write(tmp_path / "gap", model, None, added_tokens={"x": SIZE + 7})
    assert f"added token 'x' has id {SIZE + 7}, and nothing has id {SIZE}" in refusal(folder, vocab_size=SIZE + 9)
    assert f"holds {SIZE} tokens, more than vocab_size (7)" in refusal(write(tmp_path / "small", model), vocab_size=7)


def test_files_that_are_no_model(tmp_path, model):
    tiktoken = b"".join(b"%s %d\n" % (token, number) for number, token in enumerate([b"IQ==", b"Ig==", b"Iw=="]))
    cases = {
        "empty": (b"", "is not a whole SentencePiece model: it is empty"),
        "pickle": (pickle.dumps({"model": [1.5]}), "it is damaged, or something else"),
        "random": (random.Random(0).randbytes(5000), "it is damaged, or something else"),
        "text": (b"not a model", "it is damaged, or something else"),
        "tiktoken": (tiktoken, "it is a tiktoken file"),
    }
    for name, (content, message) in cases.items():
        line = refusal(write(tmp_path / name, content))
        assert line.startswith("tokenizer.model is not a") and message in line


def test_a_model_that_is_cut_off_is_never_taken_for_whole(tmp_path, model):
    for length in [*range(1, len(model) - 80, 397), len(model) - 80]:
        assert "SentencePiece model (" in refusal(write(tmp_path, model[:length]))


def test_a_damaged_model_is_refused_or_read_in_no_time(tmp_path, model):
    generator = random.Random(5)
    refused = 0
    for _ in range(60):
        content = bytearray(model)
        for _ in range(generator.choice([1, 3, 30])):
            content[generator.randrange(len(content))] = generator.randrange(256)
        try:
            read(write(tmp_path, bytes(content)))
        except ValueError as error:
            assert len(str(error).splitlines()) == 2
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("what", ["long", "score", "unknown", "cut"])
def test_nonsense_in_a_model(tmp_path, model, what):
    from sentencepiece import sentencepiece_model_pb2

    content = sentencepiece_model_pb2.ModelProto.FromString(model)
    if what == "long":
        content.pieces[300].piece = "ab" * 10**6
    elif what == "score":
        content.pieces[300].score = math.nan
    elif what == "unknown":
        content.trainer_spec.unk_id = SIZE
    else:  # off where one part ends and the next begins
        content.ClearField("normalizer_spec")
    messages = {
        "long": "token 300 has 2000000 letters",
        "score": "and score nan",
        "cut": "is not a whole SentencePiece model",
        "unknown": f"unk_id is {SIZE}; it must be below {SIZE}",
    }
    assert messages[what] in refusal(write(tmp_path, content.SerializeToString()))


def test_without_the_package_a_line_says_what_to_install(tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    line = refusal(write(tmp_path, model))
    assert "the package 'sentencepiece' is missing" in line and "pip install sentencepiece" in line


def test_a_whole_checkpoint(tmp_path, model):
    tensors = to_huggingface(make_weights())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.ones((SIZE, tensors[name].shape[1]), np.float32)
    source = write_huggingface(tmp_path / "source", config=huggingface_config(vocab_size=SIZE), tensors=tensors)
    write(source, model, {"chat_template": "{{ bos_token }}{{ messages[0].content }}"})
    converted = convert(source, tmp_path / "ours")
    tokenizer = ms.load_tokenizer(converted)
    own = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokenizer.encode("the state") == [1, *own.encode("the state")] and tokenizer.bos == 1
    assert tokenizer.stop == (2,)
    assert "tokenizer.model" in json.loads((converted / "source.json").read_text())["files"]


@pytest.mark.parametrize(
    ("settings", "special"),
    [
        ({}, {}),
        ({"bos_token": None}, {}),
        ({"bos_token": "</s>", "pad_token": "<s>", "image_token": "<unk>", "add_bos_token": False}, {}),
        ({"tokenizer_class": "CodeLlamaTokenizer"}, {}),
        ({"eos_token": "<s>"}, {"eos_token": "<unk>", "pad_token": {"content": "</s>"}}),  # the map overrules,
        ({"eos_token": "<s>", "added_tokens_decoder": {}}, {"eos_token": "<unk>"}),  # unless it need not be read
    ],
    ids=str,
)
@pytest.mark.parametrize("made", [False, True], ids=["tokenizer.model", "tokenizer.json"])
def test_templates_and_ends_are_those_of_transformers(tmp_path, model, settings, special, made):
    auto = pytest.importorskip("transformers").AutoTokenizer
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "image_token", "middle_token", "fill_token")
    template = "{{ " + " ~ '|' ~ ".join(names) + " }}"
    settings = {"tokenizer_class": "LlamaTokenizer", "chat_template": template, **settings}
    folder = write(tmp_path, model, settings, config={"model_type": "llama"}, special_tokens_map=special)
    if made:
        (folder / "tokenizer.json").write_text(read(folder)[1].tokenizer)
    facts = read(folder, model_type="llama")[1]
    other = auto.from_pretrained(folder)
    text = other.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert "|".join(facts.names.get(name, "") for name in names) == text
    assert facts.eos_token_ids == [other.eos_token_id]


def test_tokenizer_json_counts_more_than_the_model_and_than_add_bos_token(tmp_path, model):
    """What transformers 5 does too: with a tokenizer.json, `add_bos_token` is not looked at."""
    made, facts = read(write(tmp_path / "made", model, {"add_bos_token": False}))
    for add_bos in (True, False):
        folder = write(tmp_path / str(add_bos), b"damaged", {"add_bos_token": add_bos, "legacy": False})
        (folder / "tokenizer.json").write_text(facts.tokenizer)
        ids = read(folder)[0].encode("hello").ids
        assert ids == made.encode("hello").ids == theirs(folder)("hello")["input_ids"]
