"""Questions on long texts, on a tiny model and made-up stories and papers in the published forms."""

import copy
import io
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from experiments.common.model import Model, open_model
from experiments.understanding.__main__ import Settings, app, run
from experiments.understanding.answering import PIECE, SHORT, begin, reference_nats
from experiments.understanding.data import read_data
from experiments.understanding.documents import Document, Question
from experiments.understanding.prompts import Asked, Asker
from experiments.understanding.scores import ROUGE, answer_f1, rouge
from experiments.understanding.tables import summarise, table
from experiments.understanding.tasks import TASKS
from msrnn_jax.text.tokenizer import Tokenizer

CONTEXT, BUDGET, MOST = 700, 400, 6  # the same in all tests: few compilations
CONSOLE = Console(quiet=True)
QUESTIONS = ("1/1", "1/2", "p1q0", "p1q1", "p1q2")


def words(count: int, seed: int) -> str:
    """Text that the toy's characters can spell."""
    random = np.random.default_rng(seed)
    return " ".join("".join(random.choice(list("abcdefghij"), 4)) for _ in range(count))


def story(number: int, questions: int = 2) -> dict:
    """A row of SQuALITY's dev.jsonl."""
    return {
        "metadata": {"passage_id": str(number), "uid": f"u{number}", "license": "none"},
        "document": words(150, number),
        "questions": [
            {
                "question_text": f"What is {words(2, 10 * number + place)}",
                "question_number": place,
                "responses": [
                    {"worker_id": "1", "uid": "r", "response_text": words(4 + place, 100 * number + 10 * place + index)}
                    for index in range(2)
                ],
            }
            for place in range(1, questions + 1)
        ],
    }


def annotation(kind: str) -> dict:
    """An answer of one of QASPER's four kinds."""
    empty = {"unanswerable": False, "extractive_spans": [], "yes_no": None, "free_form_answer": "", "evidence": []}
    changes = {
        "none": {"unanswerable": True},
        "spans": {"extractive_spans": ["abc def", "ghi"]},
        "free": {"free_form_answer": "a bad dad"},
        "yes": {"yes_no": True},
        "no": {"yes_no": False},
    }
    return {**empty, **changes[kind]}


KINDS = [["free", "spans"], ["yes"], ["none", "no"]]


def paper(number: int) -> dict:
    """A paper as the authors publish it, without its key."""
    return {
        "title": "abc",
        "abstract": words(10, number),
        "full_text": [
            {"section_name": "head", "paragraphs": [words(70, 2 * number), words(70, 2 * number + 1)]},
            {"section_name": None, "paragraphs": ["", "end"]},
        ],
        "qas": [
            {
                "question": words(3, 30 + place),
                "question_id": f"p{number}q{place}",
                "answers": [{"answer": annotation(kind), "annotation_id": "x"} for kind in kinds],
            }
            for place, kinds in enumerate(KINDS)
        ],
    }


def loader_form(name: str, paper: dict) -> dict:
    """The same as the `datasets` loader yields it: tables are objects of columns."""

    def columns(rows: list[dict]) -> dict:
        return {field: [row[field] for row in rows] for field in rows[0]}

    questions = [{**question, "answers": columns(question["answers"])} for question in paper["qas"]]
    return {**paper, "id": name, "full_text": columns(paper["full_text"]), "qas": columns(questions)}


def write_stories(path: pathlib.Path, *rows: dict | str) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def write_papers(path: pathlib.Path, papers: dict | list) -> str:
    path.write_text(json.dumps(papers))
    return str(path)


def make_small(folder: pathlib.Path) -> str:
    """The toy with its first layer alone, for fewer compilations, and many tokens that end an answer."""
    toy = make_toy(folder / "toy")
    config, params = ms.load(toy)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = {name: pathlib.Path(toy, name).read_text() for name in names}
    files["tokenizer_config.json"] = json.dumps({"bos_token_id": None, "eos_token_ids": list(range(3, 50, 4))})
    ms.save(folder / "small", config.replace(num_layers=1), params.replace(layers=params.layers[:1]), files=files)
    return str(folder / "small")


def small_command(folder: pathlib.Path) -> list[str]:
    """Arguments for a run of a few seconds with six lines."""
    data = write_stories(folder / "dev.jsonl", story(1), story(2))
    return [make_small(folder), "--data", data, "--policy", "tova", "--mode", "oneshot", *SIZES]


