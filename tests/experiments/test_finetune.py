"""Training through the state: what is read when, what is made small, and runs that are cut off and go on."""

import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from devices import QUICK, environment
from rich.console import Console
from toy import make_toy
from typer.testing import CliRunner

import experiments.finetune.effect as effect
import experiments.finetune.run as running
import experiments.finetune.saving as saving
import msrnn_jax as ms
from experiments.common.books import Book, read_books
from experiments.finetune.__main__ import app
from experiments.finetune.data import Order
from experiments.finetune.losses import Teacher, read_segment
from experiments.finetune.run import meter, run
from experiments.finetune.settings import Settings
from experiments.finetune.training import Descent, Method, begin, decays, train
from msrnn_jax.cli.app import app as msrnn
from msrnn_jax.io.provenance import environment as environment_of_results
from msrnn_jax.params import MATRICES

QUIET = Console(quiet=True)
LETTERS = "abcdefgh"


def write_books(folder: pathlib.Path) -> pathlib.Path:
    """Texts that can be learnt: letters that mostly follow each other in one order."""
    dice = np.random.default_rng(4)
    folder.mkdir()
    for number, length in enumerate((150, 97)):
        places = np.cumsum(1 + (dice.random(length) < 0.2))
        (folder / f"{number}.txt").write_text("".join(LETTERS[place % len(LETTERS)] for place in places))
    return folder


def make_settings(folder: pathlib.Path, **changes) -> Settings:
    checkpoint = str(folder / "toy")
    if not (folder / "toy").exists():
        make_toy(folder / "toy")
        write_books(folder / "books")
    usual = {"budget": 8, "steps": 12, "batch": 2, "length": 32, "segment": 16, "chunk": 8, "warmup": 2}
    return Settings(
        **{
            **{"checkpoint": checkpoint, "data": (str(folder / "books"),), "compute": "float32"},
            **usual,
            **{"learning_rate": 1e-2, "keep_every": 3},
            **changes,
        }
    )


def losses_of(out: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "finetune step"]


