"""Which tokens survive: what is recorded, what is made of it, and the experiment on a tiny model."""

import importlib.metadata
import io
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
import tokenizers
from rich.console import Console
from tokenizers import decoders, models, pre_tokenizers
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from experiments.common.published import LIVES
from experiments.common.schema import is_map
from experiments.retention.__main__ import Settings, app, run
from experiments.retention.lives import numbers_of, recent_share, steps_kept
from experiments.retention.maps import unpack
from experiments.retention.recording import Recorded, follow_watched, watch
from experiments.retention.report import spell
from experiments.retention.tables import summarise, table, table_of_tags
from experiments.retention.tags import MARKS, NEWLINE, SPACE, SPECIAL, TAGS, tag_tokens, tag_words, tagger_version
from msrnn_jax.text.tokenizer import Tokenizer
from msrnn_jax.tracing.lifetimes import STILL_HELD, follow, start_record

COUNT, BUDGET = 26, 6
SEGMENT = 40
BOOKS = {
    "first.txt": "the dog and a cat ran to london. it is on time.\nmary had it. he is old\nand ran to the dog in time.",
    "second.txt": "it is a dog.\nthe cat of mary and he ran on and on to london in no time. it had\nan old cat on it.",
}


def small_command(folder: pathlib.Path) -> list[str]:
    """Arguments of a run of four results and one map, on data that is written into the folder."""
    make_toy(folder / "toy")
    return [str(folder / "toy"), *_options(folder), "--budget", "6", "--budget", "9"]


