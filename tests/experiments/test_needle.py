"""A fact hidden in a long text: where it is put, what is asked, and that every number is the definition's."""

import io
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner

import msrnn_jax as ms
from experiments.common.books import Book
from experiments.needle import __main__ as needle
from experiments.needle.asking import is_right
from experiments.needle.haystack import CITIES, Case, draw_case, put
from experiments.needle.prompts import rooms_for, write_prompt
from experiments.needle.tables import depth_table, summarise, summarise_depths, table
from msrnn_jax.checkpoint.tokenizer import load_tokenizer

STOP = 49  # the token that ends an answer
LENGTH, BUDGETS, DEPTHS, DRAWS = 96, (12, 60), (0.0, 0.5), 2
WORDS = "the sea was calm and ships lay still near a long grey shore while old men told tales of storms".split()


def make_checkpoint(folder: pathlib.Path) -> str:
    """A random model whose tokens are characters, digits among them, with a chat template."""
    alphabet = "abcdefghijklmnopqrstuvwxyz 0123456789.:\nTWQALMS<>"
    vocabulary = {"?": 0, **{letter: number for number, letter in enumerate(alphabet, 1)}}
    assert len(vocabulary) == tiny.CONFIG.vocab_size
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    files = {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps({"bos_token_id": None, "eos_token_ids": [49]}),
        "chat_template.jinja": "{% for message in messages %}<{{ message['content'] }}>{% endfor %}A:",
    }
    ms.save(folder, tiny.CONFIG, tiny.params(), files=files)
    return str(folder)


def write_book(path: pathlib.Path) -> str:
    random = np.random.default_rng(0)
    sentences = (" ".join(random.choice(WORDS, random.integers(2, 5))) + "." for _ in range(200))
    path.write_text(" ".join(sentences))
    return str(path)


