"""`msrnn perplexity`: its numbers, against the logits of `extend`, and its results, however it was cut off."""

import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sweeping
import tiny
from full_disk import room_for
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from msrnn_jax.cli.app import app
from msrnn_jax.devices import memory as batch
from msrnn_jax.evaluation import perplexity, sweep
from msrnn_jax.evaluation.plot import check_plot, draw_perplexity
from msrnn_jax.evaluation.records import RUN, SEGMENT
from msrnn_jax.evaluation.segments import segment
from msrnn_jax.evaluation.settings import Settings, read_inputs
from msrnn_jax.io.journal import open_journal
from msrnn_jax.io.provenance import text_hash
from msrnn_jax.policies.source import source_hash

# The package shows functions under the names of these modules.

ROOT = pathlib.Path(__file__).parents[2]
PANGRAM = "the quick brown fox jumps over the lazy dog. "
SIZE = 24  # tokens of a segment
ALIKE = ["--budget", "7", "--batch", "2"]  # tests that measure one policy so, or as below, share a program
MANY = ["--policy", "tova", "--policy", "window:sinks=1", "--policy", "full", "--budget", "4", "--budget", "7"]
MANY += ["--fidelity", "--batch", "2"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return make_toy(tmp_path_factory.mktemp("models") / "toy", tiny.SHALLOW)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    letters = random.Random(0).choices("abcdefghij .", k=9 * SIZE - 5)
    path.write_text("".join(letters) + "é")  # unknown to the tokenizer, two bytes
    return str(path)


def run(toy: str, *arguments: str, code: int = 0, **options):
    command = ["perplexity", toy, "--segment", str(SIZE), *arguments]
    result = CliRunner().invoke(app, command, catch_exceptions=False, **options)
    assert result.exit_code == code, result.output
    return result


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def results(toy: str, *arguments: str, **options) -> list[dict]:
    return objects(run(toy, *arguments, "--json", **options).stdout)


def rows(path: pathlib.Path) -> list[dict]:
    """Lines of a result file but the heads of runs."""
    return [line for line in objects(path.read_text()) if line["kind"] == SEGMENT]


def ratio(sums: list[float], counts: list[int]) -> tuple[float, float]:
    """A mean per token and its standard error over segments, from the definition."""
    mean = sum(sums) / sum(counts)
    squares = sum((total - mean * count) ** 2 for total, count in zip(sums, counts, strict=True))
    return mean, math.sqrt(squares * len(sums) / (len(sums) - 1)) / sum(counts)


def test_numbers_are_those_of_the_logits(toy, text):
    """Every number of every pair, worked out from all logits at once."""
    config, params = ms.load(toy)
    content = pathlib.Path(text).read_text()
    ids = np.asarray(ms.load_tokenizer(toy).encode(content), np.int32)
    cut = [ids[start : start + SIZE] for start in range(0, len(ids), SIZE)]
    counts = [len(row) - 1 for row in cut]
    said = sum(len(content[start + 1 : start + SIZE].encode()) for start in range(0, len(ids), SIZE))

    def logs(policy: ms.Policy, budget: int) -> list[np.ndarray]:
        state = ms.init_state(config, policy, budget, slots=SIZE)
        padded = [np.pad(row, (0, SIZE - len(row))) for row in cut]
        found = [
            ms.extend(config, policy, params, state, row, length=count)[1][:count]
            for row, count in zip(padded, counts, strict=True)
        ]
        return [scipy.special.log_softmax(np.asarray(logits, np.float64), axis=1) for logits in found]

    def losses(found: list[np.ndarray]) -> list[float]:
        return [-float(p[np.arange(len(p)), row[1:]].sum()) for p, row in zip(found, cut, strict=True)]

    found = results(toy, "--text", text, *MANY)
    pairs = [("tova", 4), ("tova", 7), ("window:sinks=1", 4), ("window:sinks=1", 7), ("full", SIZE - 1)]
    assert [(row["policy"], row["budget"]) for row in found] == pairs
    full = logs(ms.Full(), SIZE - 1)
    for row, (policy, budget) in zip(found, pairs, strict=True):
        mine = logs(ms.parse_policy(policy), budget)
        nats = losses(mine)
        paired = [ours - theirs for ours, theirs in zip(nats, losses(full), strict=True)]
        kl = [float((np.exp(p) * (p - q)).sum()) for p, q in zip(full, mine, strict=True)]
        same = [float((p.argmax(1) == q.argmax(1)).sum()) for p, q in zip(full, mine, strict=True)]
        expected = {"nll": nats, "above_full": paired, "kl": kl, "agreement": same}
        for name, sums in expected.items():
            value, error = ratio(sums, counts)
            assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
            assert row["stderr" if name == "nll" else f"{name}_stderr"] == pytest.approx(error, rel=1e-3, abs=1e-5)
        assert row["perplexity"] == pytest.approx(math.exp(row["nll"]))
        assert row["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / said, rel=1e-4)
        assert (row["tokens"], row["bytes"], row["segments"]) == (sum(counts), said, len(cut))
    full_row = found[-1]
    assert (full_row["kl"], full_row["agreement"], full_row["above_full"]) == (0, 1, 0)
    assert said == sum(counts) + 1  # the last letter has two


def test_fidelity_measures_full_and_changes_no_loss(toy, text):
    plain = results(toy, "--text", text, "--policy", "tova", *ALIKE)
    assert len(plain) == 1 and not {"above_full", "kl", "agreement"} & set(plain[0])
    both = ["--policy", "tova", "--policy", "window:sinks=1"]
    full, tova, _ = results(toy, "--text", text, *both, *ALIKE, "--fidelity")
    assert (full["policy"], full["kl"]) == ("full", 0) and tova["kl"] > 0
    assert tova["nll"] == pytest.approx(plain[0]["nll"], rel=1e-6)
    table = run(toy, "--text", text, "--policy", "tova", *ALIKE, "--fidelity").stdout
    for name, places in (("perplexity", 2), ("bits_per_byte", 4), ("above_full", 4), ("kl", 4), ("agreement", 4)):
        assert f"{tova[name]:.{places}f}" in table
    assert f"± {tova['above_full_stderr']:.4f}" in table


def test_full_is_the_default_beside_tova_and_is_read_once(toy, text, monkeypatch):
    """However many policies are compared with it; and its residual streams may be more than the host should hold."""
    calls = []
    read_rows = perplexity.read_rows

    def counted(config, policy, *args, **options):
        calls.append((str(policy), [row.segment for row in args[3]]))
        return read_rows(config, policy, *args, **options)

    monkeypatch.setattr(perplexity, "read_rows", counted)
    arguments = ["--text", text, *ALIKE, "--fidelity"]
    together = results(toy, *arguments)
    assert [row["policy"] for row in together] == ["full", "tova"]
    full = [segment for policy, segments in calls if policy == "full" for segment in segments]
    assert sorted(set(full)) == list(range(9)) and len(full) == 10  # the last batch is filled up by one
    calls.clear()
    monkeypatch.setattr(perplexity, "STREAM_BYTES", 4 * 4 * (SIZE - 1) * tiny.CONFIG.model_dim)  # four segments
    results_by_group = results(toy, *arguments)
    assert [policy for policy, _ in calls] == ["full"] * 2 + ["tova"] * 2 + ["full"] * 2 + ["tova"] * 2 + [
        "full",
        "tova",
    ]
    assert results_by_group == together


def test_documents_stand_in_the_rows(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text(PANGRAM)
    (tmp_path / "rows.jsonl").write_text('{"body": "x"}\n{"body": "the lazy dog"}\n')
    arguments = ["--text", "books", "--text", "rows.jsonl", "--text", "-", "--field", "body", "--policy", "window"]
    printed = run(toy, *arguments, *ALIKE, "--out", "out.jsonl", "--json", input="from stdin")
    assert printed.stderr == "note: documents with nothing to predict, which are skipped: 1\n"
    (result,) = objects(printed.stdout)
    assert (result["documents"], result["skipped_documents"], result["segments"]) == (3, 1, 4)
    places = [(row["document"], row["document_sha256"], row["segment_index"], row["tokens"]) for row in rows_in("out")]
    assert places == [
        ("books/a.txt", text_hash(PANGRAM), 0, SIZE - 1),
        ("books/a.txt", text_hash(PANGRAM), 1, len(PANGRAM) - SIZE - 1),
        ("rows.jsonl:2", text_hash("the lazy dog"), 0, 11),
        ("-", text_hash("from stdin"), 0, 9),
    ]
    assert sum(row["nats"] for row in rows_in("out")) / result["tokens"] == pytest.approx(result["nll"])


def rows_in(name: str) -> list[dict]:
    return rows(pathlib.Path(f"{name}.jsonl"))


# Results that continue.


@pytest.mark.exhaustive
def test_a_run_killed_ten_times_ends_with_the_same_numbers(toy, text, tmp_path):
    """To the bit: by a process of its own each time, killed when its file has grown by some random amount."""
    undisturbed, killed = tmp_path / "undisturbed.jsonl", tmp_path / "killed.jsonl"
    # Whatever is compiled comes from disk, so that starting again takes two seconds.
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
    command = [sys.executable, "-m", "msrnn_jax", "perplexity", toy, "--text", text, "--segment", "8", *MANY]

    def start(path: pathlib.Path) -> subprocess.Popen:
        output = [*command, "--out", str(path), "--json"]
        return subprocess.Popen(output, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True)

    process = start(undisturbed)
    expected, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and len(rows(undisturbed)) == 135
    draws = random.Random(0)
    line = max(map(len, undisturbed.read_text().splitlines()))
    reached, interrupted = [], 0
    for _ in range(10):
        process = start(killed)
        size = killed.stat().st_size if killed.exists() else 0
        enough = size + draws.randint(1, 6 * line)  # about the head of the run and up to two batches
        while process.poll() is None and (killed.stat().st_size if killed.exists() else 0) < enough:
            time.sleep(0.0005)
        time.sleep(draws.uniform(0, 0.003))
        process.kill()
        process.communicate(timeout=60)
        interrupted += process.returncode == -signal.SIGKILL
        reached.append(killed.read_text().count(SEGMENT))
    assert interrupted == 10 and len({count for count in reached if 0 < count < 135}) >= 5, reached
    process = start(killed)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert rows(killed) == rows(undisturbed)
    assert printed == expected


def test_a_run_whose_disk_is_full_says_so_and_goes_on_later(toy, text, tmp_path):
    undisturbed, full = tmp_path / "undisturbed.jsonl", tmp_path / "full.jsonl"
    expected = results(toy, "--text", text, *MANY, "--out", str(undisturbed))
    for share in (0.3, 0.8):
        with room_for(int(share * undisturbed.stat().st_size)):
            refused = run(toy, "--text", text, *MANY, "--out", str(full), code=2)
        assert refused.stderr.splitlines()[-1] == f"error: {full}: File too large"
        assert len(full.read_bytes().splitlines()) < len(undisturbed.read_bytes().splitlines())
    assert results(toy, "--text", text, *MANY, "--out", str(full)) == expected
    assert rows(full) == rows(undisturbed)


@pytest.mark.exhaustive
def test_a_file_torn_anywhere_continues_to_the_same_numbers(toy, text, tmp_path):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    expected = results(toy, "--text", text, *MANY, "--out", str(whole))
    assert results(toy, "--text", text, *MANY) == expected  # without a file, too
    content = whole.read_bytes()
    draws = random.Random(1)
    for cut in [5, len(content) - 1, *draws.sample(range(len(content)), 10)]:
        torn.write_bytes(content[:cut])
        before = torn.read_bytes().count(b"\n")
        assert results(toy, "--text", text, *MANY, "--out", str(torn)) == expected
        lines = torn.read_bytes().splitlines()
        assert lines[:before] == content.splitlines()[:before]  # what was whole has stayed
        assert rows(torn) == rows(whole)


@pytest.mark.exhaustive
def test_more_policies_and_budgets_use_what_is_there(toy, text, tmp_path, monkeypatch):
    read, read_rows = [], perplexity.read_rows

    def counted(config, policy, *args, **options):
        read.append((str(policy), args[3]))
        return read_rows(config, policy, *args, **options)

    monkeypatch.setattr(perplexity, "read_rows", counted)
    arguments = ["--text", text, "--out", str(tmp_path / "out.jsonl"), "--batch", "3"]
    first = results(toy, *arguments, "--policy", "random", "--budget", "4")
    read.clear()
    more = results(toy, *arguments, "--policy", "random", "--policy", "window", "--budget", "4", "--budget", "7")
    assert more[0] == first[0] and [row["policy"] for row in more] == ["random"] * 2 + ["window"] * 2
    assert {(policy, row.budget) for policy, some in read for row in some} == {
        ("random", 7),
        ("window", 4),
        ("window", 7),
    }
    read.clear()
    assert results(toy, *arguments, "--policy", "random", "--budget", "4", "--segments", "2")[0]["segments"] == 2
    assert not read and len(rows(tmp_path / "out.jsonl")) == 36


@pytest.mark.parametrize(
    "change",
    [
        ["--positions", "cache"],
        "text",
        *map(tiny.more, ["policy", ["--dtype", "bfloat16"], ["--segment", "25"], "versions", "fidelity", "config"]),
    ],
    ids=str,
)
def test_rows_of_something_else_are_not_counted(change, toy, text, tmp_path, monkeypatch):
    out, mine = tmp_path / "out.jsonl", tmp_path / "mine.py"
    source = "import msrnn_jax as ms\nclass Mine(ms.Window): pass\n"
    mine.write_text(source)
    policy = f"{mine}:Mine" if change == "policy" else "window"
    arguments = ["--text", text, "--out", str(out), "--policy", policy, *ALIKE]
    first = results(toy, *arguments)
    before, model = out.read_text(), toy
    if change == "config":
        model = str(shutil.copytree(toy, tmp_path / "toy"))
        config = pathlib.Path(model, "config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | {"norm_eps": 0.1}))
    elif change == "text":
        other = tmp_path / "other.txt"
        other.write_text(pathlib.Path(text).read_text() + "more")
        arguments[1] = str(other)
    elif change == "versions":
        monkeypatch.setattr(
            "msrnn_jax.io.provenance.provenance", lambda: {"versions": {"jax": "0.0"}, "device": "abacus"}
        )
    elif change == "policy":
        mine.write_text(f"{source}# changed")
    else:
        arguments += ["--fidelity"] if change == "fidelity" else change
    found = results(model, *arguments)
    assert out.read_text().startswith(before)  # they stay
    assert change != "config" or found[0]["nll"] != first[0]["nll"]
    number = len([row for row in rows(out) if row["policy"] == policy])
    assert number == 9 + found[-1]["segments"]
    assert results(model, *arguments) == found  # and each continues beside the other
    monkeypatch.undo()
    mine.write_text(source)
    assert results(toy, "--text", text, *arguments[2:10]) == first
    assert len([row for row in rows(out) if row["policy"] == policy]) == number


def test_bos_before_every_segment_is_another_measurement(toy, text, tmp_path, monkeypatch):
    """Its rows and those without it do not mix, nor do those of files in which nobody spoke of it yet."""
    model, out = str(shutil.copytree(toy, tmp_path / "toy")), tmp_path / "out.jsonl"
    pathlib.Path(model, "tokenizer_config.json").write_text('{"bos_token_id": 7, "eos_token_ids": [3]}')
    arguments = ["--text", text, "--out", str(out), "--policy", "tova", *ALIKE]
    plain = results(model, *arguments)
    old = [{name: value for name, value in line.items() if name != "bos"} for line in objects(out.read_text())]
    del old[0]["settings"]["bos_every_segment"]
    out.write_text("".join(json.dumps(line) + "\n" for line in old))
    (found,) = results(model, *arguments, "--bos-every-segment")
    config, params = ms.load(model)
    ids = ms.load_tokenizer(model).encode(pathlib.Path(text).read_text())
    nats = 0.0
    for start in range(0, len(ids), SIZE):
        row = np.asarray([7, *ids[start : start + SIZE]], np.int32)
        length, row = len(row) - 1, np.pad(row, (0, SIZE + 1 - len(row)))
        state = ms.init_state(config, ms.TOVA(), 7)
        nats += float(ms.nll(config, ms.TOVA(), params, state, row[:-1], row[1:], length)[1].sum())
    assert (found["bos"], found["tokens"], plain[0]["bos"]) == (7, len(ids), None)
    assert found["nll"] == pytest.approx(nats / len(ids), rel=1e-5)
    assert found["bytes"] == len(pathlib.Path(text).read_bytes())
    monkeypatch.setattr(perplexity, "read_rows", None)  # all is there
    assert results(model, *arguments) == plain and results(model, *arguments, "--bos-every-segment") == [found]
    refused = run(toy, *arguments, "--bos-every-segment", code=2)
    assert refused.stderr == "error: bos_every_segment is given, but the tokenizer has no BOS token\n"


def test_one_process_at_a_time_writes_a_file(toy, text, tmp_path):
    out = tmp_path / "out.jsonl"
    with filelock.FileLock(tmp_path / ".out.jsonl.lock"):
        failed = run(toy, "--text", text, "--out", str(out), code=2)
    assert failed.stderr == f"error: out is {str(out)!r}, which another process is writing\n" and not out.exists()
    run(toy, "--text", text, "--out", str(out), "--policy", "window", *ALIKE)


def test_a_file_has_one_lock_whatever_links_lead_to_it(tmp_path):
    out, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(out)
    with open_journal(link, (RUN,)), pytest.raises(ValueError, match="which another process is writing"):
        with open_journal(out, (RUN,)):
            pass


@pytest.mark.parametrize("content", ["a diary, one line", "a diary\nof two lines\n", '{"kind": "other"}\n', "[1]\n"])
def test_a_file_of_somebody_else_is_left_alone(content, toy, text, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    assert "whose line 1 is no " in run(toy, "--text", text, "--out", str(out), code=2).stderr
    assert out.read_text() == content


def test_heads_say_what_was_run(toy, text, tmp_path):
    out, policies = tmp_path / "new" / "out.jsonl", ["--policy", "full", "--policy", "window"]
    for _ in range(2):
        run(toy, "--text", text, "--out", str(out), *ALIKE, *policies)
    lines = objects(out.read_text())
    assert [line["kind"] for line in lines] == [RUN, *[SEGMENT] * 18, RUN]
    head, row = lines[0], lines[-2]
    assert head == lines[-1] and head["batches"] == {"full": 2, "window": 2}
    assert head["settings"]["texts"] == [text] and head["settings"]["budgets"] == [7]
    assert {"versions", "device", "python"} <= set(head)
    shared = ("environment", "model_sha256", "config_sha256", "dtype", "positions", "segment", "width")
    assert all(row[name] == head[name] for name in shared)
    assert (row["policy"], row["budget"], row["batch"], row["slots"]) == ("window", 7, 2, 8)
    assert len(row["tokens_sha256"]) == 16 and row["document"] == text


# How many rows at once.


def test_a_batch_that_does_not_fit_is_halved(toy, text, tmp_path, monkeypatch):
    sizes, read = [], sweep._read_rows

    def limited(config, policy, params, segments, *args, **options):
        sizes.append((str(policy), len(segments)))
        if len(segments) > (4 if str(policy) == "tova" else most):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return read(config, policy, params, segments, *args, **options)

    monkeypatch.setattr(sweep, "_read_rows", limited)
    most, out = 2, tmp_path / "out.jsonl"
    arguments = ["--text", text, "--policy", "tova", "--budget", "5", "--fidelity", "--out", str(out)]
    printed = run(toy, *arguments, "--batch", "9", "--json")
    assert [row["batches"] for row in objects(printed.stdout)] == [[2], [4]]
    assert "tova: a batch of 9 rows needs more memory than there is; going on with 4" in printed.stderr
    assert [size for policy, size in sizes if policy == "full"][:3] == [9, 4, 2]
    sizes.clear()
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:-3]))
    again = results(toy, *arguments)  # auto: as the rows that are there
    assert again == objects(printed.stdout)
    assert set(sizes) == {("full", 2), ("tova", 4)}
    most = 0
    failed = run(toy, "--text", text, "--policy", "window", "--budget", "5", code=2)
    assert "error: this needs more memory than there is: RESOURCE_EXHAUSTED" in failed.stderr


def test_the_automatic_batch_follows_the_memory(monkeypatch):
    config, policy = tiny.CONFIG, ms.TOVA()
    options = {"positions": "absolute", "fidelity": False}

    def chosen(rows: int, free: float, **changes) -> int:
        taken = batch.row_bytes(config, policy, 65, 200, **options)
        monkeypatch.setattr(batch, "free_bytes", lambda: int(free * taken / batch.USABLE) + 1)
        return batch.automatic_batch(config, policy, 65, 200, rows, **{**options, **changes})

    assert [chosen(100, free) for free in (0, 0.5, 1, 2, 3.9, 4, 50)] == [1, 1, 1, 2, 2, 4, 4]
    assert chosen(3, 50) == 3 and chosen(100, 4, fidelity=True) < 4 and chosen(100, 4, positions="gap") < 4
    monkeypatch.setattr(batch, "MOST_ON_CPU", 1000)
    assert [chosen(100, free) for free in (8.5, 17, 1000)] == [8, 16, 100]
    sizes = [batch.row_bytes(config, policy, slots, 200, **options) for slots in (65, 129)]
    state = ms.init_state(config, policy, 64)
    assert sizes[1] - sizes[0] >= 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) * 64 / 65


def test_free_memory_is_the_least_of_what_is_known(monkeypatch, tmp_path):
    assert 0 < batch.free_bytes() < 2**45
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert batch._container(tmp_path) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert batch._container(tmp_path) is None and batch._container(tmp_path / "none") is None
    monkeypatch.setattr(batch, "_available", lambda: None)
    monkeypatch.setattr(batch, "_container", lambda: None)
    assert batch.free_bytes() == batch.GUESS
    monkeypatch.setattr(batch, "_container", lambda: -5)
    assert batch.free_bytes() == 0


# What else a user meets.

NAN = """
import jax.numpy as jnp
from flax import struct
import msrnn_jax as ms

class Mine(ms.Policy):
    first: int = struct.field(pytree_node=False, default=0)

    def score(self, layer, t):
        return jnp.where(layer.positions >= self.first, jnp.nan, layer.positions.astype(jnp.float32))
"""


def test_a_score_that_is_no_number_is_an_error(tmp_path):
    """Unless the model yields none either."""
    mine = tmp_path / "mine.py"
    mine.write_text(NAN)
    policy, params = ms.parse_policy(f"{mine}:Mine:first=2"), tiny.params()
    segments, lengths = segment(tiny.tokens(23), 23)
    # NaN goes before all, the oldest first: 0, 1 and the newest four of 22 are held.
    with pytest.raises(ValueError, match="Mine:first=2 scores the token at position 18 NaN in layer 0"):
        sweeping.sweep(tiny.CONFIG, policy, params, segments, lengths, [6])
    broken = params.replace(final_norm=params.final_norm * jnp.nan)
    assert np.isnan(sweeping.sweep(tiny.CONFIG, policy, broken, segments, lengths, [6])[0].nll)


def test_scores_are_looked_at_where_slots_are_held():
    state = ms.init_state(tiny.CONFIG, ms.TOVA(), 4)
    layers = [layer.replace(positions=layer.positions.at[0, :3].set(jnp.array([7, 3, 5]))) for layer in state.layers]
    wrong = layers[1].replace(stats=layers[1].stats.at[0, 2:].set(jnp.nan))  # the free slots too
    state = state.replace(layers=(layers[0].replace(stats=layers[0].stats.at[0, 4].set(jnp.nan)), wrong))
    assert sweep.no_numbers(ms.TOVA(), state).tolist() == [ms.EMPTY, 5]
    assert sweep.no_numbers(ms.Window(), state).tolist() == [ms.EMPTY, ms.EMPTY]


def test_a_plot_is_drawn_or_refused_before_any_work(toy, text, tmp_path, monkeypatch):
    picture = tmp_path / "new" / "plot.png"
    arguments = ["--text", text, "--policy", "full", "--policy", "window", "--budget", "4", *ALIKE, "--plot"]
    run(toy, *arguments, str(picture))
    assert picture.read_bytes()[:4] == b"\x89PNG" and os.listdir(picture.parent) == ["plot.png"]
    for path, message in [
        ("plot.pdf", "it must end in .png"),
        (str(tmp_path / "new" / "plot.png" / "x.png"), "which cannot be written: Not a directory"),
    ]:
        assert message in run(toy, *arguments, path, code=2).stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="plot needs matplotlib, which is not installed"):
        check_plot("plot.png")


