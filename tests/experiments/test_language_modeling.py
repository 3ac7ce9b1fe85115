"""Perplexity of books against the multi-state size: which segments, and what is said of them."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from rich.console import Console
from toy import make_toy

import msrnn_jax as ms
from experiments.common.books import Book, Passage, read_books, spaced, spread
from experiments.common.estimates import by
from experiments.common.model import open_model
from experiments.language_modeling.__main__ import Settings, _units, run
from experiments.language_modeling.reading import Full, read_full, read_short, together
from experiments.language_modeling.tables import summarise
from msrnn_jax.checkpoint.tokenizer import load_tokenizer
from msrnn_jax.evaluation.losses import compare

QUIET = Console(quiet=True)
SIZE = 33  # tokens of a segment: no multiple of the short contexts
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTU."


def write_books(folder: pathlib.Path, lengths: tuple[int, ...] = (150, 100)) -> pathlib.Path:
    """A folder of books of random letters, and a text that is too short to be one."""
    dice = np.random.default_rng(1)
    folder.mkdir()
    for number, length in enumerate((*lengths, SIZE - 1)):
        (folder / f"{number}.txt").write_text("".join(dice.choice(list(LETTERS), length)))
    return folder


def small_command(folder: pathlib.Path) -> list[str]:
    checkpoint, books = make_toy(folder / "toy"), write_books(folder / "books")
    options = ["--segment", str(SIZE), "--segments", "1", "--budget", "8", "--policy", "tova", "--other", "window"]
    return [checkpoint, "--data", str(books), *options]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("lm")
    books = write_books(folder / "books")
    settings = Settings(
        checkpoint=make_toy(folder / "toy"),
        data=(str(books),),
        policies=("h2o", "tova"),
        others=("window",),
        budgets=(4, 8),
        segment=SIZE,
        segments=3,
    )
    console = Console(file=open(folder / "notes", "w"), width=200)
    lines = run(settings, folder / "out.jsonl", console)
    console.file.close()
    assert "note: 1.txt has 100 tokens" not in (folder / "notes").read_text()
    assert "note: 2.txt has 32 tokens, fewer than 99, and is left out" in (folder / "notes").read_text()
    assert [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()[1:]] == lines
    return lines


def texts(tmp: pathlib.Path) -> dict[str, np.ndarray]:
    tokenizer = load_tokenizer(make_toy(tmp / "toy"))
    books = write_books(tmp / "books")
    passages = {}
    for book in read_books(tokenizer, [str(books)], 3 * SIZE, QUIET):
        passages |= {passage.name: passage.tokens for passage in spread(book, SIZE, 3)}
    return passages


def of(lines: list[dict], policy: str, budget: int) -> list[dict]:
    """The lines of one policy at one budget."""
    return by(lines, "policy", "budget")[policy, budget]


def losses(policy: ms.Policy, tokens: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats of every predicted token, and log-probabilities, by the scan of steps."""
    state = ms.init_state(tiny.CONFIG, policy, budget)
    _, (logits, _) = tiny.unroll_jit(tiny.CONFIG, policy, tiny.params(), state, jnp.asarray(tokens[:-1]))
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    return -logs[np.arange(len(tokens) - 1), tokens[1:]], logs