def small_command(folder: pathlib.Path) -> list[str]:
    """Arguments of a run of a few seconds, on data that this writes."""
    checkpoint, book = make_checkpoint(folder / "checkpoint"), write_book(folder / "book.txt")
    options = [
        "--policy",
        "tova",
        "--budget",
        "12",
        "--budget",
        "60",
        "--length",
        str(LENGTH),
        "--depth",
        "0.5",
        "--order",
        "after",
    ]
    return [checkpoint, "--data", book, *options, "--draws", str(DRAWS)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("needle")
    return make_checkpoint(folder / "checkpoint"), write_book(folder / "book.txt")


def settings_for(inputs: tuple[str, str], **changes: Any) -> needle.Settings:
    given = {"checkpoint": inputs[0], "data": (inputs[1],), "lengths": (LENGTH,), "depths": DEPTHS, "draws": DRAWS}
    return needle.Settings(**{**given, "budgets": BUDGETS, "policies": ("tova",), **changes})


@pytest.fixture(scope="module")
def found(inputs: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The lines of a run in both orders."""
    return needle.run(settings_for(inputs), tmp_path_factory.mktemp("out") / "needle.jsonl", quiet())


def quiet() -> Console:
    return Console(quiet=True)


def book_of(inputs: tuple[str, str]) -> Book:
    tokens = load_tokenizer(inputs[0]).encode(pathlib.Path(inputs[1]).read_text())
    return Book("book.txt", np.asarray(tokens, np.int32))


def line_of(lines: Sequence[dict[str, Any]], policy: str, budget: int, order: str, document: str) -> dict[str, Any]:
    (line,) = (
        line
        for line in lines
        if line["document"] == document
        and [line["setting"][name] for name in ("policy", "budget", "order")] == [policy, budget, order]
    )
    return line


def read(policy: ms.Policy, state: ms.MultiState, tokens: Sequence[int]) -> tuple[ms.MultiState, list[np.ndarray]]:
    """Token by token: the state, and the log-probabilities after each."""
    seen = []
    for token in tokens:
        state, logits = step(tiny.CONFIG, policy, tiny.params(), state, jax.numpy.int32(token))
        seen.append(np.asarray(jax.nn.log_softmax(logits)))
    return state, seen


step = jax.jit(ms.step)


def expected(
    inputs: tuple[str, str],
    policy: ms.Policy,
    budget: int,
    case: Case,
    texts: tuple[str, str],
    first: str = "",
    oneshot: bool = False,
) -> dict[str, Any]:
    """The numbers of a line from the definitions, token by token; a token is a character here.

    Args:
      texts: what is read before the question, and from it on.
      first: the question before the text.
    """
    tokenizer = load_tokenizer(inputs[0])
    lead, tail = map(tokenizer.encode, texts)
    state = ms.init_state(tiny.CONFIG, policy, budget, slots=max(61, budget + 1))
    if oneshot:
        state, logits = ms.prefill(tiny.CONFIG, policy, tiny.params(), state, [*lead, *tail], mode="oneshot")
        asked, last = state, np.asarray(jax.nn.log_softmax(logits))
    else:
        asked, _ = read(policy, state, lead)
        state, seen = read(policy, asked, tail)
        last = seen[-1]
    nats = []
    for value in case.values:
        tokens = tokenizer.encode(f" {value}")
        _, seen = read(policy, state, tokens)
        nats.append(-sum(row[token] for row, token in zip([last, *seen], tokens, strict=False)))
    written = []
    while len(written) < 8 and STOP not in written:
        written.append(int(last.argmax()))
        state, (last,) = read(policy, state, written[-1:])
    start = texts[0].index(case.value)
    value, question = set(range(start, start + 5)), {texts[0].index(first) + place for place in range(len(first))}
    rows = [set(row) for layer in asked.layers for row in np.asarray(layer.positions).tolist()]
    return {
        "correct": 0,
        "choice": int(nats[0] < min(nats[1:])),
        "answer_nats": pytest.approx(nats[0], abs=2e-3),
        "answer_tokens": 6,
        "answer": tokenizer.decode(written),
        "value": case.value,
        "held_any": pytest.approx(np.mean([bool(value & row) for row in rows])),
        "held_all": pytest.approx(np.mean([value <= row for row in rows])),
        "held_question": pytest.approx(np.mean([len(question & row) / len(first) for row in rows])) if first else None,
        "position": start,
        "prompt_tokens": len(lead) + len(tail),
    }


def case_of(inputs: tuple[str, str], depth: float, draw: int) -> Case:
    return draw_case(load_tokenizer(inputs[0]), [book_of(inputs)], 0, LENGTH, depth, draw)


def agrees(line: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert {name: line[name] for name in wanted} == wanted


@pytest.mark.exhaustive
def test_lines_of_the_question_after_the_text_are_those_of_the_definition(inputs, found):
    case = case_of(inputs, 0.5, 1)
    texts = f"{case.text}\n\n", f"Question: {case.question}\nAnswer: {case.opening}"
    for policy, budget, room in (("full", LENGTH, 400), ("tova", 60, 60), ("tova", 12, 12)):
        line = line_of(found, policy, budget, "after", case.name)
        agrees(line, expected(inputs, ms.parse_policy(policy), room, case, texts))
    assert line_of(found, "full", LENGTH, "after", case.name)["held_all"] == 1


@pytest.mark.exhaustive
def test_lines_of_the_question_before_the_text_are_those_of_the_definition(inputs, found):
    case = case_of(inputs, 0.0, 0)
    first = f"Question: {case.question}"
    texts = f"{first}\n\n{case.text}\n\n", f"{first}\nAnswer: {case.opening}"
    for budget in BUDGETS:
        agrees(
            line_of(found, "tova", budget, "before", case.name), expected(inputs, ms.TOVA(), budget, case, texts, first)
        )


@pytest.mark.exhaustive
def test_a_prompt_read_at_once_is_cut_when_it_has_seen_the_question_in_the_words_of_the_chat(inputs, tmp_path):
    policy = "tova:scope=head"
    changes = {"mode": "oneshot", "chat": True, "orders": ("before",), "depths": (0.5,), "policies": (policy,)}
    lines = needle.run(settings_for(inputs, **changes), tmp_path / "needle.jsonl", quiet())
    case = case_of(inputs, 0.5, 1)
    texts = f"<{case.question}\n\n{case.text}\n\n", f"{case.question}>A:{case.opening}"
    wanted = expected(inputs, ms.parse_policy(policy), 60, case, texts, case.question, oneshot=True)
    line = line_of(lines, policy, 60, "before", case.name)
    agrees(line, wanted)
    assert (line["setting"]["mode"], line["setting"]["chat"]) == ("oneshot", True)


@pytest.mark.exhaustive
def test_every_policy_and_order_is_asked_the_same_cases(found):
    settings = {json.dumps(line["setting"], sort_keys=True) for line in found}
    assert len(settings) == (1 + len(BUDGETS)) * 2 * len(DEPTHS)
    documents = {(line["document"], line["sha256"]) for line in found}
    assert {name for name, _ in documents} == {
        f"{LENGTH}/{depth:g}/{draw}" for depth in DEPTHS for draw in range(DRAWS)
    }
    assert len(documents) == len(DEPTHS) * DRAWS
    assert len(found) == len(settings) * DRAWS


@pytest.mark.exhaustive
def test_what_a_run_was_cut_off_from_is_the_same_afterwards(inputs, found, tmp_path):
    path = tmp_path / "needle.jsonl"
    needle.run(settings_for(inputs, depths=(0.5,)), path, quiet())
    again = needle.run(settings_for(inputs), path, quiet())
    for line in found:
        line["seconds"] = None
    assert [{**line, "seconds": None} for line in again] == found


def test_a_case_holds_its_needle_once_and_nothing_else_that_could_be_meant(inputs):
    for depth, draw in ((0.0, 0), (0.5, 1), (1.0, 2)):
        case = case_of(inputs, depth, draw)
        sentence = f"The secret number of {case.city} is {case.value}."
        assert case.text.count(sentence) == 1
        assert case.text.startswith(sentence) == (depth == 0) and case.text.endswith(sentence) == (depth == 1)
        assert LENGTH - 3 <= len(case.text) <= LENGTH
        assert case.text.count("is") == sentence.count("is") and len(set(case.values)) == 10
        assert all(re.fullmatch("[1-9][0-9]{4}", value) for value in case.values)
        assert not any(value in case.text for value in case.values[1:])


def test_cases_are_drawn_from_what_is_said_alone(inputs):
    tokenizer, book = load_tokenizer(inputs[0]), book_of(inputs)
    cases = [draw_case(tokenizer, [book], *which) for which in ((0, 96, 0.5, 1), (1, 96, 0.5, 1), (0, 96, 0.5, 2))]
    assert draw_case(tokenizer, [book], 0, 96, 0.5, 1) == cases[0]
    assert len({case.sha256 for case in cases}) == len({case.values for case in cases}) == 3
    depths = [draw_case(tokenizer, [book], 0, 96, depth, 1) for depth in (0.0, 0.25, 0.5, 0.500001)]
    assert depths[2] == cases[0] and len({case.name for case in depths}) == 4, "each depth is a case of its own"
    assert len({case.sha256 for case in depths}) == len({case.values for case in depths}) == 4
    named = Book("named", np.asarray(tokenizer.encode(" ".join(CITIES) + " " * LENGTH), np.int32))
    assert draw_case(tokenizer, [Book("spaces", named.tokens[-LENGTH:])], 0, LENGTH, 0.5, 0).city in CITIES


def test_a_text_that_takes_more_tokens_than_its_parts_is_shortened(inputs):
    tokenizer, plain = load_tokenizer(inputs[0]), load_tokenizer(inputs[0])
    tokenizer.encode = lambda text: [*plain.encode(text), *[0] * (len(text) // 20)]
    case = draw_case(tokenizer, [book_of(inputs)], 0, LENGTH, 0.5, 1)
    assert LENGTH - 3 <= len(tokenizer.encode(case.text)) <= LENGTH and f"{case.value}." in case.text


def test_a_needle_goes_to_the_end_of_the_sentence_nearest_to_its_depth():
    hay = 'One two three. "Four five." Six seven! Eight'
    assert put("N.", hay, 0.0) == f"N. {hay}"
    assert put("N.", hay, 0.6) == 'One two three. "Four five." N. Six seven! Eight'
    assert put("N.", hay, 0.4) == 'One two three. N. "Four five." Six seven! Eight'
    assert put("N.", hay, 1.0) == f"{hay} N."


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" 48213.\n", True),
        (" **48213** is", True),
        ("48213", True),
        (" 482134", False),
        (" 4821", False),
        (" 48,213", False),
        (" about 48213", False),
        ("", False),
    ],
)
def test_an_answer_is_right_where_its_first_word_is_the_value(answer, right):
    assert is_right(answer, "48213") is right


@pytest.mark.exhaustive
def test_rooms_hold_every_prompt(inputs):
    tokenizer = load_tokenizer(inputs[0])
    for chat in (False, True):
        room = rooms_for(tokenizer, [LENGTH], chat)[LENGTH]
        for draw in range(20):
            for order in ("after", "before"):
                prompt = write_prompt(tokenizer, case_of(inputs, 0.3, draw), order, chat)
                assert len(prompt.lead) <= room.lead and len(prompt.tail) <= room.tail
        assert room.lead < LENGTH + 96 and room.lead % 32 == room.tail % 32 == 0


def made(policy: str, budget: int, order: str, draw: int, correct: int, nats: float) -> dict[str, Any]:
    setting = {"policy": policy, "budget": budget, "order": order, "length": 512, "depth": draw / 2}
    held = {"held_any": correct, "held_all": 0.0, "held_question": None if order == "after" else 0.5}
    numbers = {"correct": correct, "choice": 1, "answer_nats": nats, **held}
    return {"setting": setting, "document": str(draw), "sha256": "0", **numbers}


def test_tables_pair_policies_with_the_full_model_and_orders_with_each_other():
    lines = [
        *(made("full", 512, "after", draw, 1, 1.0 + draw) for draw in range(3)),
        *(made("tova", 64, "after", draw, int(draw == 2), 5.0 + draw) for draw in range(3)),
        *(made("tova", 64, "before", draw, int(draw > 0), 3.0 + 2 * draw) for draw in range(3)),
    ]
    full, after, before = summarise(lines)
    assert (full["correct"], after["correct"], before["correct"]) == (1, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert after["correct_stderr"] == pytest.approx(1 / 3)  # a sample's deviation sqrt(1 / 3) over sqrt(3)
    assert (after["nats_above_full"], after["nats_above_full_stderr"]) == (4.0, 0.0)
    assert (before["nats_above_after"], before["nats_above_after_stderr"]) == (-1.0, pytest.approx(3**-0.5))
    assert before["correct_above_after"] == pytest.approx(1 / 3)
    assert np.isnan(after["correct_above_after"]) and np.isnan(before["correct_above_full"])
    assert np.isnan(after["held_question"]) and before["held_question"] == 0.5
    depths = summarise_depths(lines)
    assert [(row["policy"], row["budget"], row["depth"], row["correct"]) for row in depths[:4]] == [
        *(("full", None, depth, 1) for depth in (0.0, 0.5, 1.0)),
        ("tova", 64, 0.0, 0),
    ]
    for shown in (table([full, after, before]), depth_table(depths)):
        console = Console(width=160, file=io.StringIO(), record=True)
        console.print(shown)
    assert shown.row_count == 3
    rows = [re.findall(r"[\w.-]+", line) for line in console.export_text().splitlines()]
    assert ["full", "-", "after", "1.00", "1.00", "1.00"] in rows
    assert ["tova", "64", "after", "0.00", "0.00", "1.00"] in rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1.5,)}, "depth is 1.5; it must be from 0 to 1"),
        ({"depths": (float("nan"),)}, "depth is nan; it must be from 0 to 1"),
        ({"lengths": (60,)}, "length is 60; it must be at least 8"),
        ({"budgets": (1,)}, "budget is 1; it must be from 2 to 95"),
        ({"budgets": (96,)}, "budget is 96; it must be from 2 to 95"),
        ({"draws": 0}, "draws is 0; it must be"),
        ({"seed": -1}, "seed is -1; it must be"),
        ({"orders": ("during",)}, "order is 'during'; it must be one of after, before"),
        ({"mode": "twice"}, "mode is 'twice'"),
        ({"policies": ("full",)}, "policy is full, which forgets nothing"),
        ({"policies": ("tova:sinks=20",)}, "20"),
        ({"policies": ("tova", "tova:scope=layer")}, "is asked for twice"),
        ({"lengths": (1500,)}, "data has no text of 3,000 tokens"),
        ({"lengths": (4000,)}, "length is 4000; it must be at most"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(inputs, tmp_path, changes, message):
    path = tmp_path / "needle.jsonl"
    with pytest.raises(ValueError, match=re.escape(message)):
        needle.run(settings_for(inputs, **changes), path, quiet())
    assert not path.exists() or not path.read_text()


def test_a_tokenizer_without_a_chat_template_is_refused(inputs):
    tokenizer = load_tokenizer(inputs[0])
    tokenizer.template = None
    with pytest.raises(ValueError, match="chat is on, but the checkpoint has no chat template"):
        rooms_for(tokenizer, [LENGTH], True)
    tokenizer.template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(ValueError, match="it changes what is said"):
        rooms_for(tokenizer, [LENGTH], True)


@pytest.mark.exhaustive
def test_the_command_prints_tables_and_names_a_bad_row(tmp_path):
    arguments = small_command(tmp_path)
    done = CliRunner().invoke(needle.app, [*arguments, "--out", str(tmp_path / "needle.jsonl")])
    assert done.exit_code == 0, done.output
    assert "tova" in done.stdout and "by depth" in done.stdout
    lines = (tmp_path / "needle.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "needle result" for line in lines) == 6
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "good"}\n{"words": 3}\n')
    arguments[arguments.index("--data") + 1] = str(bad)
    done = CliRunner().invoke(needle.app, [*arguments, "--out", str(tmp_path / "other.jsonl")])
    assert done.exit_code == 2
    assert "line 2 has no field 'text'" in done.stderr and not (tmp_path / "other.jsonl").exists()