def test_a_policy_that_explodes_does_not_press_the_others_together():
    """What lies above the axis is named under it, with its place; of one policy beside the full model nothing does."""

    def draw(**found: list[float]):
        rows = [{"policy": name, "budget": 32 * 2**at, "perplexity": value, "stderr": 0.1}
                for name, values in found.items() for at, value in enumerate(values)]  # fmt: skip
        return draw_perplexity(rows, "toy").axes[0]

    near = {"full": [20.0], "tova": [30.0, 22.0], "h2o": [28.0, 24.0]}
    axes = draw(**near, random=[5000.0, 31.0])
    low, high = axes.get_ylim()
    assert low < 20 * math.exp(-0.1) and 31 < high < 100
    assert "random 5,000 at 32" in axes.get_xlabel() and "31 at 64" not in axes.get_xlabel()
    for found in (near, {"full": [20.0], "random": [5000.0, 31.0]}):
        axes = draw(**found)
        assert "above" not in axes.get_xlabel() and axes.get_ylim()[1] > max(map(max, found.values()))


def test_progress_reaches_every_row(toy, text, tmp_path):
    settings = Settings(toy, (text,), segment=SIZE, budgets=(4, 7), batch=2, fidelity=True)
    inputs = read_inputs(settings)
    for _ in range(2):  # the second time from what is there
        seen: list[perplexity.Progress] = []
        with open_journal(tmp_path / "out.jsonl", (RUN, SEGMENT)) as journal:
            list(perplexity.measure(settings, inputs, journal, report=seen.append))
        done = [now.done for now in seen]
        assert done == sorted(done) and seen[-1].done == seen[-1].rows == 27
    assert not any(now.doing.startswith("compiling") for now in seen)


