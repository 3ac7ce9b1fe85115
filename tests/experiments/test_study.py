"""Results of experiments as JSON lines: what counts, what is found again, and what starts anew."""

import dataclasses
import io
import json
import pathlib
from collections.abc import Sequence

import pytest
from rich.console import Console
from toy import make_toy

from experiments.common.model import open_model
from experiments.common.policies import named
from experiments.common.study import Key, Unit, open_study, read_record
from msrnn_jax.io.provenance import environment

QUIET = Console(quiet=True)
MODEL = {"model_sha256": "1" * 16, "config_sha256": "3" * 16, "dtype": "float32"}


@dataclasses.dataclass(frozen=True)
class Settings:
    data: tuple[pathlib.Path, ...] = ()


def key(policy: str, document: str, sha256: str = "0" * 16) -> Key:
    return Key({"policy": policy, "budget": 4}, document, sha256)


class Count:
    """Work that says how often it was done."""

    def __init__(self, keys: Sequence[Key]):
        self.done: list[str] = []
        self.units = [Unit([one], lambda one=one: self.work(one)) for one in keys]

    def work(self, one: Key) -> list[dict[str, float]]:
        self.done.append(one.document)
        return [{"value": float(len(one.document))}]


def complete(path: pathlib.Path, keys: Sequence[Key], model: dict[str, str] = MODEL) -> tuple[list[dict], list[str]]:
    count = Count(keys)
    with open_study(path, "trial", Settings(), model, keys) as study:
        return study.complete(count.units, QUIET), count.done


KEYS = [key("a", "one"), key("a", "three"), key("b", "one")]