SIZES = ["--context", str(CONTEXT), "--budget", str(BUDGET), "--max-new-tokens", str(MOST)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return make_small(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(toy) -> Model:
    return open_model(toy)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_stories(folder / "dev.jsonl", story(1))
    write_papers(folder / "papers.json", {"1234": paper(1)})
    return str(folder)


@pytest.fixture(scope="module")
def settings(toy, data) -> Settings:
    """Both tasks, all questions: two on a story and three on a paper."""
    return Settings(toy, (data,), budgets=(BUDGET,), context=CONTEXT, max_new_tokens=MOST, questions=0)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("out") / "lines.jsonl"


@pytest.fixture(scope="module")
def lines(settings, out) -> list[dict[str, Any]]:
    return run(settings, out, CONSOLE)


def line_of(lines, document: str, policy: str, mode: str | None) -> dict[str, Any]:
    (found,) = (
        line
        for line in lines
        if (line["document"], line["setting"]["policy"], line["setting"]["mode"]) == (document, policy, mode)
    )
    return found


def ask(tokenizer: Tokenizer, data: str, name: str, limit: int, chat: bool = True) -> Asked:
    """One question of the data as a prompt."""
    for document in read_data([data], [], CONSOLE):
        for question in document.questions:
            if question.name == name:
                return Asker(tokenizer, chat).ask(document, [question], limit)[0]
    raise AssertionError(name)


@pytest.mark.exhaustive
def test_every_question_is_asked_in_every_setting(lines):
    keys = {(line["document"], *(line["setting"][name] for name in ("policy", "budget", "mode"))) for line in lines}
    settings = [("full", CONTEXT, None), ("baseline", BUDGET, None)]
    settings += [(policy, BUDGET, mode) for policy in ("window:sinks=4", "tova") for mode in ("stepwise", "oneshot")]
    assert keys == {(question, *setting) for question in QUESTIONS for setting in settings}
    assert len(lines) == len(keys)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", ["stepwise", "oneshot", None], ids=str)
@pytest.mark.parametrize("policy", ["tova", "window:sinks=4"])
def test_what_is_shared_between_questions_and_settings_changes_nothing(lines, model, data, policy, mode):
    """Every number is that of the library on the whole prompt of one question, read from an empty state."""
    if mode is None and policy == "tova":
        policy, budget, limit, kind = ms.Full(), 900, CONTEXT, "full"
    elif mode is None:
        policy, budget, limit, kind = ms.Full(), 900, BUDGET, "baseline"
    else:
        policy, budget, limit, kind = ms.parse_policy(policy), BUDGET, CONTEXT, policy
    config, params = model.config, model.params
    for name in QUESTIONS:
        asked = ask(model.tokenizer, data, name, limit)
        padded, length = np.pad(asked.prompt, (0, CONTEXT - len(asked.prompt))), len(asked.prompt)
        empty = ms.init_state(config, policy, budget, slots=901 if kind in ("full", "baseline") else BUDGET + 1)
        state, logits = ms.prefill(config, policy, params, empty, padded, length, mode or "stepwise")
        total = 0.0
        for reference in asked.references:
            total -= float(jax.nn.log_softmax(logits)[int(reference[0])])
            inputs, targets = (
                np.pad(reference[:-1], (0, 40 - len(reference))),
                np.pad(reference[1:], (0, 40 - len(reference))),
            )
            total += float(ms.nll(config, policy, params, state, inputs, targets, len(reference) - 1)[1].sum())
        line = line_of(lines, name, kind, mode)
        assert line["reference_nats"] == pytest.approx(total, rel=1e-4)
        assert line["reference_tokens"] == sum(map(len, asked.references))
        stop = model.tokenizer.stop
        written = [int(np.argmax(logits))]
        while written[-1] not in stop and len(written) < MOST:
            state, logits = _step(config, policy, params, state, np.int32(written[-1]))
            written.append(int(np.argmax(logits)))
        task = TASKS[line["setting"]["task"]]
        answer = model.tokenizer.decode([token for token in written if token not in stop])
        assert line["generated_tokens"] == len(written)
        assert line["answer"] == task.answer(answer)
        assert line["score"] == task.score(line["answer"], asked.question.references)["score"]


_step = jax.jit(ms.step)


@pytest.mark.exhaustive
def test_the_lines_show_what_they_should(lines):
    """Else the test before would see nothing: settings differ, and some answers end before their limit."""
    assert {line["generated_tokens"] < MOST for line in lines} == {True, False}
    for question in ("1/2", "p1q0"):
        nats = [line["reference_nats"] for line in lines if line["document"] == question]
        assert len(set(nats)) == len(nats)


def test_a_reference_of_many_pieces_is_read_to_its_end(model):
    tokens = np.random.default_rng(0).integers(4, 50, PIECE + 2 * SHORT - 13).astype(np.int32)
    reading = begin(model, ms.TOVA(), BUDGET)
    logits = model.params.embedding[0] * 0 @ model.params.embedding.T  # of a stream of zeros, which nothing has read
    nats = ms.nll(model.config, ms.TOVA(), model.params, reading.state, tokens[:-1], tokens[1:])[1]
    expected = float(nats.sum()) - float(jax.nn.log_softmax(logits)[int(tokens[0])])
    assert reference_nats(model, ms.TOVA(), reading, tokens) == pytest.approx(expected, rel=1e-4)


@pytest.mark.exhaustive
def test_a_run_that_was_cut_off_ends_in_the_same_numbers(lines, settings, out, tmp_path):
    whole = out.read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(whole[:9]) + whole[9][:50])
    again = run(settings, cut, CONSOLE)
    for line in (*lines, *again):
        line.pop("seconds", None)
    assert again == lines
    count = len(cut.read_text().splitlines())
    assert run(settings, cut, CONSOLE)
    assert len(cut.read_text().splitlines()) == count  # nothing was measured twice


@pytest.mark.exhaustive
def test_the_command_prints_a_table(tmp_path):
    command = [*small_command(tmp_path), "--out", str(tmp_path / "lines.jsonl")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "oneshot" in result.output and "baseline" in result.output
    found = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    # Where one question of each story is asked, it is not always the first.
    assert {line["document"] for line in found if line["kind"] == "understanding result"} == {"1/1", "2/2"}
    assert [line["kind"] for line in found].count("understanding result") == 6


@pytest.mark.exhaustive
def test_rows_are_means_over_questions_and_paired_differences(lines):
    rows = summarise(lines)
    assert len(rows) == 12
    (row,) = (row for row in rows if (row["task"], row["policy"], row["mode"]) == ("qasper", "tova", "oneshot"))
    names = ("p1q0", "p1q1", "p1q2")
    mine = [line_of(lines, name, "tova", "oneshot") for name in names]
    full = [line_of(lines, name, "full", None) for name in names]
    nats = sum(line["reference_nats"] for line in mine) / sum(line["reference_tokens"] for line in mine)
    theirs = sum(line["reference_nats"] for line in full) / sum(line["reference_tokens"] for line in full)
    assert (row["nats"], row["nats_above_full"]) == pytest.approx((nats, nats - theirs))
    assert row["score"] == pytest.approx(np.mean([line["score"] for line in mine]))
    assert row["questions"] == 3 and "rouge1" not in row
    summary = rows[0]  # ROUGE of many answers is the geometric mean of means, not the mean of geometric means
    assert summary["score"] == pytest.approx(np.prod([summary[name] for name in ROUGE]) ** (1 / 3))
    assert table(rows).row_count == 12


@pytest.mark.parametrize("chat", [True, False])
def test_the_end_of_the_text_is_cut_and_nothing_else(model, data, chat):
    for name in ("1/1", "p1q2"):
        (document,) = (one for one in read_data([data], [], CONSOLE) if name in {q.name for q in one.questions})
        for limit in (CONTEXT, BUDGET, 10_000):
            asked = ask(model.tokenizer, data, name, limit, chat)
            text = model.tokenizer.decode(asked.prompt)
            # What the toy's characters cannot spell is "?" here and there.
            whole = model.tokenizer.decode(model.tokenizer.encode(document.text))
            ending = TASKS[document.task].prompt.format(document="", question=asked.question.text)
            spelled = model.tokenizer.decode(model.tokenizer.encode(ending))
            assert text.endswith(spelled)
            body = text.removesuffix(spelled)
            assert whole.startswith(body)
            assert body == whole if limit == 10_000 else len(asked.prompt) == limit


def test_an_answer_goes_on_from_the_prompt(model, data):
    chat, plain = (ask(model.tokenizer, data, "p1q1", CONTEXT, chat).references[0] for chat in (True, False))
    assert model.tokenizer.decode(chat) == "?es"  # the toy has no Y
    assert model.tokenizer.decode(plain) == " ?es"


def test_an_answer_to_a_question_on_a_paper_is_one_line():
    assert TASKS["qasper"].answer("\n yes \nQuestion: why") == "yes"
    assert TASKS["squality"].answer(" one\n\ntwo ") == "one\n\ntwo"


def test_f1_is_that_of_the_authors_of_qasper():
    assert answer_f1("The BERT-base model!", ["bertbase model"])["score"] == 100
    # Common: two of three words, of four in the answer.
    assert answer_f1("red and blue and", ["blue red green"])["score"] == pytest.approx(100 * 2 * 2 / 7)
    assert answer_f1("no", ["Unanswerable", "No"])["score"] == 100  # the best counts
    assert answer_f1("the", ["a"])["score"] == 0  # nothing is left of both
    assert answer_f1("theme", ["me"])["score"] == 0  # an article is a word of its own
    assert answer_f1("yes yes", ["yes"])["score"] == pytest.approx(100 * 2 / 3)
    assert answer_f1("USA", ["the U.S.A."])["score"] == 100  # points go first: what is left of it is no article


def test_rouge_takes_the_best_reference_for_each():
    found = rouge("the cat sat here", ["the cat sat", "here sat cat the"])
    assert found["rouge1"] == pytest.approx(100)  # the second
    assert found["rouge2"] == pytest.approx(100 * 2 * 2 / (3 + 2))  # the first
    assert found["rougeL"] == pytest.approx(100 * 2 * 3 / (4 + 3))  # the first
    product = found["rouge1"] * found["rouge2"] * found["rougeL"]
    assert found["score"] == pytest.approx(product ** (1 / 3))
    assert rouge("walks", ["walking"])["rouge1"] == 0  # words are not stemmed
    assert rouge("", ["walking"])["score"] == 0


def test_both_forms_of_qasper_are_the_same_papers(tmp_path):
    theirs = write_papers(tmp_path / "authors.json", {"1234": paper(1)})
    array = write_papers(tmp_path / "array.json", [loader_form("1234", paper(1))])
    rows = write_stories(tmp_path / "rows.json", loader_form("1234", paper(1)), loader_form("99", paper(2)))
    (first,) = read_data([theirs], [], CONSOLE)
    assert read_data([array], ["qasper"], CONSOLE) == [first]
    assert read_data([rows], [], CONSOLE)[0] == first
    assert [question.references for question in first.questions] == [
        ("a bad dad", "abc def, ghi"),
        ("Yes",),
        ("Unanswerable", "No"),
    ]
    assert first.text.startswith("abc\n\n") and "\n\nhead\n\n" in first.text and first.text.endswith("\n\nend")


def test_stories_are_read_as_published(tmp_path):
    path = write_stories(tmp_path / "dev.jsonl", story(7), "", story(8))
    first, second = read_data([path], [], CONSOLE)
    assert first == Document(
        "squality",
        "7",
        story(7)["document"],
        tuple(
            Question(f"7/{number}", row["question_text"], tuple(one["response_text"] for one in row["responses"]))
            for number, row in enumerate(story(7)["questions"], 1)
        ),
    )
    assert second.name == "8"


def test_a_folder_gives_what_it_has(tmp_path):
    (tmp_path / "deep").mkdir()
    write_stories(tmp_path / "deep" / "dev.jsonl", story(1))
    write_papers(tmp_path / "papers.json", {"1234": paper(1)})
    write_papers(tmp_path / "manifest.json", {"books": [1, 2]})
    with open(tmp_path / "notes", "w") as file:
        console = Console(file=file, width=200)
        assert [one.task for one in read_data([str(tmp_path)], [], console)] == ["squality", "qasper"]
    assert "manifest.json' holds neither" in (tmp_path / "notes").read_text()
    assert [one.task for one in read_data([str(tmp_path)], ["qasper"], CONSOLE)] == ["qasper"]


def read_noted(path: str) -> tuple[list[str], list[str]]:
    """The questions of some data, and the notes that were printed."""
    console = Console(file=io.StringIO())
    documents = read_data([path], [], console)
    return [question.name for document in documents for question in document.questions], (
        console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    )


def changed(row: dict, path: list, value: Any) -> dict:
    """The row with another value at a place, or without it where the value is `...`."""
    row = copy.deepcopy(row)
    place: Any = row
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return row


FIRST = ["qas", 0, "answers", 0, "answer"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is an array of 1; it must be an object"),
        (
            changed(story(2), ["document"], ...),
            "line 2 has no field 'document'; its fields are 'metadata', 'questions'",
        ),
        (changed(story(2), ["document"], " "), "line 2: field 'document' is empty"),
        (changed(story(2), ["document"], "a \ud800"), "line 2 holds '\\ud800', half of a surrogate pair"),
        (changed(story(2), ["metadata", "passage_id"], None), "field 'passage_id' is None"),
        (changed(story(2), ["questions"], {}), "line 2: field 'questions' is an object of 0; it must be an array"),
        (changed(story(2), ["questions", 1, "question_text"], 5), "line 2, question 2: field 'question_text' is 5"),
        (changed(story(2), ["questions", 1, "question_number"], True), "question 2: field 'question_number' is True"),
        (changed(story(2), ["questions", 0, "responses"], []), "line 2, question 1 has no responses"),
        (changed(story(2), ["questions", 0, "responses", 1, "response_text"], ...), "question 1, response 2 has no"),
    ],
)
def test_a_bad_story_is_left_out_and_told_of_with_its_place(tmp_path, row, message):
    """Of a story with one bad question the other remains."""
    path = write_stories(tmp_path / "dev.jsonl", story(1), row, story(3))
    names, (note,) = read_noted(path)
    assert note.startswith("note: data file") and message in note and "dev.jsonl', line 2" in note
    second = {"question 1": ["2/2"], "question 2": ["2/1"]}
    expected = next((rest for place, rest in second.items() if place in message), [])
    assert names == ["1/1", "1/2", *expected, "3/1", "3/2"]


def test_a_question_counts_once(tmp_path):
    path = write_stories(tmp_path / "dev.jsonl", story(1), story(2), story(1))
    names, notes = read_noted(path)
    assert names == ["1/1", "1/2", "2/1", "2/2"] and len(notes) == 2
    assert "dev.jsonl', line 3: question '1/1' is in data file" in notes[0] and "line 1 already" in notes[0]
    with pytest.raises(ValueError, match="dev.jsonl' is read already, as .*; it counts once"):
        read_data([str(tmp_path), path], [], CONSOLE)
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "broken.jsonl").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe.json")
    names, notes = read_noted(str(tmp_path))
    assert names == ["1/1", "1/2", "2/1", "2/2"] and len(notes) == 5
    assert "broken.jsonl' does not exist" in notes[0] and "link.jsonl' is read already, as" in notes[3]
    assert "pipe.json' is not a file" in notes[4]