@pytest.mark.exhaustive
def test_a_run_without_fidelity_goes_on_from_one_with_it(toy, text, tmp_path):
    """Its rows count, and it says of all policies alike what was asked for."""
    arguments = ["--text", text, "--budget", "6", "--out", str(tmp_path / "out.jsonl"), "--policy", "tova"]
    with_kl = results(toy, *arguments, "--policy", "full", "--fidelity")
    assert all({"kl", "agreement"} <= set(row) for row in with_kl)
    plain = results(toy, *arguments, "--policy", "window")
    assert plain[0]["nll"] == with_kl[0]["nll"] and set(plain[0]) == set(plain[1]) and "kl" not in plain[0]
    assert "KL" not in run(toy, *arguments, "--policy", "window").stdout


def test_own_policies_are_told_apart_by_all_the_code_they_are_made_of(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    base = tmp_path / "the_base_of_mine.py"
    base.write_text(
        "import msrnn_jax as ms\nclass Base(ms.Policy):\n    def score(self, layer, t): return layer.positions\n"
    )
    (tmp_path / "mine.py").write_text("from the_base_of_mine import Base\nclass Mine(Base): pass\n")
    policy = ms.parse_policy(f"{tmp_path / 'mine.py'}:Mine")
    code = source_hash(policy)
    assert code and source_hash(ms.TOVA()) is None and code == source_hash(policy)
    base.write_text(base.read_text().replace("positions", "positions * -1"))
    assert source_hash(policy) != code


def test_a_line_whose_number_was_edited_is_refused(toy, text, tmp_path):
    out = tmp_path / "out.jsonl"
    arguments = ["--text", text, "--policy", "window", *ALIKE, "--out", str(out)]
    run(toy, *arguments)
    out.write_text(re.sub(r'"nats": [0-9.]+', '"nats": "many"', out.read_text()))
    assert "out holds a line whose nats is 'many'; it must be a number" in run(toy, *arguments, code=2).stderr


@pytest.mark.exhaustive
def test_what_cannot_be_read_and_what_comes_to_no_number_is_told_and_the_rest_counted(toy, tmp_path):
    """A token whose embedding is NaN spoils the one document that has it."""
    broken, books = tmp_path / "broken", tmp_path / "books"
    config, params = ms.load(toy)
    files = {name: (pathlib.Path(toy) / name).read_text() for name in ("tokenizer.json", "tokenizer_config.json")}
    bad = ms.load_tokenizer(toy).encode("Q")[0]
    ms.save(broken, config, params.replace(embedding=params.embedding.at[bad].set(jnp.nan)), files=files)
    books.mkdir()
    for name, words in (("a", "abcdefgh" * 3), ("b", "abcQefgh" * 3), ("c", "hgfedcba" * 2)):
        (books / f"{name}.txt").write_text(words)
    sound = ["--text", str(books / "a.txt"), "--text", str(books / "c.txt")]
    options = ["--policy", "full", "--policy", "tova", "--budget", "4", "--segment", "24", "--fidelity", "--json"]
    wanted = [json.loads(line) for line in run(str(broken), *sound, *options).stdout.splitlines()]
    (books / "d.txt").write_bytes(b"abc\xff")
    (books / "rows.jsonl").write_text('{"text": 1}\n')
    out = tmp_path / "out.jsonl"
    printed = run(str(broken), "--text", str(books), *options, "--out", str(out))
    found = [json.loads(line) for line in printed.stdout.splitlines()]
    for ours, theirs in zip(found, wanted, strict=True):
        for name in ("perplexity", "nll", "stderr", "above_full", "kl", "agreement", "tokens", "bytes", "segments"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6)
        assert (ours["failed_segments"], ours["unreadable_documents"], ours["documents"]) == (1, 2, 3)
        assert (theirs["failed_segments"], theirs["unreadable_documents"]) == (0, 0)
    notes = " ".join(printed.stderr.split())
    assert "note: left out: text file" in notes and "d.txt' is not UTF-8" in notes and "field 'text' is 1" in notes
    assert "tova, budget 4: 1 of 3 segments came to no number and are left out, such as segment 0 of" in notes
    again = run(str(broken), "--text", str(books), *options, "--out", str(out))
    assert [json.loads(line) for line in again.stdout.splitlines()] == found  # a document that failed is not run again
    lines = rows(out)
    assert len(lines) == 6
    head = json.loads(out.read_text().splitlines()[0])
    assert len(head["unreadable"]) == 2 and "d.txt' is not UTF-8" in head["unreadable"][0]
    (books / "d.txt").write_text("cabbages" * 2)  # it is mended, and the others are not run again
    mended = run(str(broken), "--text", str(books), *options, "--out", str(out))
    assert [json.loads(line)["segments"] for line in mended.stdout.splitlines()] == [3, 3]
    assert rows(out)[:6] == lines and [row["document"] for row in rows(out)[6:]] == [str(books / "d.txt")] * 2
    alone = run(str(broken), "--text", str(books / "b.txt"), *options, code=2)
    assert "1 of 1 segments came to no number and are left out" in alone.stderr
    assert alone.stderr.endswith("error: every segment came to no number (nan, inf); the model must compute numbers\n")
