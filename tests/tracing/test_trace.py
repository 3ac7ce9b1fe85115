"""What `msrnn trace` prints and writes, and the text of single tokens."""

import html.parser
import io
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from rich.cells import cell_len
from rich.console import Console
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from msrnn_jax.cli.app import app
from msrnn_jax.text.display import token_texts, visible
from msrnn_jax.text.tokenizer import Tokenizer
from msrnn_jax.tracing.lifetimes import STILL_HELD, follow, start_record
from msrnn_jax.tracing.page import survival_page
from msrnn_jax.tracing.terminal import marked_lines, shares, show
from msrnn_jax.tracing.trace import TraceSettings, freed_at, layer_row, make_settings

HOSTILE = [
    "</script>",
    "<script>alert(1)</script>",
    "<!--",
    "&lt;",
    "\u2028\u2029",
    "{{name}}",
    "\x1b[31m",
    '"',
    "\\",
    "",
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return make_toy(tmp_path_factory.mktemp("models") / "toy")


def trace(*arguments: str):
    result = CliRunner().invoke(app, ["trace", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


class Scripts(html.parser.HTMLParser):
    """The elements of a page, and what its scripts hold."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.title = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script" and self.scripts and not self.scripts[-1]:
            self.scripts[-1] = data
        if self.lasttag == "title":
            self.title += data


def embedded(page: str) -> dict:
    return json.loads(Scripts(page).scripts[0])


def test_a_trace_says_what_a_scan_over_the_same_tokens_says(toy, tmp_path):
    """Prompt cut, text generated, blocks and padding: as one call of `follow`; and the page holds what is printed."""
    text = "the quick brown fox jumps over the lazy dog. " * 3
    (tmp_path / "text.txt").write_text(text)
    page = tmp_path / "deep" / "page.html"
    arguments = [toy, "--text", str(tmp_path / "text.txt"), "--policy", "tova:scope=head", "--budget", "6", "--json"]
    result = trace(*arguments, "--max-tokens", "70", "--max-new-tokens", "5", "--html", str(page))
    assert "the text has 135 tokens; the first 70 are read" in result.stderr
    record = json.loads(result.stdout)

    config, params = ms.load(toy)
    policy, tokenizer = ms.TOVA(scope="head"), ms.load_tokenizer(toy)
    prompt = tokenizer.encode(text)[:70]
    made, lengths, last = ms.generate(config, policy, params, [prompt], budget=6, max_new_tokens=5, stop=(3,))
    tokens = [*prompt, *made[0, : lengths[0]].tolist()]
    assert record["tokens"] == tokens and "".join(record["texts"]) == tokenizer.decode(tokens)
    assert (record["prompt_tokens"], record["generated_tokens"]) == (70, int(lengths[0]))

    state = ms.init_state(config, policy, 6)
    follow_all = jax.jit(follow)
    _, freed = follow_all(config, policy, params, state, start_record(state, len(tokens)), jnp.asarray(tokens))
    found = [[[STILL_HELD if t is None else t for t in row] for row in layer] for layer in record["freed"]]
    np.testing.assert_array_equal(found, freed)
    held = [[p for p, t in enumerate(row) if t is None] for layer in record["freed"] for row in layer]
    assert held == [row for layer in last.layers for row in tiny.held(jax.tree.map(lambda leaf: leaf[0], layer))]
    assert [row["held"] for row in record["layers"]] == [[6] * 3] * 2
    assert {"text_sha256", "model_sha256", "versions", "device", "dtype", "mode", "positions"} <= set(record)

    shown = embedded(page.read_text())
    assert shown.pop("shown") == [visible(text) for text in record["texts"]]
    assert {"checkpoint": toy, **shown} == record
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_an_oneshot_prompt_in_padded_blocks(x64):
    config = tiny.SHALLOW.replace(dtype="float64")
    params = tiny.params("float64", config=config)
    policy, tokens, prompt, reports = ms.H2O(), tiny.tokens(75), 67, []
    settings, state = TraceSettings(policy, 7, "oneshot", "absolute", 0), ms.init_state(config, policy, 7)
    found = freed_at(config, params, tokens.tolist(), prompt, settings, state, reports.append)
    expected = oracle.freed(oracle.run(config, "h2o", params, tokens, 7, oneshot=prompt))
    assert [[[None if t == STILL_HELD else t for t in row] for row in layer] for layer in found.tolist()] == expected
    assert reports == ["compiling", "75 of 75 tokens"]


def test_the_terminal_view_without_colour(toy):
    printed = trace(toy, "--prompt", "abba cab", "--policy", "window", "--budget", "3").stdout
    assert printed.splitlines()[:2] == ["abba cab", "     ###"]
    assert "\x1b" not in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["0", "3", "3", "5", "100%", "3.0"] in rows and ["1", "3", "3", "5", "100%", "3.0"] in rows
    one = trace(toy, "--prompt", "abba cab", "--policy", "window", "--budget", "3", "--layer", "1").stdout
    rows = [line.split() for line in one.splitlines()]
    assert ["0", "a", "3"] in rows and ["4", "7"] in rows and ["5", "c", "held"] in rows
    heads = trace(toy, "--prompt", "ab", "--policy", "window:scope=head", "--budget", "1", "--layer", "0").stdout
    assert ["0", "a", "1", "1", "1"] in [line.split() for line in heads.splitlines()]


RECORD = {
    "tokens": list(range(10)),
    "texts": HOSTILE,
    "freed": [[[None if p % 2 else p + 1 for p in range(10)]], [[None if p > 6 else 9 for p in range(10)]]],
    "budget": 5,
    "prompt_tokens": 8,
    "generated_tokens": 2,
}


def test_the_terminal_view_with_colour():
    record = {**RECORD, "layers": [layer_row(RECORD, layer) for layer in range(2)]}
    out = io.StringIO()
    show(Console(file=out, force_terminal=True, color_system="truecolor", width=200), record)
    printed = out.getvalue()
    assert "␛[31m" in printed and "\x1b[31m" not in printed
    assert "30;48;2;72;178;190m" in printed and "30;48;2;147;209;216m" in printed  # held by both, and by one
    assert "\x1b[2m</script>" in printed  # by none: dim
    assert "\x1b[4;" in printed  # generated: underlined


def test_what_a_layer_holds_in_numbers():
    assert layer_row(RECORD, 0) == {
        "layer": 0, "budget": 5, "held": [5], "oldest": 1, "recent": 3 / 5, "mean_life": 1.0,
    }  # fmt: skip
    nothing = {**RECORD, "freed": [[[p for p in range(10)]]]}
    assert layer_row(nothing, 0) == {
        "layer": 0, "budget": 5, "held": [0], "oldest": None, "recent": None, "mean_life": 0.0,
    }  # fmt: skip
    assert shares([row for layer in RECORD["freed"] for row in layer]) == [0, 0.5, 0, 0.5, 0, 0.5, 0, 1, 0.5, 1]


@pytest.mark.parametrize("width", [5, 12, 40, 300])
def test_marks_stand_below_what_they_mark(width):
    texts = ["Hel", "lo", " wide", " 漢字", "", " and", "\n", " a", " word", "that", "goes", "on", "\t", "x"]
    held = [(number % 5) / 4 for number in range(len(texts))]
    lines = marked_lines(texts, held, width)
    assert all(cell_len(line) <= width for line in lines)
    found = []
    for text, marks in zip(lines[::2], lines[1::2], strict=True):
        starts = itertools.accumulate(map(cell_len, text), initial=0)
        found += [(c, marks.ljust(width)[at]) for c, at in zip(text, starts) if not c.isspace()]  # noqa: B905
    scale = {0: " ", 0.25: ".", 0.5: ":", 0.75: "+", 1: "#"}
    shown = [(visible(text) or "·", scale[share]) for text, share in zip(texts, held, strict=True)]
    assert found == [(c, mark) for text, mark in shown for c in text if not c.isspace()]


def test_no_text_leaves_its_place_in_the_page():
    record = {**RECORD, "versions": {}, "text": "".join(HOSTILE)}
    page = survival_page(record, "<b>a&b</b>{{record}}</title>")
    found = Scripts(page)
    assert [tag for tag, _ in found.tags].count("script") == 2 and "b" not in [tag for tag, _ in found.tags]
    assert found.title.strip() == "What <b>a&b</b>{{record}}</title> still holds"
    shown = embedded(page)
    assert shown["texts"] == HOSTILE and shown["text"] == record["text"]
    assert shown["shown"][6] == "␛[31m"
    assert found.scripts[0].isascii() and not set("<>&") & set(found.scripts[0])
    addresses = {name for _, attributes in found.tags for name in attributes} & {"src", "href", "action", "srcset"}
    assert not addresses and "url(" not in page and "@import" not in page and "fetch" not in page


def bytewise(text: str) -> tuple[Tokenizer, list[int]]:
    """A tokenizer with one token for every byte, and the tokens of a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend, bos=None, stop=(), template=None)
    return tokenizer, tokenizer.encode(text)


@pytest.mark.parametrize("text", ["plain words", "naïve 漢字 👩\u200d👧 x", "\ufffd\ufffd a", " lead", "é"])
def test_pieces_join_to_the_text(text):
    tokenizer, tokens = bytewise(text)
    found = token_texts(tokenizer, tokens)
    assert len(found) == len(tokens) == len(text.encode())
    assert "".join(found) == tokenizer.decode(tokens) == text
    if "\ufffd" not in text:
        assert [piece for piece in found if piece] == list(text)


def test_pieces_of_a_character_that_never_ends():
    tokenizer, tokens = bytewise("ab👩")
    for broken in (tokens[:-1], tokens[:4] + tokens[:2], tokens[2:4] * 9):
        found = token_texts(tokenizer, broken)
        assert len(found) == len(broken) and "".join(found)


def test_pieces_keep_the_blanks_that_a_decoder_drops_at_the_start():
    backend = Backend(models.WordLevel({"▁one": 0, "▁two": 1, "s": 2}, unk_token="s"))
    backend.decoder = decoders.Metaspace()
    tokenizer = Tokenizer(backend, bos=None, stop=(), template=None)
    assert token_texts(tokenizer, [0, 1, 2, 0]) == ["one", " two", "s", " one"]


def test_what_is_shown_cannot_steer_a_terminal():
    every = "".join(map(chr, [*range(0x3000), *range(0xD7F0, 0x10100), *range(0xE0000, 0xE0100)]))
    shown = visible(every)
    assert not set(shown) & {*map(chr, [*range(9), *range(11, 32), *range(127, 160), 0x2028, 0x202E, 0x2066, 0xD800])}
    assert "\u200d" in shown and "é漢👩" == visible("é漢👩") and visible("a\n\tb") == "a↵\n→\tb"


@pytest.mark.parametrize(
    "text, shown",
    [("\r", "←"), ("\r\n", "←↵\n"), ("a\rb", "a←b"), ("\x85", "↵\n"), ("\u2028\u2029", "↵\n↵\n"), ("\x1b\x0c", "␛␌")]
    + [(character, "·") for character in "\xad\u200b\u2060\ufeff\u200c\u200d\ufe0f"]
    + [("co\xadop", "co·op"), ("👩\u200d👧", "👩\u200d👧"), ("❤\ufe0f", "❤\ufe0f"), ("", "")],
)
def test_what_cannot_be_seen_has_a_mark(text, shown):
    """Line ends break the line once; a joiner between characters stays, one that is a token of its own is marked."""
    assert visible(text) == shown
    assert embedded(survival_page({**RECORD, "texts": [text], "versions": {}}, "toy"))["shown"] == [shown]


def test_the_page_needs_no_file_beside_it(toy, tmp_path, monkeypatch):
    """Written with full attention, whose budget is the whole text where none is given."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--prompt", "abc", "--chat", "--policy", "full", "--html", "page.html", "--positions", "cache"]
    printed = trace(toy, *arguments).stdout
    record = embedded(pathlib.Path("page.html").read_text())
    assert record["freed"] == [[[None] * 3]] * 2 and record["budget"] == 3
    assert (record["policy"], record["positions"], record["mode"]) == ("full", "cache", "stepwise")
    assert printed.splitlines()[:2] == ["abc", "###"]


@pytest.mark.parametrize("mode", ["stepwise", tiny.more("oneshot")])
def test_a_prompt_that_is_kept_is_never_freed(mode):
    policy, prompt = ms.Random(prompt=True), 5
    settings = TraceSettings(policy, 7, mode, "absolute", 0)
    state = ms.init_state(tiny.SHALLOW, policy, 7)
    tokens = tiny.tokens(40).tolist()
    found = freed_at(tiny.SHALLOW, tiny.params(config=tiny.SHALLOW), tokens, prompt, settings, state)
    assert (found[:, :, :prompt] == STILL_HELD).all() and (found[:, :, prompt:-2] != STILL_HELD).any()
    with pytest.raises(ValueError, match="the prompt has 9 tokens, which random:prompt=True keeps"):
        make_settings(tiny.SHALLOW, policy, 7, mode, "absolute", 0, 9)