def test_a_row_says_by_itself_what_it_is(tmp_path):
    """One of another kind, or none, does not hide the others; nor does the first, of a file that has a row a line."""
    mixed = write_papers(tmp_path / "mixed.json", [loader_form("a", paper(1)), story(2), {"title": "x"}])
    names, (note,) = read_noted(mixed)
    assert names == ["p1q0", "p1q1", "p1q2", "2/1", "2/2"]
    assert "mixed.json', row 3 has neither 'questions' nor 'qas'; its fields are 'title'" in note
    rows = write_stories(tmp_path / "rows.json", "{", loader_form("a", paper(1)))
    names, (note,) = read_noted(rows)
    assert names == ["p1q0", "p1q1", "p1q2"] and "rows.json', line 1 is not JSON" in note
    twice = tmp_path / "twice.json"
    twice.write_text(f'{{"a": {json.dumps(paper(1))}, "a": {json.dumps(paper(2))}}}')
    with pytest.raises(ValueError, match="twice.json' has the field 'a' twice in one object"):
        read_data([str(twice)], [], CONSOLE)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "paper 'bad' is an array of 0; it must be an object"),
        (changed(paper(2), ["title"], ...), "paper 'bad' has no field 'title'"),
        (changed(paper(2), ["full_text", 0, "paragraphs"], "x"), "section 1: field 'paragraphs' is 'x'"),
        (changed(paper(2), ["full_text", 0, "paragraphs", 0], 3), "section 1, a paragraph is 3; it must be text"),
        (changed(paper(2), ["full_text"], {"a": [1], "b": []}), "columns of different lengths: 'a' 1, 'b' 0"),
        (changed(paper(2), ["qas", 1, "answers"], []), "question 2 has no answers"),
        (changed(paper(2), [*FIRST, "free_form_answer"], ""), "question 1, answer 1 says nothing"),
        (changed(paper(2), [*FIRST, "unanswerable"], None), "field 'unanswerable' is None; it must be true or false"),
        (changed(paper(2), [*FIRST, "extractive_spans"], [2]), "answer 1, a span is 2"),
        (changed(paper(2), ["qas", 0, "answers", 0], {}), "question 1, answer 1 has no field 'answer'"),
    ],
)
def test_a_bad_paper_is_left_out_and_told_of_with_its_place(tmp_path, row, message):
    path = write_papers(tmp_path / "papers.json", {"bad": row, "good": paper(1)})
    names, (note,) = read_noted(path)
    assert message in note and "papers.json', paper 'bad'" in note and names[-3:] == ["p1q0", "p1q1", "p1q2"]
    bad = {"question 1": ["p2q1", "p2q2"], "question 2": ["p2q0", "p2q2"], "answer 1": ["p2q1", "p2q2"]}
    bad |= dict.fromkeys(("'unanswerable'",), ["p2q1", "p2q2"])
    assert names[:-3] == next((rest for place, rest in bad.items() if place in message), [])
    form = {"id": "bad", **row} if row and isinstance(row, dict) else row
    path = write_papers(tmp_path / "rows.json", [loader_form("good", paper(1)), form])
    again, (note,) = read_noted(path)
    assert "row 2" in note and sorted(again) == sorted(names)