def run_cut_off(settings: Settings, out: pathlib.Path, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is interrupted when it takes its step number `call`."""
    calls = []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return train(*args)

    with monkeypatch.context() as breaking:
        breaking.setattr(running, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(settings, out, QUIET)


# What is read.


def test_every_token_is_read_once_an_epoch_and_each_epoch_in_its_own_order() -> None:
    books = [Book("a", np.arange(65, dtype=np.int32)), Book("b", np.arange(100, 175, dtype=np.int32))]
    order = Order(books, 32, 8, 2, seed=3)
    assert [list(stretch[[0, -1]]) for stretch in order.stretches] == [
        [0, 32], [32, 64], [100, 132], [132, 164], [142, 174],
    ]  # fmt: skip
    epochs = []
    for epoch in range(2):
        begun = []
        for step in range(epoch * 10, (epoch + 1) * 10):  # 5 stretches, 2 rows, 4 segments: 10 steps
            reading = order.at(step)
            assert reading.tokens.shape == (2, 9) and reading.begins == (step % 4 == 0)
            if reading.begins:
                begun += reading.tokens[:, 0].tolist()
            else:  # the first token is the last that the step before had to predict
                assert reading.tokens[:, 0].tolist() == order.at(step - 1).tokens[:, -1].tolist()
        epochs.append(begun)
    firsts = sum(epochs, [])[:10]
    assert sorted(firsts[:5]) == [0, 32, 100, 132, 142] == sorted(firsts[5:]) and firsts[:5] != firsts[5:]
    again, other = (Order(books, 32, 8, 2, seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(order.at(17).tokens, again.at(17).tokens)
    assert any((order.at(step).tokens != other.at(step).tokens).any() for step in range(0, 8, 4))


# What is made small.

SCOPES = ("layer", "head")
FLOAT64 = tiny.CONFIG.replace(dtype="float64", num_layers=1)


@partial(jax.jit, static_argnames=("config", "policy"))
def segment_loss(config, policy, params, state, tokens):
    """The loss of a segment that goes on from a state, the state after it, and the gradient."""

    def loss(params):
        losses, (after, _) = read_segment(config, policy, params, state, tokens, None, 5)
        return losses.nats, after

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "policy",
    [
        ms.Full(),
        ms.Random(seed=3),
        ms.Window(sinks=1),
        *(kind(scope=scope) for kind in (ms.H2O, ms.TOVA) for scope in SCOPES),
    ],
    ids=str,
)
def test_the_gradient_is_that_of_finite_differences_with_the_state_before_as_it_is(policy, x64) -> None:
    params, tokens = tiny.params("float64", config=FLOAT64), jnp.asarray(tiny.tokens(27))
    empty = ms.init_state(FLOAT64, policy, tiny.budget_for(policy, 40, 6))
    (_, state), _ = segment_loss(FLOAT64, policy, params, empty, tokens[:14])
    _, gradient = segment_loss(FLOAT64, policy, params, state, tokens[13:])
    drawn = np.random.default_rng(0)
    along = jax.tree.map(lambda leaf: jnp.asarray(drawn.normal(size=leaf.shape)), params)
    size = 1e-5
    ends = [jax.tree.map(lambda w, d, s=sign: w + s * size * d, params, along) for sign in (1, -1)]
    values = [segment_loss(FLOAT64, policy, end, state, tokens[13:])[0][0] for end in ends]
    slope = sum(jnp.vdot(d, g) for d, g in zip(jax.tree.leaves(along), jax.tree.leaves(gradient), strict=True))
    np.testing.assert_allclose(slope, (values[0] - values[1]) / (2 * size), rtol=1e-5)


@pytest.mark.exhaustive
def test_the_gradient_of_the_distance_is_that_of_finite_differences_and_none_flows_into_the_teacher(x64) -> None:
    config = FLOAT64.replace(num_layers=2)
    params, tokens = tiny.params("float64", config=config), jnp.asarray(tiny.tokens(14))
    other = tiny.params("float64", seed=1, config=config)
    state, full = ms.init_state(config, ms.TOVA(), 6), ms.init_state(config, ms.Full(), 40)

    @jax.jit
    def distance(params, other):
        return read_segment(config, ms.TOVA(), params, state, tokens, Teacher(other, full), 5)[0].kl

    gradient, none = jax.jit(jax.grad(distance, argnums=(0, 1)))(params, other)
    assert not any(leaf.any() for leaf in jax.tree.leaves(none))
    drawn = np.random.default_rng(0)
    along = jax.tree.map(lambda leaf: jnp.asarray(drawn.normal(size=leaf.shape)), params)
    size = 1e-5
    ends = [jax.tree.map(lambda w, d, s=sign: w + s * size * d, params, along) for sign in (1, -1)]
    slope = sum(jnp.vdot(d, g) for d, g in zip(jax.tree.leaves(along), jax.tree.leaves(gradient), strict=True))
    np.testing.assert_allclose(slope, (distance(ends[0], other) - distance(ends[1], other)) / (2 * size), rtol=1e-5)


@pytest.mark.exhaustive
def test_segments_that_follow_each_other_are_one_text_and_the_teacher_forgets_nothing(x64) -> None:
    params, tokens = tiny.params("float64", config=FLOAT64), jnp.asarray(tiny.tokens(31))
    other = tiny.params("float64", seed=1, config=FLOAT64)
    state, full = ms.init_state(FLOAT64, ms.TOVA(), 6), ms.init_state(FLOAT64, ms.Full(), 40)
    _, (logits, _) = tiny.unroll_jit(FLOAT64, ms.TOVA(), params, state, tokens[:-1])
    _, (theirs, _) = tiny.unroll_jit(FLOAT64, ms.Full(), other, full, tokens[:-1])
    ours, theirs = jax.nn.log_softmax(logits), jax.nn.log_softmax(theirs)
    nats = -np.asarray(ours)[np.arange(30), tokens[1:]]
    kl = (np.exp(theirs) * (theirs - ours)).sum(1)
    behind: ms.MultiState | None = full
    for start in (0, 15):
        assert behind is not None
        teacher = Teacher(other, behind)
        found, (state, behind) = read_segment(FLOAT64, ms.TOVA(), params, state, tokens[start : start + 16], teacher, 4)
        np.testing.assert_allclose(found.nats, nats[start : start + 15].mean(), rtol=1e-9)
        np.testing.assert_allclose(found.kl, kl[start : start + 15].mean(), rtol=1e-9)


def method_of(**changes) -> Method:
    descent = Descent(1e-2, updates=10, **changes)
    return Method(tiny.CONFIG, ms.TOVA(), budget=6, length=32, distill=0.0, chunk=8, descent=descent)


def two_readings() -> list[jnp.ndarray]:
    return [jnp.asarray(np.stack([tiny.tokens(17, seed + row) for row in (0, 1)])) for seed in (0, 5)]


def fresh() -> ms.Params:
    return jax.tree.map(jnp.copy, tiny.params())  # what is trained is given away


@pytest.mark.exhaustive
def test_steps_that_are_put_together_make_one_update_of_their_mean_gradient() -> None:
    """AdamW written out: the first update is the sign of the gradient, nearly, and matrices decay."""
    method, readings = method_of(accumulate=2, clip=0.05), two_readings()
    training = begin(method, fresh(), jnp.zeros(2, jnp.uint32), 2)

    def loss(params, state, tokens):
        found, after = jax.vmap(lambda state, row: read_segment(tiny.CONFIG, ms.TOVA(), params, state, row, None, 8))(
            state, tokens
        )
        return found.nats.mean(), after[0]

    gradients, states = [], training.states
    for tokens in readings:
        gradient, states = jax.jit(jax.grad(loss, has_aux=True))(tiny.params(), states, tokens)
        gradients.append(gradient)
    for number, tokens in enumerate(readings):
        training, told = train(method, training, None, tokens)
        np.testing.assert_allclose(told.gradient, optax.tree.norm(gradients[number]), rtol=1e-4)
        if number == 0:
            jax.tree.map(np.testing.assert_array_equal, training.trained, tiny.params())
    mean = jax.tree.map(lambda one, two: (one + two) / 2, *gradients)
    norm = float(optax.tree.norm(mean))
    assert norm > 0.05
    rate = 1e-2  # no warm-up
    for name, decay in (("query", 0.1), ("mlp_norm", 0.0)):
        weight, slope = (np.asarray(getattr(tree.layers[1], name)) for tree in (tiny.params(), mean))
        slope = slope * 0.05 / norm
        wanted = weight - rate * (slope / (np.abs(slope) + 1e-8) + decay * weight)
        np.testing.assert_allclose(getattr(training.trained.layers[1], name), wanted, rtol=0, atol=2e-4)


def test_matrices_and_adapters_decay_norms_and_biases_do_not() -> None:
    config = tiny.CONFIG.replace(attention_bias=True, output_bias=True, mlp_bias=True, qk_norm=True)
    params = jax.eval_shape(partial(ms.init_params, config), jax.random.key(0))
    found = decays(params)
    layer = found.layers[0]
    kept = {name for name, value in vars(layer).items() if value is False}
    assert kept == {
        *("attention_norm", "mlp_norm", "query_norm", "key_norm", "query_bias", "key_bias", "value_bias"),
        *("output_bias", "gate_bias", "up_bias", "down_bias"),
    }
    assert all(getattr(layer, name) is True for name in MATRICES)
    assert found.embedding is True and found.final_norm is False
    adapters = ms.init_adapters(tiny.CONFIG, 2, jax.random.key(0))
    assert all(jax.tree.leaves(decays(adapters)))


def test_progress_says_how_fast_it_is_and_how_long_it_will_take(monkeypatch) -> None:
    now, console = [0.0], Console(file=io.StringIO())
    monkeypatch.setattr("experiments.finetune.run.time.monotonic", lambda: now[0])
    with meter(console, 3, 10, 1000) as update:
        for step in range(4, 11):
            now[0] += 100 if step == 4 else 20  # the first step compiles
            update(step, 2.5)
    assert isinstance(console.file, io.StringIO) and console.file.getvalue().splitlines() == [
        "finetune: step 4 of 10, loss 2.5000",
        "finetune: step 6 of 10, loss 2.5000, 50 tokens/s, 80 s left",
        "finetune: step 8 of 10, loss 2.5000, 50 tokens/s, 40 s left",
        "finetune: step 10 of 10, loss 2.5000, 50 tokens/s, 0 s left",
    ]


def test_the_learning_rate_warms_up_and_falls() -> None:
    descent = Descent(1.0, updates=20, warmup=4, accumulate=2)
    rates = [descent.rate(step) for step in range(40)]
    assert rates[0] == rates[1] == pytest.approx(0.2) and rates[8] == pytest.approx(1.0)
    assert rates[:9] == sorted(rates[:9]) and rates[8:] == sorted(rates[8:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


# Memory, as XLA plans it: nothing is run.


def planned(segment: int, chunk: int) -> int:
    config = tiny.CONFIG.replace(vocab_size=500, num_layers=1)
    method = Method(config, ms.TOVA(), budget=16, length=4096, distill=0.0, chunk=chunk, descent=Descent(0.1, 10))
    params = jax.eval_shape(partial(ms.init_params, config), jax.random.key(0))
    training = jax.eval_shape(lambda params: begin(method, params, jnp.zeros(2, jnp.uint32), 1), params)
    tokens = jax.ShapeDtypeStruct((1, segment + 1), jnp.int32)
    analysis = train.lower(method, training, None, tokens).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.exhaustive
def test_memory_grows_with_the_chunk_and_hardly_with_the_segment() -> None:
    """Of a longer segment there is a state for every chunk, and a row of the residual stream for every token."""
    short, long, wide = planned(512, 32), planned(2048, 32), planned(512, 128)
    print(f"{short} bytes for 512 tokens by 32, {long} for 2,048 by 32, {wide} for 512 by 128")
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(ms.init_state(tiny.CONFIG, ms.TOVA(), 16)))
    assert long - short < (2048 - 512) * (2 * state / 32 + 24 * 4 * 4 + 64)
    assert wide - short > 96 * 500 * 4  # of the logits alone


# Runs.


@pytest.mark.exhaustive
def test_training_makes_the_loss_smaller_and_the_model_is_an_ordinary_checkpoint(tmp_path) -> None:
    settings = make_settings(tmp_path, steps=40)
    lines = run(settings, tmp_path / "out", QUIET)
    assert [line["step"] for line in lines] == list(range(1, 41)) and lines == losses_of(tmp_path / "out")
    first, last = (np.mean([line["nats"] for line in part]) for part in (lines[:4], lines[-4:]))
    assert last < 0.6 * first
    before, after = perplexity(settings.checkpoint, tmp_path), perplexity(tmp_path / "out" / "model", tmp_path)
    assert after < 0.7 * before
    assert (tmp_path / "out" / "losses.png").stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "model" / "finetune.json").read_text())["steps_done"] == 40
    assert ms.load(tmp_path / "out" / "model")[0].dtype == "float32"


@pytest.mark.exhaustive
def test_every_stretch_is_read_from_an_empty_state_and_through_one(tmp_path) -> None:
    """With weights that hardly move, the losses of all steps are those of the stretches read by themselves."""
    settings = make_settings(tmp_path, learning_rate=1e-12, steps=8, keep_every=2)
    lines = run(settings, tmp_path / "out", QUIET)
    books = read_books(ms.load_tokenizer(settings.checkpoint), settings.data, 33, QUIET)
    order = Order(books, 32, 16, 2, settings.seed)
    for first in range(0, 8, 2):
        rows = np.concatenate([order.at(first).tokens, order.at(first + 1).tokens[:, 1:]], axis=1)  # [2, 33]
        nats = []
        for row in rows:
            state = ms.init_state(tiny.CONFIG, ms.TOVA(), 8)
            nats.append(ms.nll(tiny.CONFIG, ms.TOVA(), tiny.params(), state, row[:-1], row[1:])[1])
        wanted = np.reshape(nats, (2, 2, 16)).mean(axis=(0, 2))
        np.testing.assert_allclose([line["nats"] for line in lines[first : first + 2]], wanted, rtol=1e-4)


def perplexity(checkpoint, folder: pathlib.Path) -> float:
    """What `msrnn perplexity` says of a book."""
    book = str(folder / "books" / "0.txt")
    arguments = ["perplexity", str(checkpoint), "--text", book, "--policy", "tova", "--budget", "8", "--json"]
    result = CliRunner().invoke(msrnn, [*arguments, "--segment", "32"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[0])["perplexity"]


@pytest.mark.exhaustive
def test_adapters_alone_are_trained_merged_or_not(tmp_path) -> None:
    settings = make_settings(tmp_path, steps=9, lora=2, lora_weights=("query", "down"))
    run(settings, tmp_path / "apart", QUIET)
    run(make_settings(tmp_path, steps=9, lora=2, lora_weights=("query", "down"), merge=True), tmp_path / "one", QUIET)
    assert losses_of(tmp_path / "apart") == losses_of(tmp_path / "one")
    apart, merged = (ms.load(tmp_path / name / "model")[1] for name in ("apart", "one"))
    plain, adapters = ms.detach_adapters(apart)
    jax.tree.map(np.testing.assert_array_equal, plain, tiny.params())
    assert {name for layer in adapters for name in layer} == {"query", "down"}
    assert all(np.abs(adapter.up).max() > 1e-4 for layer in adapters for adapter in layer.values())
    for ours, theirs in zip(jax.tree.leaves(ms.merge_adapters(apart)), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert perplexity(tmp_path / "apart" / "model", tmp_path) == pytest.approx(
        perplexity(tmp_path / "one" / "model", tmp_path), rel=1e-5
    )


@pytest.mark.exhaustive
def test_distillation_begins_at_the_distance_from_full_attention(tmp_path) -> None:
    same = run(make_settings(tmp_path, steps=1, policy="full", distill=1.0), tmp_path / "same", QUIET)
    assert abs(same[0]["kl"]) < 1e-5 and same[0]["loss"] == same[0]["kl"]
    lines = run(make_settings(tmp_path, steps=20, distill=0.75, learning_rate=3e-3), tmp_path / "mixed", QUIET)
    for line in lines:
        assert line["loss"] == pytest.approx(0.25 * line["nats"] + 0.75 * line["kl"], rel=1e-5)
    assert lines[0]["kl"] > 0.01


@pytest.mark.exhaustive
def test_all_weights_are_kept_in_float32_whatever_is_computed_in(tmp_path) -> None:
    lines = run(make_settings(tmp_path, steps=3, compute="bfloat16", learning_rate=1e-5), tmp_path / "out", QUIET)
    params = ms.load(tmp_path / "out" / "model")[1]
    moved = np.asarray(params.layers[0].gate - tiny.params().layers[0].gate)
    assert params.embedding.dtype == jnp.float32 and 0 < np.abs(moved).max() < 1e-4  # below the steps of bfloat16
    assert np.isfinite([line["loss"] for line in lines]).all()


# Cut off.

# Runs the command in a process that kills itself after the n-th line, or when it begins to keep all for the n-th time
# ("keep"), or when what it keeps is written and not yet in its place ("kept").
KILLED = """
import os, runpy, signal, sys
from msrnn_jax.io.journal import Journal
import msrnn_jax.checkpoint.orbax
kind, count, *sys.argv[1:] = sys.argv[1:]
left = int(count)

def after(function):
    def counted(*args, **kwargs):
        global left
        left -= 1
        if not left and kind == "keep":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted

if kind == "line":
    Journal.append = after(Journal.append)
else:
    import experiments.finetune.saving as saving
    saving.write_weights = after(saving.write_weights)
runpy.run_module("experiments.finetune", run_name="__main__", alter_sys=True)
"""


def options_of(settings: Settings) -> list[str]:
    names = (
        "budget",
        "steps",
        "batch",
        "length",
        "segment",
        "chunk",
        "warmup",
        "learning_rate",
        "keep_every",
        "compute",
    )
    given = [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(settings, name)))]
    return [settings.checkpoint, "--data", settings.data[0], *given]


@pytest.mark.exhaustive
def test_killed_at_any_moment_it_goes_on_to_the_losses_of_an_undisturbed_run_to_the_bit(tmp_path) -> None:
    settings = make_settings(tmp_path)
    run(settings, tmp_path / "undisturbed", QUIET)
    wanted = losses_of(tmp_path / "undisturbed")
    dice = random.Random(7)
    moments = [
        ("line", dice.randrange(1, 12)),
        ("keep", 1),
        ("kept", dice.randrange(2, 5)),
    ]  # the first keep of all, too
    for number, (kind, count) in enumerate(moments):
        out = tmp_path / f"killed{number}"
        command = [sys.executable, "-c", KILLED, kind, str(count), *options_of(settings), "--out", str(out)]
        as_here = {**os.environ, **QUICK}  # or its numbers are not those of this process
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=as_here)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert len(losses_of(out)) < len(wanted)
        run(settings, out, QUIET)
        assert losses_of(out) == wanted
        ours, theirs = (ms.load(folder / "model")[1] for folder in (out, tmp_path / "undisturbed"))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        assert not list(out.glob(".*.new")) and sorted(path.name for path in out.iterdir() if path.is_dir()) == [
            "model", "training",
        ]  # fmt: skip


@pytest.mark.exhaustive
def test_a_loss_that_is_no_number_stops_it_and_leaves_what_was_kept(tmp_path, monkeypatch) -> None:
    settings = make_settings(tmp_path)
    calls = []

    def broken(method, training, *args):
        calls.append(None)
        if len(calls) == 8:  # as if the update before had been too large
            training = training._replace(trained=jax.tree.map(lambda leaf: leaf * jnp.nan, training.trained))
        return train(method, training, *args)

    with monkeypatch.context() as breaking:
        breaking.setattr(running, "train", broken)
        with pytest.raises(ValueError, match="step 8: the loss is nan; training stops, and what was kept stays"):
            run(settings, tmp_path / "out", QUIET)
    assert json.loads((tmp_path / "out" / "model" / "finetune.json").read_text())["steps_done"] == 6
    assert perplexity(tmp_path / "out" / "model", tmp_path) > 1
    assert len(losses_of(tmp_path / "out")) == 7
    assert (tmp_path / "out" / "losses.png").stat().st_size > 1000
    run(settings, tmp_path / "out", QUIET)
    run(settings, tmp_path / "undisturbed", QUIET)
    assert losses_of(tmp_path / "out") == losses_of(tmp_path / "undisturbed")


@pytest.mark.exhaustive
def test_everything_at_once_goes_on_to_the_bit(tmp_path, monkeypatch) -> None:
    """Adapters, a teacher, steps that are put together and bfloat16, interrupted between two steps of one update."""
    settings = make_settings(tmp_path, steps=8, accumulate=2, keep_every=3, lora=2, distill=0.5, compute="bfloat16")
    run(settings, tmp_path / "undisturbed", QUIET)
    run_cut_off(settings, tmp_path / "out", 6, monkeypatch)
    run(settings, tmp_path / "out", QUIET)
    assert losses_of(tmp_path / "out") == losses_of(tmp_path / "undisturbed")


@pytest.mark.exhaustive
def test_a_weight_that_is_no_number_is_told_at_the_first_step(tmp_path) -> None:
    settings = make_settings(tmp_path)
    ms.save(tmp_path / "toy2", tiny.CONFIG, tiny.params().replace(final_norm=jnp.full(24, jnp.nan)), files={
        name: (tmp_path / "toy" / name).read_text() for name in ("tokenizer.json", "tokenizer_config.json")
    })  # fmt: skip
    broken = make_settings(tmp_path, checkpoint=str(tmp_path / "toy2"))
    result = CliRunner().invoke(app, [*options_of(broken), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "step 1: the loss is nan" in result.output
    assert not (tmp_path / "out" / "model").exists() and settings.steps == 12


MESH = """
import pathlib, sys, json
sys.path.append(sys.argv[3])
import compilations
from rich.console import Console
import experiments.finetune.run as running
from experiments.finetune.settings import Settings
import jax
assert jax.local_device_count() == 4
settings, out, console = Settings(**json.loads(sys.argv[1])), pathlib.Path(sys.argv[2]), Console(stderr=True)
train, calls = running.train, []

def interrupted(*args):
    calls.append(None)
    if len(calls) == 5:
        raise KeyboardInterrupt
    return train(*args)

with compilations.count(train) as compiled:
    undisturbed = running.run(settings, out / "undisturbed", console)
    running.train = interrupted
    try:
        running.run(settings, out / "cut", console)
    except KeyboardInterrupt:
        pass
    assert running.run(settings, out / "cut", console) == undisturbed
assert len(calls) == 5 + 3 and compiled() == 1, (len(calls), compiled())
"""


@pytest.mark.exhaustive
def test_rows_shared_out_among_devices_give_the_losses_of_one(tmp_path) -> None:
    settings = make_settings(tmp_path, batch=4, steps=6, lora=2, distill=0.5)
    run(settings, tmp_path / "one", QUIET)
    given = json.dumps({**vars(settings), "data": list(settings.data)})
    command = [sys.executable, "-c", MESH, given, str(tmp_path / "four"), str(pathlib.Path(__file__).parents[1])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(4))
    assert ended.returncode == 0, ended.stderr
    for ours, theirs in zip(losses_of(tmp_path / "four" / "cut"), losses_of(tmp_path / "one"), strict=True):
        for name in ("loss", "nats", "kl", "gradient"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-6)
    with pytest.raises(ValueError, match="was begun with devices 4, not 1"):
        run(settings, tmp_path / "four" / "cut", QUIET)


# Refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
        ({"segment": 12}, "length is 32; it must be a multiple of the segment, 12"),
        ({"length": 10**6, "segment": 10**6}, "the model was made for"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"distill": 1.5}, "distill is 1.5; it must be from 0 and at most 1"),
        ({"accumulate": 5}, "steps is 12; it must be a multiple of accumulate, 5"),
        ({"policy": "tofa"}, "tofa"),
        ({"budget": 0}, "budget is 0"),
        ({"compute": "int8"}, "compute is 'int8'; it must be one of bfloat16, float32"),
        ({"lora": 2, "lora_weights": ("embedding",)}, "weight 'embedding' takes no adapter"),
        ({"data": ("nowhere.txt",)}, "nowhere.txt"),
        ({"lora": 2, "lora_weights": ()}, "lora_weights is empty"),
        ({"lora_weights": ("query",)}, "lora_weights is query, but lora is 0"),
        ({"merge": True}, "merge is given, but there are no adapters"),
        ({"policy": "full", "budget": -3}, "budget is -3"),
        ({"seed": 2**70}, "seed is 1180591620717411303424; it must be at most 2147483647"),
        ({"clip": float("inf")}, "clip is inf; it must be above 0 and at most 1e"),
        ({"length": 160, "segment": 16}, "data has no text of 161 tokens"),
    ],
)
def test_refuses_what_cannot_be_done_before_it_writes(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(make_settings(tmp_path, **changes), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_refuses_a_folder_of_another_run(tmp_path, monkeypatch) -> None:
    run(make_settings(tmp_path, steps=3), tmp_path / "out", QUIET)
    kept = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="was begun with budget 8, not 9; go on with that, or choose another folder"):
        run(make_settings(tmp_path, steps=3, budget=9), tmp_path / "out", QUIET)
    books = [str(tmp_path / "books" / name) for name in ("1.txt", "0.txt")]
    with pytest.raises(ValueError, match="was begun with data_sha256 "):  # in another order
        run(make_settings(tmp_path, steps=3, data=tuple(books)), tmp_path / "out", QUIET)
    config = tmp_path / "toy" / "config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"norm_eps": 0.1}))
    with pytest.raises(ValueError, match="was begun with config_sha256 "):
        run(make_settings(tmp_path, steps=3), tmp_path / "out", QUIET)
    config.write_text(text)
    with monkeypatch.context() as patched:
        newer = environment_of_results() | {"versions": {"jax": "99.0"}}
        patched.setattr("experiments.finetune.data.environment", lambda: newer)
        with pytest.raises(ValueError, match=f"was begun with jax '{jax.__version__}', not '99.0'"):
            run(make_settings(tmp_path, steps=3), tmp_path / "out", QUIET)
    own = tmp_path / "own"
    shutil.copytree(tmp_path / "toy", own / "model")
    with pytest.raises(ValueError, match="was not written by finetune and is not replaced"):
        run(make_settings(tmp_path, steps=3, checkpoint=str(own / "model")), own, QUIET)
    (tmp_path / "books" / "0.txt").write_text("h" * 150)
    with pytest.raises(ValueError, match="was begun with data_sha256 "):
        run(make_settings(tmp_path, steps=3), tmp_path / "out", QUIET)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == kept
    (tmp_path / "elsewhere" / "model").mkdir(parents=True)
    (tmp_path / "elsewhere" / "model" / "mine").write_text("")
    with pytest.raises(ValueError, match="exists and is no checkpoint"):
        run(make_settings(tmp_path, steps=3), tmp_path / "elsewhere", QUIET)


def test_refuses_a_disk_without_room_before_the_first_step(tmp_path, monkeypatch) -> None:
    settings = make_settings(tmp_path)
    monkeypatch.setattr("msrnn_jax.io.folders.shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match="out' needs .* are free on its disk"):
        run(settings, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_refuses_kept_training_that_is_damaged(tmp_path) -> None:
    settings = make_settings(tmp_path, steps=3)
    run(settings, tmp_path / "out", QUIET)
    about = tmp_path / "out" / "training" / "training.json"
    text = about.read_text()
    about.write_text(text[:20])
    with pytest.raises(ValueError, match="is no training that was kept"):
        run(settings, tmp_path / "out", QUIET)
    about.write_text(text)
    losses = tmp_path / "out" / "losses.jsonl"
    losses.rename(tmp_path / "losses.jsonl")
    with pytest.raises(ValueError, match="lacks losses of the 3 steps that were kept"):
        run(settings, tmp_path / "out", QUIET)
    (tmp_path / "losses.jsonl").rename(losses)
    written = losses.read_text()
    for path in (tmp_path / "out" / "training" / "arrays").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="the training that was kept cannot be read"):
        run(settings, tmp_path / "out", QUIET)
    assert losses.read_text() == written
    shutil.rmtree(tmp_path / "out" / "training")
    with pytest.raises(ValueError, match="model' was trained, but .*training', from which it could go on, is gone"):
        run(settings, tmp_path / "out", QUIET)
    assert losses.read_text() == written


def test_kept_arrays_may_have_heads_and_their_width_apart() -> None:
    fits = {shape: saving._fits_into(shape, (4, 6)) for shape in ((4, 6), (4, 2, 3), (2, 2, 6), (8, 3), (2, 12), (24,))}
    assert fits == {(4, 6): True, (4, 2, 3): True, (2, 2, 6): True, (8, 3): False, (2, 12): False, (24,): False}


# What it changed.


def test_the_table_of_effects_has_both_ways_to_attend_and_no_change_of_the_untrained() -> None:
    names = [f"{name}_{attention}" for name in ("perplexity", "change") for attention in ("policy", "full")]
    numbers = {name: float(place) for place, name in enumerate([*names, "gap", "closed"], 1)}
    numbers |= {f"{name}_stderr": 0.5 for name in numbers}
    settings = effect.Settings("model", (), (), policy="tova", budget=8)
    made = effect.table([{"model": model, **numbers} for model in (effect.UNTRAINED, "mine")], settings)
    found = list(zip(*(column.cells for column in made.columns), strict=True))
    assert found[0][1:] == ("1.00 +- 0.50", "", "2.00 +- 0.50", "", "5.0000 +- 0.5000", "")
    mine = ("1.00 +- 0.50", "3.0000 +- 0.5000", "2.00 +- 0.50", "4.0000 +- 0.5000", "5.0000 +- 0.5000")
    assert found[1] == ("mine", *mine, "600.0 +- 50.0 %")


@pytest.mark.exhaustive
def test_the_effect_is_paired_on_texts_that_every_model_reads(tmp_path) -> None:
    settings = make_settings(tmp_path, steps=20)
    run(settings, tmp_path / "tova", QUIET)
    run(make_settings(tmp_path, steps=20, policy="full"), tmp_path / "full", QUIET)
    books = ["--data", settings.data[0], "--segment", "32", "--budget", "8", "--dtype", "float32"]
    runs = [str(tmp_path / "tova"), str(tmp_path / "full")]
    out = tmp_path / "effect"
    result = CliRunner().invoke(effect.app, [settings.checkpoint, *runs, *books, "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = {row["model"]: row for row in json.loads((out / "effect.json").read_text())["rows"]}
    assert list(rows) == ["untrained", "tova", "full"] and rows["tova"]["segments"] == 7
    assert rows["untrained"]["change_policy"] == 0 == rows["untrained"]["closed"]
    nats = {}
    for name in rows:
        lines = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()[1:]]
        for policy in ("tova", "full"):
            nats[name, policy] = np.array([line["nats"] for line in lines if line["setting"]["policy"] == policy]) / 31
    change = nats["tova", "tova"] - nats["untrained", "tova"]
    assert rows["tova"]["change_policy"] == pytest.approx(change.mean()) and change.mean() < -0.1
    assert rows["tova"]["change_policy_stderr"] == pytest.approx(change.std(ddof=1) / np.sqrt(7))
    gap = nats["untrained", "tova"].mean() - nats["untrained", "full"].mean()
    assert rows["tova"]["closed"] == pytest.approx(-change.mean() / gap)
    assert rows["full"]["perplexity_full"] == pytest.approx(np.exp(nats["full", "full"].mean()))
    assert "tova, 8" in result.output and (out / "losses.png").stat().st_size > 1000
    assert f"note: run {runs[0]!r} was trained on 0.txt" in result.stderr
    shutil.copytree(tmp_path / "tova", tmp_path / "cut")
    about = tmp_path / "cut" / "model" / "finetune.json"
    (tmp_path / "cut" / "losses.jsonl").unlink()
    unknown = CliRunner().invoke(effect.app, [settings.checkpoint, str(tmp_path / "cut"), *books, "--out", str(out)])
    assert unknown.exit_code == 2 and "has no losses.jsonl; name the folder of a run" in unknown.output
    found = json.loads(about.read_text())
    for change, message in (
        ({"steps_done": 12}, "has taken 12 of 20 steps; it must have come to its end"),
        ({"model_sha256": "0" * 16}, "began from model 0000000000000000, not from checkpoint"),
        ({"settings": {}}, "was not written by finetune; name the folder of a run"),
    ):
        about.write_text(json.dumps(found | change))
        refused = CliRunner().invoke(
            effect.app, [settings.checkpoint, str(tmp_path / "cut"), *books, "--out", str(out)]
        )
        assert refused.exit_code == 2 and message in refused.output
    again = CliRunner().invoke(effect.app, [settings.checkpoint, runs[0], runs[0], *books, "--out", str(out)])
    assert again.exit_code == 2 and "no two may have one name" in again.output
    lost = CliRunner().invoke(effect.app, [settings.checkpoint, str(tmp_path / "none"), *books, "--out", str(out)])
    assert lost.exit_code == 2 and "was not written by finetune" in lost.output
