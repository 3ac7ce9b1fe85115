"""Perplexity over streams: one state from the first token to the last, whatever the blocks."""

import pathlib

import numpy as np
import pytest
import tiny
from rich.console import Console
from toy import make_toy

import msrnn_jax as ms
from experiments.common.model import open_model
from experiments.extrapolation import reading
from experiments.extrapolation.__main__ import Settings, run
from experiments.extrapolation.tables import summarise

QUIET = Console(quiet=True)
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTU."
COUNT = 45


def write_books(folder: pathlib.Path) -> pathlib.Path:
    dice = np.random.default_rng(2)
    folder.mkdir()
    for number, length in enumerate((60, COUNT, COUNT - 1, 80)):
        (folder / f"{number}.txt").write_text("".join(dice.choice(list(LETTERS), length)))
    return folder


def small_command(folder: pathlib.Path) -> list[str]:
    checkpoint, books = make_toy(folder / "toy", tiny.SHALLOW), write_books(folder / "books")
    return [checkpoint, "--data", str(books), "--tokens", str(COUNT), "--budget", "8", "--batch", "1"]


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("streams")
    make_toy(folder / "toy", tiny.SHALLOW), write_books(folder / "books")
    return folder


def settings(folder: pathlib.Path, **changes) -> Settings:
    options = {"policies": ("tova",), "budget": 8, "positions": ("absolute",), "tokens": COUNT, **changes}
    return Settings(checkpoint=str(folder / "toy"), data=(str(folder / "books"),), **options)


@pytest.mark.parametrize("positions", tiny.few(["absolute", "cache", "gap"], "gap"))
def test_a_stream_is_read_through_one_state(folder: pathlib.Path, tmp_path: pathlib.Path, positions: str) -> None:
    books = 0 if positions == "absolute" else 2
    lines = run(settings(folder, positions=(positions,), books=books), tmp_path / "out.jsonl", QUIET)
    names = ["0.txt@0", "1.txt@0", "3.txt@0"]  # 2.txt is a token too short
    assert [line["document"] for line in lines] == names[: books or 3]
    assert [line["setting"]["batch"] for line in lines] == [2, 2, 1][: books or 3]
    model = open_model(str(folder / "toy"))
    for line in lines:
        text = (folder / "books" / line["document"].split("@")[0]).read_text()
        tokens = np.asarray(model.tokenizer.encode(text)[:COUNT], np.int32)
        state = ms.init_state(tiny.SHALLOW, ms.TOVA(), 8, positions=positions)
        _, nats = ms.nll(tiny.SHALLOW, ms.TOVA(), tiny.params(config=tiny.SHALLOW), state, tokens[:-1], tokens[1:])
        nats = np.asarray(nats, np.float64)
        assert line["tokens"] == [16, 16, 12]
        np.testing.assert_allclose(line["nats"], [nats[:16].sum(), nats[16:32].sum(), nats[32:].sum()], rtol=1e-5)


def test_the_running_average_is_over_all_tokens_so_far(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lines = run(settings(folder, policies=("tova", "window")), tmp_path / "out.jsonl", QUIET)
    rows = summarise(lines)
    assert [row["policy"] for row in rows] == ["tova", "window"]
    first, second = lines[:2]
    assert rows[0]["lengths"] == [16, 32, 44] and rows[0]["books"] == 2
    means = [(sum(first["nats"][:2]) / 32), (sum(second["nats"][:2]) / 32)]
    np.testing.assert_allclose(rows[0]["perplexity"][1], np.exp(np.mean(means)))
    np.testing.assert_allclose(rows[0]["stderr"][1], np.std(means, ddof=1) / np.sqrt(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 100}, "data has no text of 100 tokens; the longest has 80"),
        ({"tokens": 1}, "tokens is 1; it must be a whole number of at least 2"),
        ({"batch": 0}, "batch is 0"),
        ({"budget": 0}, "budget"),
        ({"policies": ("full",)}, "policy is full, which forgets nothing"),
        ({"positions": ("relative",)}, "relative"),
    ],
    ids=str,
)
def test_refusals(folder: pathlib.Path, tmp_path: pathlib.Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(settings(folder, **changes), tmp_path / "out.jsonl", QUIET)
    assert not (tmp_path / "out.jsonl").exists()