@pytest.mark.exhaustive
def test_the_plan_is_all_policies_on_all_segments_and_the_others_on_fewer(found: list[dict]) -> None:
    names = [line["document"] for line in found if line["setting"]["policy"] == "full"]
    assert names == ["0.txt@0", "0.txt@66", "0.txt@99", "1.txt@0", "1.txt@33", "1.txt@66"]
    assert [line["document"] for line in of(found, "tova", 4)] == names
    assert [line["document"] for line in of(found, "baseline", 8)] == names
    assert [line["document"] for line in of(found, "window", 4)] == ["0.txt@66", "1.txt@33"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("budget", [4, 8])
def test_the_numbers_are_those_of_the_recurrence(found: list[dict], tmp_path: pathlib.Path, budget: int) -> None:
    for name, tokens in texts(tmp_path).items():
        full, theirs = losses(ms.Full(), tokens, SIZE)
        for policy in (ms.H2O(), ms.TOVA()):
            nats, ours = losses(policy, tokens, budget)
            (line,) = [line for line in of(found, str(policy), budget) if line["document"] == name]
            assert line["tokens"] == SIZE - 1
            np.testing.assert_allclose([line["nats"], line["full_nats"]], [nats.sum(), full.sum()], rtol=1e-5)
            np.testing.assert_allclose(line["kl"], (np.exp(theirs) * (theirs - ours)).sum(), rtol=1e-3)
            assert line["agreement"] == (ours.argmax(1) == theirs.argmax(1)).sum()


@pytest.mark.exhaustive
def test_the_baseline_reads_pieces_as_if_each_were_alone(found: list[dict], tmp_path: pathlib.Path) -> None:
    for name, tokens in texts(tmp_path).items():
        full, theirs = losses(ms.Full(), tokens, SIZE)
        nats, same, compared = 0.0, 0.0, 0.0
        for start in range(0, SIZE - 1, 8):  # 33 = 4 x 8 + 1: the last piece has nothing to predict
            piece, ours = losses(ms.Full(), tokens[start : start + 8], 8)
            nats, compared = nats + piece.sum(), compared + full[start : start + 7].sum()
            same += (ours.argmax(1) == theirs[start : start + 7].argmax(1)).sum()
        (line,) = [line for line in of(found, "baseline", 8) if line["document"] == name]
        assert line["tokens"] == 28 and line["agreement"] == same
        np.testing.assert_allclose([line["nats"], line["full_nats"]], [nats, compared], rtol=1e-5)


def test_a_last_piece_that_is_shorter_is_counted_to_its_end(tmp_path: pathlib.Path) -> None:
    tokens, size = next(iter(texts(tmp_path).values())), 6  # 33 = 5 x 6 + 3
    model = open_model(str(tmp_path / "toy"))
    found = read_short(model, tokens, read_full(model, tokens), size)
    full, _ = losses(ms.Full(), tokens, SIZE)
    pieces = [tokens[start : start + size] for start in range(0, SIZE, size)]
    nats = sum(losses(ms.Full(), piece, size)[0].sum() for piece in pieces)
    compared = full.sum() - full[size - 1 :: size].sum()  # what begins a piece is predicted by nobody
    assert found["tokens"] == SIZE - len(pieces)
    np.testing.assert_allclose([found["nats"], found["full_nats"]], [nats, compared], rtol=1e-5)


def test_a_segment_is_read_by_the_full_model_first_and_by_the_others_where_asked() -> None:
    passage = Passage("book", 0, np.arange(9, dtype=np.int32))
    full = Full(jnp.zeros((8, 2)), np.full(8, 0.5, np.float32))
    settings = Settings(budgets=(4,), policies=("tova",), others=("window",))
    plan = {others: list(_units(settings, None, passage, lambda: full, others)) for others in (True, False)}  # pyright: ignore
    names = {others: [key.setting["policy"] for unit in units for key in unit.keys] for others, units in plan.items()}
    assert names == {True: ["full", "baseline", "tova", "window"], False: ["full", "baseline", "tova"]}
    assert plan[True][0].work() == [{"tokens": 8, "nats": 4.0, "kl": 0.0, "agreement": 8.0, "full_nats": 4.0}]


def test_differences_from_the_full_model_are_of_the_same_tokens() -> None:
    setting = {"policy": "tova", "budget": 4, "segment": 9}
    numbers = {"tokens": 8, "kl": 1.0, "agreement": 2.0, "full_nats": 4.0}
    lines = [{"setting": setting, "document": str(i), "nats": nats, **numbers} for i, nats in enumerate((6.0, 8.0))]
    (row,) = summarise(lines)
    assert (row["above_full"], row["kl"], row["agreement"]) == (3 / 8, 1 / 8, 1 / 4)


@pytest.mark.exhaustive
def test_rows_are_weighted_means_with_differences_on_the_same_tokens(found: list[dict]) -> None:
    rows = {(row["policy"], row["budget"]): row for row in summarise(found)}
    mine = of(found, "baseline", 8)
    tokens = sum(line["tokens"] for line in mine)
    row = rows["baseline", 8]
    assert row["segments"] == 6 and row["tokens"] == tokens
    np.testing.assert_allclose(row["perplexity"], np.exp(sum(line["nats"] for line in mine) / tokens))
    differences = [line["nats"] - line["full_nats"] for line in mine]
    np.testing.assert_allclose(row["above_full"], sum(differences) / tokens)
    np.testing.assert_allclose(row["above_full_stderr"], np.std(differences, ddof=1) / 28 / np.sqrt(6))
    assert rows["full", SIZE]["above_full"] == 0 and rows["full", SIZE]["agreement"] == 1


def test_segments_are_spread_evenly_and_nested() -> None:
    book = Book("a", np.arange(100, dtype=np.int32))
    assert [passage.start for passage in spread(book, 10, 3)] == [10, 50, 80]
    assert [passage.start for passage in spread(book, 10, 1)] == [50]
    every = spread(book, 30, 0)
    assert [passage.start for passage in every] == [0, 30, 60]
    np.testing.assert_array_equal(every[1].tokens, np.arange(30, 60))


@pytest.mark.parametrize(("many", "few"), [(2, 1), (4, 1), (4, 3), (5, 2), (3, 0)])
def test_the_fewer_segments_are_some_of_the_many(many: int, few: int) -> None:
    own = spread(Book("a", np.arange(300, dtype=np.int32)), 10, many)
    chosen = spaced(own, few)
    assert len({passage.start for passage in chosen} & {passage.start for passage in own}) == (few or many)


def test_nothing_agrees_with_what_is_no_number() -> None:
    logits = jnp.asarray([[0.0, 1.0], [jnp.nan, 1.0], [0.0, 1.0]])
    full = jnp.asarray([[0.0, 1.0], [0.0, 1.0], [jnp.nan, 0.0]])
    found = compare(logits, full, jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(found["agreement"], [1.0, np.nan, np.nan])


def test_budgets_that_cost_alike_share_a_program() -> None:
    assert together([64, 2048, 512, 1024, 128]) == [[64, 128, 512], [1024, 2048]]
    assert together([600, 32, 4096, 8192]) == [[32], [600], [4096, 8192]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": (8, SIZE)}, f"budget is {SIZE}; it must be from 2 to {SIZE - 1}"),
        ({"budgets": (1,)}, "budget is 1; it must be from 2"),
        ({"policies": ("full",)}, "policy is full, which forgets nothing"),
        ({"policies": ("tova:sinks=9",)}, "sinks"),
        ({"others": ("nothing",)}, "nothing"),
        ({"segments": 2, "other_segments": 3}, "other_segments is 3; it must be from 1 to 2"),
        ({"segments": 5}, "data has no text of 165 tokens; the longest has 150"),
        ({"data": ("missing",)}, "'missing' does not exist"),
        ({"segment": 1}, "segment is 1; it must be a whole number of at least 2"),
    ],
    ids=str,
)
def test_refusals(tmp_path: pathlib.Path, changes: dict, message: str) -> None:
    settings = {"data": (str(write_books(tmp_path / "books")),), "budgets": (8,), "segment": SIZE, **changes}
    with pytest.raises(ValueError, match=message):
        run(Settings(checkpoint=make_toy(tmp_path / "toy"), **settings), tmp_path / "out.jsonl", QUIET)
    assert not (tmp_path / "out.jsonl").exists()


def test_two_books_of_one_name_are_refused(tmp_path: pathlib.Path) -> None:
    first, second = write_books(tmp_path / "a"), write_books(tmp_path / "b")
    with pytest.raises(ValueError, match="two texts called '0.txt'"):
        read_books(load_tokenizer(make_toy(tmp_path / "toy")), [str(first), str(second)], SIZE, QUIET)