def test_nothing_is_done_twice_and_lines_come_in_the_order_of_the_plan(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trial.jsonl"
    first, done = complete(path, KEYS)
    assert done == ["one", "three", "one"]
    again, nothing = complete(path, KEYS[::-1])
    assert nothing == [] and again == first[::-1]
    assert [line["value"] for line in first] == [3.0, 5.0, 3.0]


def test_a_run_that_was_cut_off_goes_on(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trial.jsonl"
    complete(path, KEYS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:-20])  # the second result is torn
    found, done = complete(path, KEYS)
    assert done == ["three", "one"] and [line["value"] for line in found] == [3.0, 5.0, 3.0]
    assert len(path.read_bytes().splitlines()) == len(lines)


def test_a_unit_that_was_cut_off_is_worked_out_again_whole_and_counts_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trial.jsonl"
    seen = []

    def work() -> list[dict[str, int]]:
        seen.append(len(seen))
        return [{"value": 10}, {"value": 20}]

    keys = KEYS[:2]
    with open_study(path, "trial", Settings(), MODEL, keys) as study:
        study.add(keys[1:], [{"value": 20}], 1.0)
        found = study.complete([Unit(keys, work)], QUIET)
    assert seen == [0] and [line["value"] for line in found] == [10, 20]
    results = [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == "trial result"]
    assert [line["document"] for line in results] == ["three", "one"]


def test_programs_are_freed_where_no_policy_of_before_comes_again(tmp_path, monkeypatch) -> None:
    freed: list[int] = []
    for order, expected in (("aabbc", [2, 4]), ("aabab", []), ("abac", [3])):
        count = Count([key(policy, str(number)) for number, policy in enumerate(order)])
        monkeypatch.setattr("jax.clear_caches", lambda done=count.done: freed.append(len(done)))
        path = tmp_path / f"{order}.jsonl"
        with open_study(path, "trial", Settings(), MODEL, [unit.keys[0] for unit in count.units]) as study:
            study.complete(count.units, QUIET)
        assert freed == expected
        freed.clear()


@pytest.mark.parametrize(
    "changed",
    [key("a", "one", "f" * 16), Key({"policy": "a", "budget": 5}, "one", "0" * 16), key("c", "one")],
    ids=["text", "budget", "policy"],
)
def test_another_text_or_setting_starts_anew(tmp_path: pathlib.Path, changed: Key) -> None:
    complete(tmp_path / "trial.jsonl", KEYS)
    assert complete(tmp_path / "trial.jsonl", [changed])[1] == ["one"]


def test_another_model_starts_anew_and_leaves_the_others_results(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trial.jsonl"
    complete(path, KEYS)
    other = {**MODEL, "model_sha256": "2" * 16}
    assert len(complete(path, KEYS, other)[1]) == 3
    assert complete(path, KEYS)[1] == [] and complete(path, KEYS, other)[1] == []


def test_another_config_or_library_starts_anew(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trial.jsonl"
    complete(path, KEYS)
    assert len(complete(path, KEYS, {**MODEL, "config_sha256": "4" * 16})[1]) == 3
    assert complete(path, KEYS)[1] == []
    machine = environment()
    monkeypatch.setattr("experiments.common.study.environment", lambda: {**machine, "python": "4.0"})
    assert len(complete(path, KEYS)[1]) == 3


def test_a_record_says_which_code_its_lines_are_of(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trial.jsonl"
    for commit, keys in (("one", KEYS[:2]), ("two", KEYS), ("three", KEYS)):
        monkeypatch.setattr("experiments.common.study.commit", lambda commit=commit: commit)
        complete(path, keys)
    assert read_record(path, "trial").commits == ["one", "two"], "the third found nothing"


def test_a_checkpoint_is_known_by_all_that_it_reads_and_writes_with(tmp_path: pathlib.Path) -> None:
    made = pathlib.Path(make_toy(tmp_path / "toy"))
    known = open_model(str(made)).about
    assert open_model(str(made)).about == known
    for name, old, new in (
        ("config.json", '"norm_eps": 1e-05', '"norm_eps": 1e-04'),
        ("tokenizer_config.json", "[3]", "[3, 4]"),
        ("tokenizer_config.json", '"eos_token_ids"', '"eos_token": "a", "eos_token_ids"'),
        ("chat_template.jinja", "{{ message['content'] }}", "{{ message['content'] }}."),
        ("tokenizer.json", '"?"', '"!"'),
    ):
        text = (made / name).read_text()
        assert old in text, name
        (made / name).write_text(text.replace(old, new))
        other = open_model(str(made)).about
        (made / name).write_text(text)
        assert other["config_sha256"] != known["config_sha256"] and other["model_sha256"] == known["model_sha256"], name


def test_a_users_policy_is_known_by_its_code(tmp_path: pathlib.Path) -> None:
    assert named("tova:sinks=1") == {"policy": "tova:sinks=1"}
    code = "import msrnn_jax as ms\n\n\nclass Mine(ms.TOVA):\n    pass\n"
    hashes = []
    for number, text in enumerate((code, code + "# another\n")):
        (tmp_path / f"mine{number}.py").write_text(text)
        hashes.append(named(f"{tmp_path}/mine{number}.py:Mine")["policy_sha256"])
    assert hashes[0] != hashes[1]


def test_a_record_is_what_the_latest_run_asked_for(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trial.jsonl"
    complete(path, KEYS)
    with open_study(path, "trial", Settings(), MODEL, [*KEYS[1:], key("c", "two")]) as study:
        record = read_record(path, "trial")  # while it is being written
        assert study.lacks(key("c", "two"))
    assert [line["document"] for line in record.lines] == ["three", "one"]
    assert not record.is_complete and record.seconds >= 0
    complete(path, KEYS)
    assert read_record(path, "trial").is_complete


def test_a_record_does_not_change_what_it_reads(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trial.jsonl"
    complete(path, KEYS)
    torn = path.read_bytes()[:-20]
    path.write_bytes(torn)
    assert len(read_record(path, "trial").lines) == 2 and path.read_bytes() == torn


def test_what_came_to_no_number_is_left_out_and_said(tmp_path: pathlib.Path) -> None:
    path, said = tmp_path / "trial.jsonl", io.StringIO()
    nan = Unit(KEYS[:1], lambda: [{"value": float("nan")}])
    fine = Unit(KEYS[1:2], lambda: [{"value": 2, "deeper": [1.0, {"unknown": None}]}])
    worse = Unit(KEYS[2:3], lambda: [{"value": 1, "deeper": [1.0, {"value": float("inf")}]}])
    with open_study(path, "trial", Settings(), MODEL, KEYS[:3]) as study:
        found = study.complete([nan, fine, worse], Console(file=said, width=200))
    assert [line["value"] for line in found] == [2]
    assert "note: 2 of 3 results came to no number, such as one (" in said.getvalue()
    record = read_record(path, "trial")
    assert record.lines == found and [line["value"] for line in record.failed] == [None, 1] and record.is_complete
    with open_study(path, "trial", Settings(), MODEL, [KEYS[0], KEYS[2]]) as study:
        with pytest.raises(ValueError, match="trial: 2 of 2 results came to no number"):
            study.complete([nan, worse], QUIET)


def test_refusals(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trial.jsonl"
    with pytest.raises(ValueError, match="'one' under .* is asked for twice"):
        complete(path, [KEYS[0], KEYS[0]])
    complete(path, KEYS)
    with pytest.raises(ValueError, match="line 1 is no other run or other result"):
        with open_study(path, "other", Settings(), MODEL, KEYS):
            pass
    with pytest.raises(ValueError, match="another process"):
        with open_study(path, "trial", Settings(), MODEL, KEYS):
            complete(path, KEYS)
    with pytest.raises(ValueError, match="do not exist; python -m experiments.trial makes them"):
        read_record(tmp_path / "nothing.jsonl", "trial")
    with pytest.raises(ValueError, match="must end in .jsonl"):
        complete(tmp_path / "trial.json", KEYS)
