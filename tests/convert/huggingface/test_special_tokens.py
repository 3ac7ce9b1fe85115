"""What a tokenizer's files say besides its tokens: names of special ones, and lengths left over from its training."""

import json

import pytest
from checkpoints import tiny_tokenizer, write_huggingface

import msrnn_jax as ms
from convert import convert
from convert.huggingface.export import export

TURNS = [{"role": "user", "content": "hi"}]
NAMES = ("bos_token", "unk_token", "sep_token", "pad_token", "image_token", "odd", "additional_special_tokens")
SEEN = (*NAMES, "tools", "documents")
LENGTHS = {
    "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 5},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    },
}


def write_source(folder, settings):
    """A folder with a tokenizer.json as a training run has left it."""
    tokenizer = {**json.loads(tiny_tokenizer()), **LENGTHS}
    template = "|".join("{{ " + name + " }}" for name in SEEN)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **settings}
    return write_huggingface(folder, files={"tokenizer.json": tokenizer, "tokenizer_config.json": settings})


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"bos_token": "<s>"}, {"bos_token": "<s>", "pad_token": "<pad>"}),  # the padding's own
        ({"pad_token": None, "unk_token": "</s>"}, {"unk_token": "</s>"}),
        ({"sep_token": "<s>", "additional_special_tokens": ["<turn>"]}, {"sep_token": "<s>", "pad_token": "<pad>"}),
        (
            {"image_token": "<s>", "extra_special_tokens": {"odd": "<turn>"}, "pad_token": "</s>"},
            {"image_token": "<s>", "odd": "<turn>", "pad_token": "</s>"},
        ),
    ],
    ids=str,
)
def test_templates_see_every_special_token_of_the_tokenizer(tmp_path, settings, names):
    """Ours, transformers on the source, and transformers on our export."""
    source = write_source(tmp_path / "source", settings)
    ours = convert(source, tmp_path / "ours")
    back = export(ours, tmp_path / "back")
    text = "|".join(names.get(name, "") for name in NAMES) + "|None|None"
    assert ms.load_tokenizer(ours).render(TURNS) == text
    convert(back, tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer_config.json").read_text() == (ours / "tokenizer_config.json").read_text()
    auto = pytest.importorskip("transformers").AutoTokenizer
    for folder in (source, back):
        assert auto.from_pretrained(folder).apply_chat_template(TURNS, tokenize=False) == text


def test_no_token_is_taken_for_the_messages(tmp_path):
    source = write_source(tmp_path / "source", {"extra_special_tokens": {"messages": "<s>", "tools": "<s>"}})
    tokenizer = ms.load_tokenizer(convert(source, tmp_path / "ours"))
    tokenizer.template = "{{ messages[0].content }}{{ tools }}"
    assert tokenizer.render(TURNS) == "hiNone"


def test_lengths_of_a_training_run_act_nowhere(tmp_path):
    """Not on texts, in no export, and not where an earlier version has converted the tokenizer.json as it was."""
    source = write_source(tmp_path / "source", {"bos_token": "<s>"})
    ours = convert(source, tmp_path / "ours")
    carried = json.loads((source / "tokenizer.json").read_text())
    clean = {**carried, "truncation": None, "padding": None}
    assert json.loads((ours / "tokenizer.json").read_text()) == clean
    for version in ("now", "earlier"):
        if version == "earlier":
            (ours / "tokenizer.json").write_text(json.dumps(carried))
        tokenizer = ms.load_tokenizer(ours)
        assert tokenizer.encode("hi" * 60) == [5] * 60 and tokenizer.encode("hi") == [5]
        assert tokenizer.encode_with_ends("hih") == ([5, 3], [2, 3])
        tokenizer.template = "{{ messages[0].content }}"
        assert tokenizer.chat([{"role": "user", "content": "hi" * 60}]) == [5] * 60
        back = export(ours, tmp_path / version)
        assert json.loads((back / "tokenizer.json").read_text()) == clean


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bos_token": 3}, "bos_token is 3; it must be text or null"),
        ({"pad_token": []}, r"pad_token is \[\]; it must be text or null"),
        ({"extra_special_tokens": ["<a>"]}, r"extra_special_tokens is \['<a>'\]; it must hold texts by name"),
        ({"extra_special_tokens": {"a_token": 1}}, "a_token is 1; it must be text or null"),
    ],
    ids=str,
)
def test_settings_that_name_no_tokens_are_refused(tmp_path, settings, message):
    ours = convert(write_source(tmp_path / "source", {}), tmp_path / "ours")
    (ours / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"tokenizer_config.json' cannot be used: {message}"):
        ms.load_tokenizer(ours)