def _options(folder: pathlib.Path) -> list[str]:
    (folder / "books").mkdir(exist_ok=True)
    for name, text in BOOKS.items():
        (folder / "books" / name).write_text(text)
    return ["--data", str(folder / "books"), "--segment", str(SEGMENT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("retention")
    make_toy(made / "toy")
    _options(made)
    return made


def settings(folder: pathlib.Path, **changes: Any) -> Settings:
    given = {"policies": ("tova", "h2o"), "budgets": (6,), "segment": SEGMENT, **changes}
    return Settings(str(folder / "toy"), (str(folder / "books"),), **given)


def quiet() -> Console:
    return Console(quiet=True)


def told(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


RULES = {  # policies as the oracle's own rule, which can be watched
    "tova": ("own", lambda memory: memory.latest),
    "tova:scope=head": ("own:scope=head", lambda memory: memory.latest),
    "h2o": ("own:scope=head,recent=half", lambda memory: memory.total),
    "window:sinks=1": ("own:sinks=1", lambda memory: memory.position),
}


@pytest.mark.parametrize("text", tiny.few(RULES, "h2o"))
def test_watching_changes_nothing_and_sees_what_the_forgotten_were_given(text):
    policy, params = ms.parse_policy(text), tiny.params()
    tokens = np.append(tiny.tokens(COUNT), [13, 13]).astype(np.int32)  # two of padding
    arguments = jnp.asarray(tokens), jnp.asarray(COUNT, jnp.int32)

    def start(policy: ms.Policy) -> tuple[ms.MultiState, jax.Array]:
        state = ms.init_state(tiny.CONFIG, policy, BUDGET, slots=9)  # more than one is free
        return state, start_record(state, COUNT)

    plain = jax.jit(follow)
    state, freed = plain(tiny.CONFIG, policy, params, *start(policy), *arguments)
    watching = jax.jit(follow_watched)
    (watched, noted), shares = watching(tiny.CONFIG, watch(policy), params, *start(watch(policy)), *arguments)
    np.testing.assert_array_equal(noted, freed)
    layers = [layer.replace(stats=layer.stats[0]) for layer in watched.layers]
    for one, other in zip(jax.tree.leaves(layers), jax.tree.leaves(list(state.layers)), strict=True):
        np.testing.assert_array_equal(one, other)  # to the last bit

    spelled, rule = RULES[text]

    class Score(float):
        latest: float

    def spy(memory: oracle.Memory) -> float:
        score = Score(rule(memory))
        score.latest = memory.latest
        return score

    moments = oracle.run(tiny.CONFIG, spelled, params, tokens[:COUNT], BUDGET, rule=spy)
    lost = np.zeros((COUNT, tiny.CONFIG.num_layers))
    for t, moment in enumerate(moments):
        for layer, rows in enumerate(moment.scores):
            for scores in filter(None, rows):
                lowest = min(scores, key=lambda position: (scores[position], position))
                lost[t, layer] += scores[lowest].latest / len(rows)
    assert (lost[BUDGET:] > 0).all()
    np.testing.assert_allclose(shares[:COUNT], lost, rtol=1e-3, atol=1e-7)


def test_numbers_are_what_counting_sets_gives():
    layers, rows, count, budget = 2, 3, 40, 7
    random = np.random.default_rng(0)
    freed = np.arange(count) + random.geometric(0.2, (layers, rows, count)) - 1
    freed[:, :, 0] = STILL_HELD
    freed[1, 2, 5] = STILL_HELD
    freed = np.where(freed >= count, STILL_HELD, freed).astype(np.int32)
    lost = random.random((count, layers)).astype(np.float32)
    tags = [("NN",), (".", "''"), (".",), ("newline",)] * 10
    numbers = numbers_of(Recorded(freed, lost), budget, tags)

    share, kept = np.zeros((layers, rows, count)), np.zeros((layers, rows, count), int)
    for layer in range(layers):
        for row in range(rows):
            for t in range(count):
                held = {p for p in range(t + 1) if t < freed[layer, row, p]}
                kept[layer, row, [p for p in range(t + 1) if t <= freed[layer, row, p]]] += 1  # also while it was freed
                share[layer, row, t] = len(held & set(range(t - budget + 1, t + 1))) / len(held)
    np.testing.assert_array_equal(steps_kept(freed), kept)
    np.testing.assert_allclose(recent_share(freed, budget), share, rtol=1e-12)
    each = kept.mean(axis=(0, 1))
    expected = {
        "tokens": count,
        "recent": share[:, :, budget:].mean(),
        "recent_end": share[:, :, -1].mean(),
        "life": kept.mean(),
        "lost": lost[budget:].mean(),
    }
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert numbers["recent_layers"] == pytest.approx(share[:, :, budget:].mean(axis=(1, 2)))
    assert numbers["lost_layers"] == pytest.approx(lost[budget:].mean(axis=0), rel=1e-6)
    assert numbers["first"] == pytest.approx(each[:25])
    assert numbers["first_held"][:6] == pytest.approx([1, 0, 0, 0, 0, 1 / 6])
    assert numbers["tags"] == {
        "NN": [10, pytest.approx(each[0::4].sum())],
        ".": [20, pytest.approx(each[1::4].sum() + each[2::4].sum())],
        "''": [10, pytest.approx(each[1::4].sum())],
        "newline": [10, pytest.approx(each[3::4].sum())],
    }
    assert numbers["joined"] == {". ''": [10, pytest.approx(each[1::4].sum())]}


WORDS = {
    "John’s dogs' food can't rot": "John:NNP ’s:POS dogs:NNS ':POS food:NN ca:MD n't:RB rot:NN",
    '"Why," he; "it\'ll go--now!"': (
        "\":`` Why:WRB ,:, \":'' he:PRP ;:: \":`` it:PRP 'll:MD go:VB --:: now:RB !:. \":''"
    ),
    "“Oh!” ‘No’ 'Yes'": "“:`` Oh:UH !:. ”:'' ‘:`` No:DT ’:'' ':`` Yes:UH ':''",
    "Mr. A. Smith paid $4,000.25 (or 5%)...": (
        "Mr.:NNP A.:NNP Smith:NNP paid:VBN $:$ 4,000.25:CD (:( or:CC 5:CD %:NN ):) ...::"
    ),
    "They're lookin' fer th' win' an' so; 'tis 'em.": (
        "They:PRP 're:VBP lookin':VBG fer:IN th':DT win':NN an':CC so:RB ;:: 'tis:PRP 'em:PRP .:."
    ),
    "'Come on,' he said": "':`` Come:VB on:IN ,:, ':'' he:PRP said:VBD",
    "the 4th of 1890s, DON'T": "the:DT 4th:JJ of:IN 1890s:CD ,:, DO:VB N'T:RB",
    "Wanderings whose. Wandering & *on* U.S. mother-in-law": (
        "Wanderings:NNS whose:WP$ .:. Wandering:VBG &:CC *:SYM on:IN *:SYM U.S.:NNP mother-in-law:NN"
    ),
}


@pytest.mark.parametrize("text", WORDS)
def test_words_are_split_and_tagged_as_in_the_penn_treebank(text):
    words = tag_words(text)
    assert " ".join(f"{text[word.start : word.end]}:{word.tag}" for word in words) == WORDS[text]


def bytewise(*pieces: str) -> Tokenizer:
    """A tokenizer of bytes, and of the pieces (in the alphabet of its bytes); its first token begins a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<s>", *alphabet, *pieces])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [(piece[:-1], piece[-1]) for piece in pieces]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend, bos=0, stop=(), template=None)


def test_every_tag_is_explained():
    """Those of marks, of tokens without words, of the tagger's words and of the paper."""
    words = "the old ships of London often went there and she could not go to whose most"
    found = {word.tag for word in tag_words(words)} | set(MARKS.values()) | {NEWLINE, SPACE, SPECIAL} | set(LIVES)
    assert len(found) > 25 and found <= set(TAGS)
    assert spell("POS") == "possessive endings: ’s of Anna’s" and spell("tag of another") == "tag of another"


def test_tokens_have_the_tags_of_the_words_they_are_part_of():
    tokenizer = bytewise('."', "Ġc", "Ċ ".replace(" ", "Ġ"))
    tokens = [0, *tokenizer.encode('“A cat."\n  It')]
    assert tag_tokens(tokenizer, tokens) == [
        ("special",),
        *[("``",)] * 3,  # the bytes of one character
        ("DT",),
        *[("NN",)] * 3,  # the space before the word is its first token's
        (".", "''"),
        ("newline",),  # with a space after it
        ("space",),
        *[("PRP",)] * 2,
    ]
    assert tag_tokens(tokenizer, tokens[:2]) == [("special",), ("SYM",)]  # a character cut in two
    assert tag_tokens(tokenizer, []) == []


def test_a_run_records_every_book_once(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    lines = run(settings(folder), out, quiet())
    found = [(line["setting"]["policy"], line["document"], is_map(line)) for line in lines]
    names = ["first.txt@40", "second.txt@40"]
    assert found == [
        (policy, *which)
        for policy in ("tova", "h2o")
        for which in ((names[0], False), (names[1], False), (names[0], True))
    ]
    assert lines[0]["setting"] == {"policy": "tova", "budget": 6, "segment": SEGMENT, "tagger": tagger_version()}
    assert lines[2]["setting"] == {**lines[0]["setting"], "record": "map"}
    for line in lines[0:2] + lines[3:5]:
        assert line["tokens"] == SEGMENT and len(line["first"]) == len(line["first_held"]) == 25
        # Six are held after the sixth step and all that come later, and during each the newest beside them.
        assert line["life"] == pytest.approx((21 + 7 * 34) / 40)
        assert sum(count for count, _ in line["tags"].values()) == SEGMENT
        assert len(line["lost_layers"]) == len(line["recent_layers"]) == 2 and 0 < line["lost"] < 1 / 7
    for numbers, record, rows in ((lines[0], lines[2], 1), (lines[3], lines[5], 3)):
        freed = unpack(record)
        assert freed.shape == (2, rows, SEGMENT)
        assert ((freed == STILL_HELD).sum(axis=2) == 6).all()
        again = numbers_of(Recorded(freed, np.zeros((SEGMENT, 2), np.float32)), 6, [("NN",)] * SEGMENT)
        for name in ("recent", "recent_layers", "recent_end", "first", "first_held", "life"):
            assert numbers[name] == again[name]

    content = out.read_bytes()
    assert run(settings(folder), out, quiet()) == lines and out.read_bytes() == content
    # One that was killed, and whose last line is torn, ends in the same numbers.
    out.write_bytes(b"\n".join(content.splitlines()[:5])[:-9])
    again = run(settings(folder), out, quiet())
    assert told(again) == told(lines)
    # Neither do they depend on what other books there are, or on maps.
    alone = run(settings(folder, policies=("tova",), books=1, maps=0), tmp_path / "alone.jsonl", quiet())
    assert told(alone) == told(lines[:1])
    mapped = run(settings(folder, policies=("tova",), books=1), tmp_path / "alone.jsonl", quiet())
    assert mapped[:1] == alone and told(mapped[1:]) == told(lines[2:3])


REFUSED = {
    "a budget of the whole segment": (["--budget", "40"], "budget is 40; it must be from 2 to 39"),
    "a policy that keeps all": (["--policy", "full"], "which forgets nothing"),
    "what protects more than is kept": (["--policy", "tova:sinks=9"], "sinks"),
    "a segment without a step": (["--segment", "1"], "segment is 1"),
    "books that are too short": (["--segment", "5000"], "data has no text of 5,000 tokens; the longest has"),
    "fewer than no maps": (["--maps", "-1"], "maps is -1"),
    "another preset": (["--preset", "large"], "it must be one of small, paper"),
    "the same twice": (["--policy", "tova:sinks=0", "--policy", "tova"], "asked for twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_in_a_line(case, folder, tmp_path):
    options, message = REFUSED[case]
    out = tmp_path / "out.jsonl"
    base = [str(folder / "toy"), *_options(folder), *([] if "--budget" in options else ["--budget", "6"])]
    result = CliRunner().invoke(app, [*base, "--out", str(out), *options])
    *notes, line = result.stderr.splitlines()
    assert result.exit_code == 2 and line.startswith("error: ") and message in line
    assert all(note.startswith("note: ") for note in notes)
    assert not out.exists()


def test_bad_rows_are_named_and_left_out(folder, tmp_path):
    rows = tmp_path / "books.jsonl"
    rows.write_text(json.dumps({"text": BOOKS["first.txt"]}) + '\n{"body": 1}\n')
    options = ["--data", str(rows), "--segment", "40", "--budget", "6", "--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, [str(folder / "toy"), *options])
    assert result.exit_code == 0, result.stderr
    assert f"note: text file {str(rows)!r}, line 2 has no field 'text'" in result.stderr and "left out" in result.stderr


def made_line(budget: int, recent: float, held: float, sums: dict[str, list[float]]) -> dict[str, Any]:
    setting = {"policy": "tova", "budget": budget, "segment": 4096}
    means = {"recent": recent, "recent_end": recent, "life": 249.0, "lost": 2e-4}
    return {
        "setting": setting,
        **means,
        "first": [100 * held, 5.0],
        "first_held": [held, 0.0],
        "tags": sums,
        "joined": {},
    }


def test_books_are_the_draws_of_the_tables():
    lines = [
        made_line(256, 0.70, 1.0, {"NN": [100, 20_000.0], "POS": [2, 500.0]}),
        made_line(256, 0.74, 0.5, {"NN": [300, 90_000.0]}),
        {"setting": {"policy": "tova", "budget": 256, "segment": 4096, "record": "map"}, "map": "", "shape": [0]},
    ]
    (row,) = summarise(lines)
    assert row["books"] == 2 and row["recent"] == pytest.approx(0.72) and row["recent_stderr"] == pytest.approx(0.02)
    assert [row[name] for name in ("first", "first_held", "first_held_stderr")] == pytest.approx([75, 0.75, 0.25])
    assert row["first_steps"] == [pytest.approx([75, 25]), [5, 0]]
    noun, clitic = row["tags"]["NN"], row["tags"]["POS"]
    assert (noun["tokens"], noun["life"]) == (400, 275.0)  # of tokens, not of books
    assert noun["life_stderr"] == pytest.approx(math.hypot(7_500, 7_500) / 400 * math.sqrt(2))
    assert (clitic["tokens"], clitic["life"]) == (2, 250.0) and math.isnan(clitic["life_stderr"])

    console = Console(width=120, file=io.StringIO(), record=True)
    for made in (table([row]), table_of_tags([row])):
        console.print(made)
    printed = console.export_text()
    for text in ("0.720 +- 0.020", "75 +- 25", "2.0e-04", "249 +- 0 / 249", "275 +- 38 / 270", "250 +- nan / 1134"):
        assert text in printed, (text, printed)


def test_the_command_prints_its_tables(tmp_path):
    out = tmp_path / "out.jsonl"
    result = CliRunner().invoke(app, [*small_command(tmp_path), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "attention lost" in result.stdout and "Steps kept by part of" in result.stdout
    assert " NN " in result.stdout
    lines = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert [(line["setting"]["budget"], is_map(line)) for line in lines] == [(6, False)] * 2 + [(9, False)] * 2 + [
        (9, True)
    ]


def test_a_missing_tagger_is_named_before_any_work(tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ValueError, match="needs textblob"):
        run(Settings(str(tmp_path / "nothing")), tmp_path / "out.jsonl", quiet())
