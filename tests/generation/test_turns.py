"""A turn is what the whole conversation would be: the tokens that transformers makes of all its messages."""

import itertools

import jax
import numpy as np
import pytest
import tiny
from forced import force
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

import msrnn_jax as ms
import msrnn_jax.generation.conversation as conversation_module
from msrnn_jax.generation.conversation import (
    ChatModel,
    answer,
    begin_conversation,
    change_policy,
    load_conversation,
    save_conversation,
)
from msrnn_jax.text.tokenizer import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<|U|>", "<|A|>"]
CONFIG = tiny.SHALLOW.replace(vocab_size=384)
ROOM = 640


def of(user: str, assistant: str, more: str = "", *, before: str = "", system: str = "") -> str:
    """A template that puts turns one after another."""
    return (
        before + "{% for m in messages %}{% if m.role == 'user' %}" + user + "{% elif m.role == 'system' %}" + system
        + "{% else %}" + assistant + "{% endif %}{% endfor %}{% if add_generation_prompt %}" + more + "{% endif %}"
    )  # fmt: skip


HEADERS = "<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>"
CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
SPOKEN = "{% set c = m.content.split('</think>')[-1] %}"  # an answer without its thinking
TEMPLATES = {  # each with what ends an answer
    "brackets": ("</s>", of("<s>[INST] {{ m.content.strip() }} [/INST]", " {{ m.content.strip() }} </s>")),
    "headers": ("<|eot|>", of(HEADERS, HEADERS, "<|start|>assistant<|end|>\n\n", before="<s>", system=HEADERS)),
    "chatml": ("<|im_end|>", of(CHATML, CHATML, "<|im_start|>assistant\n", system=CHATML)),
    "chatml, thinking dropped": (
        "<|im_end|>",
        of(CHATML, SPOKEN + "<|im_start|>assistant\n{{ c.lstrip('\n') }}<|im_end|>\n", "<|im_start|>assistant\n"),
    ),
    "thinking begun": ("</s>", of("<|U|>{{ m.content }}", SPOKEN + "<|A|>{{ c }}</s>", "<|A|><think>\n", before="<s>")),
    "system in the last": (
        "</s>",
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.last %}{{ messages[0].content }}\n\n"
        "{% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}",
    ),
    "plain words": ("</s>", of("USER: {{ m.content }} ASSISTANT:", " {{ m.content }}</s>", before="<s>be brief. ")),
    "plain marks": ("</s>", of("<|u|>\n{{ m.content }}</s>\n", "<|a|>\n{{ m.content }}</s>\n", "<|a|>\n")),
}  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?<>|[]/"
MERGES = [("t", "h"), ("th", "e"), ("s", "o"), ("o", "u"), ("r", "."), ("\n", "\n"), ("A", ":")]


