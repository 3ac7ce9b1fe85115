"""The experiment that writes stories, and its judge, asked over a server on this machine."""

import contextlib
import http.server
import json
import math
import pathlib
import threading
import time

import numpy as np
import pytest
from rich.console import Console
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from experiments.generation import __main__ as generation
from experiments.generation import endpoint
from experiments.generation.endpoint import Judge, ask
from experiments.generation.judging import judge_stories, question_of, read_choice
from experiments.generation.tables import summarise, summarise_judge
from experiments.generation.writing import distinct, same_until
from msrnn_jax.checkpoint.tokenizer import load_tokenizer

# The same in all runs: whatever they write, they share three programs for writing and one for reading.
SHAPE = ["--batch", "3", "--budget", "24,40", "--max-new-tokens", "48", "--context", "256"]
PROMPTS = ["tell me of the sea", "and of what is below it", "once upon a time", "the end of it all", "what now"]
KEY = "sk-secret-7d1f"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return make_toy(tmp_path_factory.mktemp("generation") / "toy")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)


def write_prompts(path: pathlib.Path, prompts: list[str] = PROMPTS) -> str:
    """Rows as those of LongBench-Write."""
    rows = [{"prompt": text, "type": "Literature", "length": 100} for text in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def small_command(folder: pathlib.Path) -> list[str]:
    """Arguments of a run of seconds, of 15 lines in 6 units."""
    return [make_toy(folder / "toy"), "--data", write_prompts(folder / "prompts.jsonl"), "--stories", "5", *SHAPE]


def command(*arguments: str, code: int = 0):
    done = CliRunner().invoke(generation.app, list(arguments), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def results(path: pathlib.Path) -> list[dict]:
    """Its results without their times."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{**line, "seconds": None} for line in lines if line["kind"].endswith(" result")]


@pytest.fixture(scope="module")
def written(toy, tmp_path_factory) -> pathlib.Path:
    """What a run over the prompts wrote."""
    folder = tmp_path_factory.mktemp("written")
    data = write_prompts(folder / "prompts.jsonl")
    done = command(toy, "--data", data, "--stories", "5", *SHAPE, "--out", str(folder / "out.jsonl"))
    assert "above full" in done.stdout and "5 stories each" in done.stdout
    return folder / "out.jsonl"


@pytest.mark.exhaustive
def test_stories_are_the_same_until_something_is_forgotten(written):
    lines = results(written)
    full = {line["document"]: line for line in lines if line["setting"]["policy"] == "full"}
    assert [line["setting"]["budget"] for line in lines] == 3 * [256] + 3 * [24] + 3 * [40] + [256, 256, 24, 24, 40, 40]
    assert list(full) == [f"prompts.jsonl:{number}#0" for number in range(1, 6)]
    diverged = 0
    for line in lines:
        theirs = full[line["document"]]
        assert line["sha256"] == theirs["sha256"]
        alike = min(line["tokens"], theirs["tokens"], line["setting"]["budget"] + 2 - line["prompt_tokens"])
        assert line["same_until"] >= alike
        assert line["text"][: alike - 1] == theirs["text"][: alike - 1]
        diverged += line["same_until"] < min(line["tokens"], theirs["tokens"])
    assert diverged >= 2  # or this would show nothing
    assert len({line["text"] for line in full.values()}) == 5
    ended = [line for line in lines if line["ended"]]
    assert 0 < len(ended) < len(lines) and all(line["tokens"] == 48 for line in lines if not line["ended"])


@pytest.mark.exhaustive
def test_numbers_are_those_of_the_full_model_reading_the_story(toy, written):
    config, params = ms.load(toy)
    tokenizer = load_tokenizer(toy)
    line = next(line for line in results(written) if line["ended"] and line["setting"]["budget"] == 24)
    prompt = tokenizer.encode(line["prompt"])
    story = tokenizer.encode(line["text"]) + list(tokenizer.stop)
    assert (line["prompt_tokens"], line["tokens"]) == (len(prompt), len(story))
    tokens = np.asarray(prompt + story)
    _, logits = ms.extend(config, ms.Full(), params, ms.init_state(config, ms.Full(), 99), tokens)
    logits = np.asarray(logits, np.float64)[len(prompt) - 1 : -1]
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(line["nats"], -logs[np.arange(len(story)), story].sum(), rtol=1e-5)
    assert line["agreement"] == (logits.argmax(axis=1) == story).sum()
    for size in (1, 2, 3, 4):
        grams = [line["text"][start : start + size] for start in range(len(story) - size)]
        assert line[f"distinct_{size}"] == len(set(grams)) / len(grams)


@pytest.mark.exhaustive
def test_a_story_depends_on_its_prompt_and_seed_wherever_it_stands(toy, written, tmp_path):
    data = write_prompts(tmp_path / "prompts.jsonl", PROMPTS[::-1])
    out = tmp_path / "out.jsonl"
    command(toy, "--data", data, "--stories", "5", *SHAPE, "--out", str(out))
    first, second = (
        {(line["sha256"], line["setting"]["budget"]): line for line in results(path)} for path in (written, out)
    )
    assert first.keys() == second.keys()
    assert all(first[key]["text"] == second[key]["text"] for key in first)
    command(toy, "--data", data, "--stories", "5", *SHAPE, "--seed", "1", "--out", str(out))
    other = {line["text"] for line in results(out)[len(first) :]}
    assert len(results(out)) == 2 * len(first) and not other & {line["text"] for line in first.values()}


@pytest.mark.exhaustive
@pytest.mark.parametrize("kept", [2, 5, 11])
def test_a_run_that_was_cut_off_ends_the_same(toy, written, tmp_path, kept):
    content = written.read_text().splitlines(keepends=True)
    out = tmp_path / "out.jsonl"
    out.write_text("".join(content[: kept + 1]) + content[kept + 1][:50])
    data = write_prompts(tmp_path / "prompts.jsonl")
    command(toy, "--data", data, "--stories", "5", *SHAPE, "--out", str(out))
    assert results(out) == results(written)


@pytest.mark.exhaustive
def test_fewer_prompts_than_stories_are_written_again_by_other_draws(toy, tmp_path):
    rows = [{"question_id": 81, "turns": ["tell me of the sea", "now without it"]}, {"turns": ["what now", "and then"]}]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = generation.settings_of(
        generation.PRESETS,
        "small",
        checkpoint=toy,
        data=str(tmp_path / "bench.jsonl"),
        stories=5,
        budgets=[24],
        max_new_tokens=48,
        context=256,
        batch=3,
        chat=False,
    )
    lines = generation.run(settings, tmp_path / "out.jsonl", Console(quiet=True))
    full = [line for line in lines if line["setting"]["policy"] == "full"]
    names = ["bench.jsonl:1#0", "bench.jsonl:2#0", "bench.jsonl:1#1", "bench.jsonl:2#1", "bench.jsonl:1#2"]
    assert [line["document"] for line in full] == names and len({line["text"] for line in full}) == 5
    assert [line["prompt"] for line in full[:3]] == ["tell me of the sea", "what now", "tell me of the sea"]
    assert full[0]["setting"]["chat"] is False


@pytest.mark.exhaustive
def test_a_context_is_filled(toy, tmp_path):
    out, data = tmp_path / "out.jsonl", write_prompts(tmp_path / "prompts.jsonl")
    shape = ["--batch", "3", "--budget", "24", "--max-new-tokens", "0", "--context", "56"]  # the shortest prompt has 8
    command(toy, "--data", data, "--stories", "5", *shape, "--out", str(out))
    lines = results(out)
    assert all(line["ended"] or line["prompt_tokens"] + line["tokens"] == 56 for line in lines)
    assert not all(line["ended"] for line in lines) and lines[0]["setting"] | {"width": 128} == {
        "policy": "full",
        "budget": 56,
        "max_new_tokens": 0,
        "context": 56,
        "temperature": 1.0,
        "top_p": 0.9,
        "seed": 0,
        "chat": True,
        "mode": "stepwise",
        "batch": 3,
        "width": 128,
        "new": 48,
    }


@pytest.mark.exhaustive
def test_without_data_and_template_the_instruction_has_a_form(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "STORY", "a story")
    command(toy, "--no-chat", "--stories", "3", *SHAPE, "--out", str(tmp_path / "out.jsonl"))
    lines = results(tmp_path / "out.jsonl")
    assert [line["document"] for line in lines[:3]] == ["story#0", "story#1", "story#2"]
    assert {line["prompt"] for line in lines} == {"a story"} and len({line["text"] for line in lines[:3]}) == 3
    written = "### Instruction:\na story\n\n### Response:\n"
    assert {line["prompt_tokens"] for line in lines} == {len(load_tokenizer(toy).encode(written))}


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ('{"text": "a"}', [], "line 1 has neither 'prompt' nor 'turns'; give the field of its prompt, one of 'text'"),
        ('{"turns": []}', [], "line 1: field 'turns' is an empty list; it must have a text"),
        ('{"prompt": " \\n"}', [], "line 1: field 'prompt' is empty; it must be text"),
        ('{"prompt": "\\ud800"}', [], "line 1 holds '\\ud800', half of a surrogate pair"),
        ('{"prompt": "x"}', [], "line 1: chat template: "),
        ('{"prompt": "%s"}' % ("a" * 209), [], "line 1 has 209 tokens; a prompt must have from 1 to 208"),
        ("", [], "prompts.jsonl' is empty"),
        (None, [], "prompts.jsonl' does not exist"),
        ('{"prompt": "a"}', ["--budget", "256"], "budget is 256; it must be from 2 to 255, less than what is read"),
        ('{"prompt": "a"}', ["--policy", "full"], "policy is full, which forgets nothing; name those that forget"),
        ('{"prompt": "a"}', ["--policy", "window:sinks=30"], "protects 30 sinks"),
        ('{"prompt": "a"}', ["--mode", "fast"], "mode is 'fast'; it must be one of stepwise, oneshot"),
        ('{"prompt": "a"}', ["--stories", "0"], "stories is 0; it must be a whole number of at least 1"),
        ('{"prompt": "a"}', ["--context", "9999"], "context is 9999; it must be at most 2048"),
        ('{"prompt": "a"}', ["--top-p", "0"], "top_p: p is 0.0; it must be a number from 1e-06 to 1"),
        ('{"prompt": "a"}', ["--temperature", "0", "--top-p", "0.5"], "temperature 0 draws nothing"),
        (
            '{"prompt": "a"}',
            ["--temperature", "0"],
            "writes one story of a prompt, but 20 are asked for and there are 1",
        ),
        ('{"prompt": "a"}', ["--judge-model", "m"], "judge_model is given, but no judge"),
        ('{"prompt": "a"}', ["--judge", "http://127.0.0.1:1/v1"], "judge_model is missing"),
        (
            '{"prompt": "a"}',
            ["--judge", "localhost", "--judge-model", "m"],
            "judge is 'localhost'; it must be an address",
        ),
        ('{"prompt": "a"}', ["--judge", f"http://{KEY}@a/v1", "--judge-model", "m"], "has more than an address in it"),
        (
            '{"prompt": "a"}',
            ["--judge", "http://a/v1", "--judge-model", "m", "--judge-key-env", "NO_SUCH_KEY"],
            "judge_key_env is 'NO_SUCH_KEY', but this variable is not set",
        ),
        (
            '{"prompt": "a"}',
            ["--judge", "http://a/v1", "--judge-model", "m", "--judge-out", "OUT"],
            "where the stories go; it must be another file",
        ),
        (
            '{"prompt": "a"}',
            ["--judge", "http://a/v1", "--judge-model", "m", "--judge-out", "judged.json"],
            "it must end in .jsonl",
        ),
    ],
)
def test_what_cannot_be_run_is_one_line_before_any_work(rows, arguments, message, toy, tmp_path):
    data, out = tmp_path / "prompts.jsonl", str(tmp_path / "out.jsonl")
    if rows is not None:
        data.write_text(rows)
    arguments = [argument.replace("OUT", out) for argument in arguments]
    done = command(toy, "--data", str(data), *SHAPE, *arguments, "--out", out, code=2)
    *notes, line = done.stderr.splitlines()
    assert [message in note for note in notes] == ["there is nothing to read" in line] * len(notes)
    assert line.startswith("error: ") and message in line and KEY not in line
    assert not pathlib.Path(out).exists()


@pytest.mark.exhaustive
def test_rows_that_cannot_be_prompts_are_told_and_left_out(toy, tmp_path):
    rows = ['{"turns": []}', '{"prompt": "tell me"}', '{"prompt": ', '["b"]', '{"prompt": "x"}', '{"turns": ["a"]}']
    rows += ['{"prompt": 3}', '{"prompt": "%s"}' % ("a" * 209), '{"prompt": "of the sea"}', '{"prompt": ""}']
    data = tmp_path / "prompts.jsonl"
    data.write_bytes("\n".join(rows).encode() + b'\n{"prompt": "\xff"}')
    done = command(toy, "--data", str(data), *SHAPE, "--stories", "2", "--out", str(tmp_path / "out.jsonl"))
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    wrong = {
        1: "field 'turns' is an empty list; it must have a text",  # and prompts are no turns for that
        3: "is not JSON",
        4: "is an array of 1; it must be an object",
        6: "has no field 'prompt'; its fields are 'turns'",
        7: "field 'prompt' is 3; it must be text or an array",
        10: "field 'prompt' is empty; it must be text",
        11: "is not UTF-8: invalid start byte at byte 12",
        5: "chat template: ",  # known only when prompts are made
        8: "has 209 tokens; a prompt must have from 1 to 208",
    }
    for note, (number, problem) in zip(notes, wrong.items(), strict=True):
        assert f"prompts {str(data)!r}, line {number}" in note and problem in note and note.endswith("is left out")
    found = results(tmp_path / "out.jsonl")
    assert {line["document"] for line in found} == {"prompts.jsonl:2#0", "prompts.jsonl:9#0"}


def test_measures_of_a_story():
    story = np.asarray([1, 2, 1, 2, 1])
    assert [distinct(story, size) for size in (1, 2, 3, 6)] == [2 / 5, 2 / 4, 2 / 3, None]
    assert [same_until(story, np.asarray(other)) for other in ([1, 2, 1], [1, 3], [], [1, 2, 1, 2, 1])] == [3, 1, 0, 5]


def story(policy: str, document: str, text: str, tokens: int = 100, **numbers) -> dict:
    """A line of the experiment, as far as tables and judge look at it."""
    return {
        "setting": {"policy": policy, "budget": 256 if policy == "full" else 64},
        "document": document,
        "sha256": document,
        "model_sha256": "m",
        "config_sha256": "c",
        "dtype": "float32",
        "prompt": "Tell {me}.",
        "prompt_tokens": 10,
        "tokens": tokens,
        "text": text,
        **{f"distinct_{size}": 0.5 for size in (1, 2, 3, 4)},
        **{"ended": True, "nats": 2.0 * tokens, "agreement": 0.5 * tokens, "same_until": 56, **numbers},
    }


def test_the_table_has_means_and_paired_differences():
    full = [story("full", "a", "x", tokens=100), story("full", "b", "x", tokens=50)]
    ours = [
        story("tova", "a", "y", tokens=90, nats=270.0),
        story("tova", "b", "y", tokens=30, nats=90.0, distinct_4=None),
    ]
    theirs, mine = summarise([*full, *ours])
    assert (theirs["tokens"], mine["tokens"], mine["tokens_above_full"]) == (75, 60, -15)
    assert mine["tokens_above_full_stderr"] == pytest.approx(5)
    assert (theirs["nll"], mine["nll"], mine["nll_above_full"], mine["agreement"]) == (2, 3, 1, 0.5)
    assert mine["distinct_4"] == 0.5 and mine["distinct_4_above_full"] == 0 and "tokens_above_full" not in theirs


# The judge.


class Stub(http.server.ThreadingHTTPServer):
    """A judge of which a test says what it answers.

    Attributes:
      seen: bodies of the questions, with the `Authorization` that came with each.
    """

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen = answer, []

    @property
    def judge(self) -> Judge:
        return Judge(f"http://127.0.0.1:{self.server_port}/v1/", "stub", tries=3)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers["Authorization"]))
        said = self.server.answer(body["messages"][0]["content"])
        status, content = said if isinstance(said, tuple) else (200, said)
        if isinstance(content, str | None):
            content = {"choices": [{"message": {"role": "assistant", "content": content}}]}
        with contextlib.suppress(OSError):  # who asked may have gone
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def stub(answer):
    with Stub(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def first_of(question: str) -> str:
    """The text that a question shows as (A)."""
    return question.split("===== Text (A) =====\n")[1].split("\n")[0]


def by_text(question: str) -> str:
    """A judge that likes gold and not lead, calls iron equal, says nothing of mist, and takes the first of others."""
    if "mist" in question:
        return "I would rather not."
    for word, choices in {"gold": ("(A)", "(B)"), "lead": ("(B)", "(A)"), "iron": ("(C)", "(C)")}.items():
        if word in question:
            return choices[0 if first_of(question) == word else 1]
    return "(A)"


STORIES = [
    story(policy, word, word if policy == "tova" else f"full {number}")
    for policy in ("full", "tova")
    for number, word in enumerate(("gold", "lead", "iron", "mist", "alike"))
]


def test_a_win_counts_only_in_both_orders(tmp_path):
    lines = [*STORIES, story("full", "same", "one"), story("tova", "same", "one")]
    lines += [story("full", "short", "one", tokens=56), story("tova", "short", "two", tokens=56)]  # a rounding error
    lines += [story("full", "longer", "gold"), story("tova", "longer", "lead", tokens=57)]  # something was forgotten
    with stub(by_text) as server:
        found = judge_stories(server.judge, tmp_path / "judged.jsonl", lines, Console(quiet=True))
    assert len(found) == 16 and len(server.seen) == 12
    (row,) = summarise_judge(found)
    assert row | {"lead_stderr": None} == {
        "policy": "tova",
        "budget": 64,
        "dropped": 2,
        "pairs": 6,
        "wins": 1,
        "ties": 3,
        "losses": 2,
        "unreadable": 2,
        "lead": pytest.approx(-1 / 6),
        "lead_stderr": None,
    }
    assert row["lead_stderr"] == pytest.approx(math.sqrt((3 - 1 / 6) / 5 / 6))
    path, body, key = server.seen[0]
    assert (path, body["model"], body["temperature"], key) == ("/v1/chat/completions", "stub", 0, None)
    assert body["messages"] == [{"role": "user", "content": question_of("Tell {me}.", "gold", "full 0")}]
    assert [first_of(body["messages"][0]["content"]) for _, body, _ in server.seen[:2]] == ["gold", "full 0"]
    choices = {(line["document"], line["setting"]["first"]): line["choice"] for line in found}
    assert choices["alike", "policy"] == "policy" and choices["alike", "full"] == "full"  # the first one, twice
    assert choices["mist", "full"] == "unreadable" and choices["same", "full"] == choices["short", "full"] == "dropped"
    half = [line for line in found if line["document"] != "gold" or line["setting"]["first"] == "policy"]
    assert summarise_judge(half)[0]["pairs"] == 5  # a pair of which one order was judged is no win yet


def test_no_judgement_is_asked_for_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    count = iter(range(100))
    with stub(lambda question: by_text(question) if next(count) < 3 else (400, {"error": {"message": KEY}})) as server:
        with pytest.raises(ValueError, match=r"answers 400 Bad Request: \*\*\*$"):
            judge_stories(server.judge, tmp_path / "judged.jsonl", STORIES, Console(quiet=True))
        assert len(server.seen) == 4 and server.seen[0][2] == f"Bearer {KEY}"
        server.answer = by_text
        found = judge_stories(server.judge, tmp_path / "judged.jsonl", STORIES, Console(quiet=True))
        assert len(server.seen) == 11 and [line["choice"] for line in found[:4]] == ["policy"] * 2 + ["full"] * 2
        other = [line | {"text": "gold"} if line["text"] == "alike" else line for line in STORIES]
        judge_stories(server.judge, tmp_path / "judged.jsonl", other, Console(quiet=True))
        assert len(server.seen) == 13  # another text is another pair
    assert KEY not in (tmp_path / "judged.jsonl").read_text()


def test_busy_endpoints_are_asked_again():
    said = iter(
        [(429, {"error": {"message": "slow down"}}), (500, b"oh"), "(C)", (503, b"no"), (503, b"no"), (503, b"no")]
    )
    with stub(lambda question: next(said)) as server:
        assert ask(server.judge, "which?") == "(C)" and len(server.seen) == 3
        with pytest.raises(ValueError, match=r"answers 503 Service Unavailable, tries: 3: no$"):
            ask(server.judge, "which?")
    assert len(server.seen) == 6


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ((401, {"error": {"message": f"wrong: {KEY[:-2]}"}}), "refuses the key in MY_KEY: 401 Unauthorized"),
        ((404, {"error": {"message": "no such\nmodel"}}), "answers 404 Not Found: no such model"),
        ((301, b""), "answers 301 Moved Permanently: nothing"),
        ((200, {"choices": []}), 'answers with what is no chat completion: {"choices": []}'),
        ((200, b"[" * 100_000), "answers with what is no chat completion"),
        ((200, b"<html>"), "answers with what is no chat completion: <html>"),
        ((200, [{"a": 1}]), "answers with what is no chat completion"),
        ((200, {"choices": [{"message": {"content": 3}}]}), "answers with what is no chat completion"),
    ],
)
def test_answers_that_are_none_are_one_line(said, message, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with stub(lambda question: said) as server:
        judge = Judge(server.judge.url, "stub", "MY_KEY")
        with pytest.raises(ValueError) as error:
            ask(judge, "which?")
        assert str(error.value).startswith(f"judge {judge.url!r} ") and message in str(error.value)
        assert "\n" not in str(error.value) and KEY[:-2] not in str(error.value) and len(server.seen) == 1


class Halting(Handler):
    """Sends the beginning of an answer, and then what a test says: nothing for a while, an end, or ever more."""

    def do_POST(self):
        super_seen = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(super_seen)
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices"')
            self.wfile.flush()
            self.server.answer(self.wfile)


@pytest.mark.parametrize("how", ["cut", "stalled", "dripping"])
def test_an_answer_that_does_not_end_is_asked_for_again(how):
    def go_on(file):
        for _ in range(0 if how == "cut" else 30):
            if how == "dripping":
                file.write(b" ")
                file.flush()
            time.sleep(0.02)

    with stub(go_on) as server:
        server.RequestHandlerClass = Halting
        with pytest.raises(ValueError, match=r"cannot be asked: .*, tries: 2$"):
            ask(Judge(server.judge.url, "stub", timeout=0.1, tries=2), "which?")
        assert len(server.seen) == 2


def test_an_endpoint_says_how_long_to_wait_but_for_a_minute_at_most(monkeypatch):
    waited = []
    monkeypatch.setattr(endpoint.time, "sleep", waited.append)
    for told in (None, "7", "86400", "soon"):
        endpoint._wait(1, told)
    assert waited == [0.02, 7, 60, 0.02]


def test_silence_and_absence_are_one_line(monkeypatch):
    with stub(lambda question: time.sleep(0.3)) as server:
        with pytest.raises(ValueError, match=r"cannot be asked: no answer within 0.05 seconds, tries: 2$"):
            ask(Judge(server.judge.url, "stub", timeout=0.05, tries=2), "which?")
        assert len(server.seen) == 2
    with pytest.raises(ValueError, match=r"cannot be asked: .*Connection refused.*, tries: 3$"):
        ask(server.judge, "which?")
    with stub(lambda question: (401, b"")) as server:
        with pytest.raises(ValueError, match="refuses to answer without a key, and OPENAI_API_KEY is not set: 401"):
            ask(server.judge, "which?")
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(ValueError, match="the variable OPENAI_API_KEY holds characters that can be in no key"):
        ask(server.judge, "which?")


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        *((answer, "A") for answer in ("(A)", "A", "a.", "**A**", "(a) text A", "Answer: A", "The answer is (A).")),
        *((answer, "B") for answer in ("Text B is better.", "A close call, but (B).", "B)", " B\n", "My choice is B")),
        *((answer, "C") for answer in ("(C) both are equally good", "C: ", "Option C")),
        *((answer, None) for answer in ("", "A clear tie.", "(A) or (B)", "(D)", "Both", "A and B", "Abba", "(AB)")),
    ],
)
def test_answers_are_read_and_not_guessed(answer, choice):
    assert read_choice(answer) == choice


@pytest.mark.exhaustive
def test_the_command_has_its_stories_judged(toy, written, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    out = tmp_path / "out.jsonl"
    out.write_text(written.read_text())
    data = write_prompts(tmp_path / "prompts.jsonl")
    with stub(lambda question: "(B)") as server:
        arguments = [toy, "--data", data, "--stories", "5", *SHAPE, "--out", str(out)]
        arguments += ["--judge", server.judge.url, "--judge-model", "stub"]
        done = command(*arguments)
        asked = len(server.seen)
        command(*arguments)
        assert asked == len(server.seen) > 0
    judged = results(tmp_path / "out_judge.jsonl")
    assert len(judged) == 20 and sum(line["choice"] == "dropped" for line in judged) == 20 - asked
    assert "unreadable" in done.stdout and results(out) == results(written)
    files = [file.read_text() for file in tmp_path.iterdir()]
    assert not any(KEY in text for text in [done.output, *files])