def test_files_that_cannot_be_data_are_refused(tmp_path):
    other = write_papers(tmp_path / "other.json", {"books": [1]})
    torn = write_stories(tmp_path / "torn.json", '{"a": {')
    (tmp_path / "empty").mkdir()
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"questions": "\xe9"}')
    for path, message in {
        other: "holds neither SQuALITY",
        torn: "torn.json' is not JSON",
        str(tmp_path / "empty"): "has no .json or .jsonl file",
        str(latin): r"holds neither .*latin.jsonl', line 1 is not UTF-8: invalid continuation byte at byte 15",
        str(tmp_path / "none"): "does not exist",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_data([path], [], CONSOLE)
    path = write_stories(tmp_path / "first.jsonl", changed(story(2), ["questions"], ...), story(1))
    names, (note,) = read_noted(path)
    assert "first.jsonl', line 1 has neither 'questions' nor 'qas'" in note and names == ["1/1", "1/2"]
    path = write_stories(tmp_path / "bad.jsonl", changed(story(2), ["document"], ...), "{")
    with pytest.raises(ValueError, match="there is nothing to read: data file .*bad.jsonl', line 2 is not JSON"):
        read_data([path], [], CONSOLE)
    names, notes = read_noted(str(tmp_path))
    assert names == ["1/1", "1/2"] and len(notes) == 6
    for file, note in zip(("bad", "bad", "first", "latin", "other", "torn"), notes, strict=True):
        assert f"{file}.json" in note and note.endswith(", and is left out")
    with pytest.raises(ValueError, match="data is missing"):
        read_data([], [], CONSOLE)
    stories = write_stories(tmp_path / "dev.jsonl", story(1))
    with pytest.raises(ValueError, match="no question of qasper; it has those of squality"):
        read_data([stories], ["qasper"], CONSOLE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "quality"], "task is 'quality'"),
        (["--mode", "both"], "mode is 'both'"),
        (["--policy", "full"], "policy is full, which forgets nothing"),
        (["--budget", str(CONTEXT)], "budget is 700; it must be from 2 to 699"),
        (["--budget", "40"], "a prompt may have 40 tokens"),
        (["--documents", "-1"], "documents is -1"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--preset", "big"], "preset is 'big'"),
    ],
)
def test_a_setting_that_cannot_be_measured_is_refused(toy, data, tmp_path, options, message):
    given = [*SIZES, *options] if options[0] != "--budget" else ["--context", str(CONTEXT), *options]
    command = [toy, "--data", data, "--out", str(tmp_path / "lines.jsonl"), *given]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "lines.jsonl").exists()


def test_chat_needs_a_template(toy, model):
    plain = Tokenizer(model.tokenizer.backend, bos=None, stop=(3,), template=None)
    with pytest.raises(ValueError, match="no chat template"):
        Asker(plain, True)
    assert Asker(plain, False)