def byte_level() -> Backend:
    blank, line = "Ġ", "Ċ"
    merges = [(a.replace("\n", line), b.replace("\n", line)) for a, b in MERGES] + [(blank, "the"), (line, "a")]
    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    backend = Backend(models.BPE({piece: number for number, piece in enumerate(vocabulary)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return backend


def spaced(scheme: str) -> Backend:
    """As SentencePiece has it: a space before every text, the first, or everything between special tokens."""
    merges = [*MERGES[:-2], ("▁", "the"), ("▁", "F"), ("▁", "U"), (">", "▁")]
    vocabulary = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, *map("".join, merges)]
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    backend = Backend(models.BPE(numbers, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    backend.decoder = decoders.Sequence(steps)
    if scheme == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    backend.add_special_tokens(SPECIAL)
    return backend


def backend_of(kind: str) -> Backend:
    return byte_level() if kind == "byte-level" else spaced(kind)


KINDS = ["byte-level", "first", "always", "legacy"]
# What is asked, what is answered, and how: as the tokenizer spells it, letter by letter, or cut off.
TALK = [
    ("hi the", "so 2 and 2\n</think>\n\nFour. ", "plain"),
    ("And you?", " the other, 你好", "letters"),
    ("the third ", "Fine, the", "cut"),
    ("bytes", "so 🙂", "half a character"),
    ("bye", "", "plain"),
]


@pytest.fixture(scope="module")
def params():
    return tiny.params(config=CONFIG)


def model_of(params, kind: str, template: str) -> ChatModel:
    backend, (end, text) = backend_of(kind), TEMPLATES[template]
    assert backend.get_vocab_size() <= CONFIG.vocab_size
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    return ChatModel(CONFIG, params, Tokenizer(backend, bos=1, stop=[SPECIAL.index(end)], template=text, names=names))


def spell(tokenizer: Tokenizer, before: str, text: str, how: str) -> list[int]:
    """The tokens of an answer after what a template wrote."""
    if how == "letters":
        first = tokenizer.encode(".")
        return [token for letter in text for token in tokenizer.encode("." + letter)[len(first) :]]
    whole = tokenizer.encode(before + text)
    tokens = whole[len(tokenizer.encode(before)) :]
    if how == "plain":
        return [*tokens, tokenizer.stop[0]]
    return tokens[:-2] if how == "half a character" else tokens


@pytest.fixture
def forced(monkeypatch):
    return force(monkeypatch)


def say(model, conversation, message, text, how, script):
    """One turn in which the model writes a text: the conversation after it, and what was shown."""
    messages = [*conversation.messages, {"role": "user", "content": message}]
    system = {"role": "system", "content": "be good"}
    before = model.tokenizer.render(messages if conversation.messages else [system, *messages])
    script[:] = spell(model.tokenizer, before, text, how)
    options = {"sampler": ms.Greedy(), "max_new_tokens": len(script), "system": "be good"}
    answers = list(answer(model, conversation, message, **options))
    return answers[-1].conversation, "".join(piece for piece, _ in answers)


@pytest.mark.parametrize(
    ("template", "kind"),
    tiny.few(itertools.product(TEMPLATES, KINDS), *zip(TEMPLATES, itertools.cycle(KINDS), strict=False)),
)
def test_the_state_has_seen_what_transformers_makes_of_the_whole_conversation(params, forced, kind, template):
    transformers = pytest.importorskip("transformers")
    model = model_of(params, kind, template)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend_of(kind), chat_template=TEMPLATES[template][1], bos_token="<s>", eos_token="</s>"
    )
    conversation = begin_conversation(model, ms.TOVA(), 8)
    messages = [{"role": "system", "content": "be good"}]
    for message, text, how in TALK:
        messages.append({"role": "user", "content": message})
        conversation, shown = say(model, conversation, message, text, how, forced)
        whole = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert list(conversation.tokens) == whole + forced
        assert int(conversation.state.t) == len(conversation.tokens)
        messages.append({"role": "assistant", "content": shown})
    assert list(conversation.messages) == messages and conversation.turns == len(TALK)


def read_anew(model, conversation, budget):
    """The state that reads the tokens of a conversation from the first on."""
    padded = np.zeros(ROOM, np.int32)
    padded[: len(conversation.tokens)] = conversation.tokens
    state = ms.init_state(CONFIG, conversation.policy, budget, positions=conversation.state.mode)
    return ms.prefill(CONFIG, conversation.policy, model.params, state, padded, len(conversation.tokens))[0]


@pytest.mark.parametrize(
    ("policy", "positions"),
    [(ms.H2O(), "gap"), tiny.more(ms.Full(), "absolute")],
    ids=str,
)
def test_the_state_is_the_one_that_reads_these_tokens(params, forced, policy, positions):
    """Whichever state it went on from; the ones before stay what they were."""
    model, budget = model_of(params, "first", "thinking begun"), tiny.budget_for(policy, ROOM - 1, 12)
    conversation, kept = begin_conversation(model, policy, budget, positions=positions), []
    for message, text, how in TALK[:3]:
        conversation, _ = say(model, conversation, message, text, how, forced)
        kept.append((conversation, jax.tree.map(np.array, (conversation.state, conversation.before))))
    for layer, other in zip(conversation.state.layers, read_anew(model, conversation, budget).layers, strict=True):
        assert tiny.held(layer) == tiny.held(other)
        repeats = CONFIG.num_kv_heads // layer.num_rows
        for leaf in ("keys", "values"):
            mine, theirs = (
                tiny.by_position(np.repeat(one.positions, repeats, 0), getattr(one, leaf), ROOM)
                for one in (layer, other)
            )
            np.testing.assert_allclose(mine, theirs, atol=1e-4)
    for earlier, leaves in kept:
        for leaf, copy in zip(jax.tree.leaves((earlier.state, earlier.before)), jax.tree.leaves(leaves), strict=True):
            np.testing.assert_array_equal(leaf, copy)


def test_no_more_is_read_again_than_what_the_template_wrote_anew(params, forced, monkeypatch):
    read = []

    def counting(model, policy, state, tokens, work=conversation_module._read):
        read.append((int(state.t), len(tokens)))
        return work(model, policy, state, tokens)

    monkeypatch.setattr(conversation_module, "_read", counting)
    for template, text, again in [
        ("chatml", "so 2", False),
        ("plain words", " so 2", False),  # whose space the template writes itself
        ("chatml, thinking dropped", "so 2", False),
        ("chatml, thinking dropped", "so 2\n</think>\n2", True),
        ("thinking begun", "so 2\n</think>\n2", True),
        ("system in the last", "so 2", True),
    ]:
        model = model_of(params, "byte-level", template)
        first, _ = say(model, begin_conversation(model, ms.TOVA(), 8), "hi", text, "plain", forced)
        assert first.before is not None
        read.clear()
        second, _ = say(model, first, "and", "", "plain", forced)
        start = int((first.before if again else first.state).t)
        assert read[0][0] == start > 4 and sum(count for _, count in read) == len(second.tokens) - len(forced) - start


def test_a_saved_conversation_goes_on_as_if_it_had_not_been(params, forced, tmp_path):
    model, path = model_of(params, "byte-level", "thinking begun"), str(tmp_path / "talk")
    one = begin_conversation(model, ms.TOVA(), 8)
    one, _ = say(model, one, *TALK[0], forced)
    one = change_policy(CONFIG, one, ms.H2O(), 6)
    assert one.before is not None and one.before.layers[0].num_slots == one.state.layers[0].num_slots == 7
    save_conversation(path, model, one)
    other = load_conversation(path, model, ms.TOVA())
    assert (other.messages, other.tokens, other.closed) == (one.messages, one.tokens, True)
    ends = [say(model, talk, *TALK[1], forced)[0] for talk in (one, other)]
    assert ends[0].tokens == ends[1].tokens
    for mine, theirs in zip(*map(jax.tree.leaves, ((end.state, end.before) for end in ends)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    ms.load_state(path, CONFIG, ms.H2O(), params)
    ms.save_state(path, CONFIG, ms.H2O(), params, one.state, notes={"messages": [], "tokens": [3], "closed": True})
    with pytest.raises(ValueError, match="is of no conversation; it must be one that /save wrote"):
        load_conversation(path, model, ms.H2O())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["brackets", "headers", "chatml", "plain words", "plain marks"])
def test_a_turn_alone_is_spelled_as_in_its_conversation(params, kind, template):
    tokenizer = model_of(params, kind, template).tokenizer
    contents = zip(["user", "assistant", "user"], ["hi", "Fine", "the end"], strict=True)
    whole = tokenizer.chat([{"role": role, "content": content} for role, content in contents])
    ends = [place for place, token in enumerate(whole) if token == tokenizer.stop[0]]
    begin = ends[0 if template in ("brackets", "plain words") else 1]  # others end questions, too
    assert tokenizer.reply("the end", closed=True) == whole[begin + 1 :]
    assert tokenizer.reply("the end", closed=False)[-len(whole[begin:]) :] == whole[begin:]


@pytest.mark.parametrize("template", ["chatml, thinking dropped", "thinking begun"])
def test_a_turn_alone_is_refused_where_earlier_answers_change(params, template):
    tokenizer = model_of(params, "byte-level", template).tokenizer
    with pytest.raises(ValueError, match="chat template: it changes earlier answers .drops their thinking"):
        tokenizer.reply("hi", closed=True)
