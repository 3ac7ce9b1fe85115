"""The tasks of local files, run by lm-evaluation-harness itself."""

import json
import subprocess
import sys

import pytest
import tiny
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from toy import make_toy

from msrnn_jax.lm_eval import TASKS, MultiStateLM
from msrnn_jax.lm_eval.tasks import sources

QUESTION = {"question": "which", "choices": ["a cat", "a dog"], "answer": 1}


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("it was a dark night and the cat slept in the barn. " * 30)
    return str(path)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({**QUESTION, "context": f"text {index}"}) + "\n" for index in range(3)))
    return str(path)


def test_the_three_tasks_run(tmp_path, book, questions):
    lm = MultiStateLM(make_toy(tmp_path / "toy", tiny.SHALLOW), budget=8, batch_size=2)
    metadata = {"texts": book, "choices": questions, "words": 20, "cases": 3, "characters": 100, "budget": 8}
    tasks = ["msrnn_books", "msrnn_choices", "msrnn_needle"]
    manager = TaskManager(include_path=TASKS, metadata=metadata)
    results = simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    assert results is not None
    assert results["results"]["msrnn_books"]["byte_perplexity,none"] > 1
    assert 0 <= results["results"]["msrnn_choices"]["acc,none"] <= 1
    assert results["results"]["msrnn_needle"]["exact_match,first-number"] == 0  # it knows no digits
    assert results["config"]["policy"] == "tova" and results["config"]["rolling"] == "state"
    counts = {name: len(samples) for name, samples in results["samples"].items()}
    assert counts == {"msrnn_books": 1, "msrnn_choices": 3, "msrnn_needle": 3}


def test_a_needle_that_is_found_counts(tmp_path, book, monkeypatch):
    lm = MultiStateLM(make_toy(tmp_path / "toy", tiny.SHALLOW), budget=8)
    rows = list(sources.hide_needles(book, words=20, cases=3)["test"])
    answers = [f" {rows[0]['value']} or", " 00000", f" it is {rows[2]['value']}"]
    monkeypatch.setattr(lm, "generate_until", lambda requests: answers)
    manager = TaskManager(include_path=TASKS, metadata={"texts": book, "words": 20, "cases": 3})
    results = simple_evaluate(lm, tasks=["msrnn_needle"], task_manager=manager, bootstrap_iters=0)
    assert results["results"]["msrnn_needle"]["exact_match,first-number"] == pytest.approx(2 / 3)


def test_needles_lie_at_all_depths(book):
    rows = list(sources.hide_needles(book, words=40, cases=5)["test"])
    assert [row["depth"] for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    for row in rows:
        words = row["text"].split()
        fact = f"{row['question']} {row['value']}."
        before = len(row["text"].split(fact)[0].split())
        assert before == round(40 * row["depth"]) and len(words) == 40 + len(fact.split())
    assert rows == list(sources.hide_needles(book, words=40, cases=5)["test"])
    assert rows != list(sources.hide_needles(book, words=40, cases=5, needle_seed=1)["test"])


def test_books_are_whole_or_begin(book):
    whole = sources.read_books([book])["test"]["text"]
    assert sources.read_books(book, characters=10)["test"]["text"] == [whole[0][:10]]


def test_examples_need_no_file():
    rows = list(sources.read_choices()["test"])
    assert len(rows) == 12 and len({row["answer"] for row in rows}) == 4 and not any(row["context"] for row in rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "answer is 2; it must be from 0 to 1"),
        ({"choices": ["one"]}, "choices is .*; it must be a list of at least two texts"),
        ({"choices": "ab"}, "field 'choices'"),
        ({"question": None}, "field 'question'"),
    ],
    ids=str,
)
def test_questions_that_are_refused(tmp_path, change, message):
    path = tmp_path / "wrong.jsonl"
    path.write_text(json.dumps({**QUESTION, **change}))
    with pytest.raises(ValueError, match=message):
        sources.read_choices(str(path))


@pytest.mark.exhaustive
def test_the_command(tmp_path, questions):
    toy = make_toy(tmp_path / "toy", tiny.SHALLOW)
    command = [sys.executable, "-m", "msrnn_jax.lm_eval", "--tasks", "msrnn_choices"]
    command += ["--metadata", f"choices={questions}", "--output_path", str(tmp_path / "out.json"), "--log_samples"]
    given = [*command, "--use_cache", str(tmp_path / "cache"), "--model_args"]
    for _ in range(2):
        done = subprocess.run([*given, f"pretrained={toy},policy=h2o,budget=8"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "acc_norm" in done.stdout and "h2o" in done.stdout
    assert "Requests remaining: 0" in done.stderr
    found = list(tmp_path.rglob("out*.json"))
    assert found and json.loads(found[0].read_text())["config"]["budget"] == 8
    wrong = subprocess.run([*given, f"pretrained={toy},policy=tovva"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[-1].startswith("error: policy 'tovva' is unknown")
