"""Training what to forget: what is made small, its gradients, and runs from a command to a policy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_finetune import QUIET, losses_of, make_settings, run_cut_off
from typer.testing import CliRunner

import experiments.finetune.gates as gates
import msrnn_jax as ms
from experiments.finetune.__main__ import app
from experiments.finetune.gating import OBJECTIVES, Gating, loss_of, read_gated
from experiments.finetune.run import run
from msrnn_jax.cli.app import app as msrnn
from msrnn_jax.policies import Gate, Learned, init_gate, save_gate

FLOAT64 = tiny.CONFIG.replace(dtype="float64")
LENGTH, BUDGET = 40, 6


HARD = Learned()


def reading(objective, policy=HARD, config=FLOAT64, distill=0.5, hinge=0.3):
    """A function of a gate and tokens, to the loss and what it is made of."""
    params, gating = tiny.params(config.dtype, config=config), Gating(objective, hinge)

    @jax.jit
    def read(gate, tokens):
        losses = read_gated(config, policy, gating, gate, params, tokens, BUDGET, True, 5)
        return loss_of(gating, distill, losses), losses

    return read


@pytest.mark.parametrize("objective", ["soft", "rank", "attention"])
@pytest.mark.parametrize("policy", [Learned(recent=2, sinks=1), tiny.more(Learned(scope="layer"))], ids=str)
def test_the_gradient_is_that_of_finite_differences(objective, policy, x64) -> None:
    read, gate, tokens = reading(objective, policy), tiny.gate(FLOAT64, 6), jnp.asarray(tiny.tokens(27))
    slopes = jax.grad(lambda gate: read(gate, tokens)[0])(gate)
    along = Gate(*(jax.random.normal(jax.random.key(place), leaf.shape) for place, leaf in enumerate(gate)))
    size = 1e-5
    ends = [jax.tree.map(lambda w, d, s=sign: w + s * size * d, gate, along) for sign in (1, -1)]
    values = [read(end, tokens)[0] for end in ends]
    slope = sum(jnp.vdot(d, g) for d, g in zip(along, slopes, strict=True))
    assert abs(slope) > 1e-4
    np.testing.assert_allclose(slope, (values[0] - values[1]) / (2 * size), rtol=1e-6)


def test_soft_is_the_model_whose_attention_fades_and_a_gate_that_keeps_all_is_the_full_one(x64) -> None:
    read, gate, tokens = reading("soft"), tiny.gate(FLOAT64, 6), jnp.asarray(tiny.tokens(LENGTH))
    _, losses = read(gate, tokens)
    params, policy = tiny.params("float64", config=FLOAT64), Learned(weights=gate, soft=True)
    state = ms.init_state(FLOAT64, policy, LENGTH)
    _, nats = ms.nll(FLOAT64, policy, params, state, tokens[:-1], tokens[1:], chunk=7)  # by steps over masks
    np.testing.assert_allclose(losses.nats, nats.mean(), rtol=1e-9)
    assert losses.kl > 0.01
    all_kept = init_gate(FLOAT64, jax.random.key(0), lifetime=1e12)
    _, losses = read(all_kept, tokens)
    assert abs(losses.kl) < 1e-6
    held = np.arange(1, LENGTH) / BUDGET - 1  # all tokens, at every one
    np.testing.assert_allclose(losses.gate, np.maximum(held, 0).mean(), rtol=1e-4)


def test_rank_comes_near_to_hard_choices_as_it_gets_colder(x64) -> None:
    """Exactly where scores do not change with time: then the best so far are those that were never forgotten."""
    policy, gate = Learned(ageing=False, sinks=1), tiny.gate(FLOAT64, 6)
    tokens = jnp.asarray(np.random.default_rng(0).permutation(50)[:LENGTH])  # none twice: equal ones would tie
    params = tiny.params("float64", config=FLOAT64)
    state = ms.init_state(FLOAT64, policy, BUDGET)
    _, nats = ms.nll(FLOAT64, policy.replace(weights=gate), params, state, tokens[:-1], tokens[1:])
    apart = []
    for temperature in (1.0, 1e-7):
        gating = Gating("rank", 0.0, temperature)
        losses = read_gated(FLOAT64, policy, gating, gate, params, tokens, BUDGET, False, 5)
        apart.append(abs(float(losses.nats - nats.mean())))
    assert apart[1] < 1e-6 < 1e-3 < apart[0]


def test_straight_reads_as_in_use_and_learns_as_rank_where_nothing_is_forgotten(x64) -> None:
    read, gate, tokens = reading("straight"), tiny.gate(FLOAT64, 6), jnp.asarray(tiny.tokens(LENGTH))
    params, policy = tiny.params("float64", config=FLOAT64), Learned(weights=gate)
    _, nats = ms.nll(FLOAT64, policy, params, ms.init_state(FLOAT64, policy, BUDGET), tokens[:-1], tokens[1:])
    np.testing.assert_allclose(read(gate, tokens)[1].nats, nats.mean(), rtol=1e-9)
    slopes = jax.grad(lambda gate: read(gate, tokens)[0])(gate)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in slopes)
    # Of fewer tokens than the budget holds none is forgotten.
    slow = init_gate(FLOAT64, jax.random.key(0), lifetime=1e9)
    few = jnp.asarray(tiny.tokens(BUDGET))
    both = [jax.grad(lambda gate, read=one: read(gate, few)[0])(slow) for one in (read, reading("rank"))]
    for mine, theirs in zip(*both, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-18)


def test_attention_is_predicted_best_by_a_gate_that_was_trained_to(x64) -> None:
    """KL is 0 where attention is what the gate says: here by a model all of whose queries are nought."""
    params = tiny.params("float64", config=FLOAT64)
    even = params.replace(layers=tuple(layer.replace(query=0 * layer.query) for layer in params.layers))
    policy, gating = Learned(ageing=False), Gating("attention", 0.0)
    gate, tokens = init_gate(FLOAT64, jax.random.key(0), width=3), jnp.asarray(tiny.tokens(20))
    found = [
        read_gated(FLOAT64, policy, gating, gate, weights, tokens, BUDGET, False, 5).gate for weights in (even, params)
    ]
    assert abs(found[0]) < 1e-9 < 0.1 < found[1]


@pytest.mark.parametrize("objective", [OBJECTIVES[0], *map(tiny.more, OBJECTIVES[1:])])
def test_a_run_makes_a_policy_and_goes_on_to_the_bit(objective, tmp_path, monkeypatch) -> None:
    settings = make_settings(
        tmp_path,
        **{"gate": objective, "policy": "learned:recent=1", "gate_width": 4},
        **{"segment": 32, "distill": 1.0, "steps": 24, "learning_rate": 3e-2},
    )
    lines = run(settings, tmp_path / "whole", QUIET)
    assert lines == losses_of(tmp_path / "whole")
    first, last = (np.mean([line["loss"] for line in part]) for part in (lines[:4], lines[-4:]))
    assert last < first or objective == "straight"  # whose slope is that of another function
    run_cut_off(settings, tmp_path / "cut", 8, monkeypatch)
    assert run(settings, tmp_path / "cut", QUIET) == lines
    files = [tmp_path / name / "gate.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "cut" / "model").exists()
    out = tmp_path / "perplexity.jsonl"
    text = f"learned:{files[0]},recent=1"
    book = str(tmp_path / "books" / "0.txt")
    given = ["perplexity", settings.checkpoint, "--text", book, "--policy", text, "--budget", "8", "--segment", "48"]
    result = CliRunner().invoke(msrnn, [*given, "--out", str(out)])
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert any(str(files[0]) in json.dumps(line) and "policy_sha256" in json.dumps(line) for line in told)


def test_a_gate_starts_from_another(tmp_path) -> None:
    settings = make_settings(tmp_path, gate="soft", policy="learned", segment=32, steps=1, learning_rate=1e-9)
    config, _ = ms.load(settings.checkpoint)
    save_gate(tmp_path / "start.safetensors", tiny.gate(config, 20))
    out = tmp_path / "out"
    options = ["--gate", "soft", "--policy", "learned", "--steps", "1", "--learning-rate", "1e-9", "--batch", "2"]
    sizes = ["--length", "32", "--segment", "32", "--chunk", "8", "--budget", "8", "--compute", "float32"]
    given = [settings.checkpoint, "--data", settings.data[0], *options, *sizes, "--distill", "1"]
    start = ["--start", str(tmp_path / "start.safetensors")]
    result = CliRunner().invoke(app, [*given, *start, "--out", str(out)])
    assert result.exit_code == 0 and "gate.safetensors" in result.stdout
    made = ms.parse_policy(f"learned:{out}/gate.safetensors")
    for mine, theirs in zip(made.weights, tiny.gate(config, 20), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-7)
    result = CliRunner().invoke(app, [*given, "--out", str(out)])
    assert result.exit_code == 2 and "was begun with start_sha256" in result.output


def test_gates_are_measured_beside_others_and_fading_beside_hard_choices(tmp_path) -> None:
    settings = make_settings(tmp_path)
    config, _ = ms.load(settings.checkpoint)
    policies = []
    for name, gate in (("slow", init_gate(config, jax.random.key(0), lifetime=1e12)), ("fast", tiny.gate(config, 6))):
        save_gate(tmp_path / name / "gate.safetensors", gate)
        policies.append(f"learned:gate={tmp_path / name / 'gate.safetensors'}")
    out, sizes = tmp_path / "gates", ["--budget", "8", "--budget", "12", "--segment", "48", "--segments", "2"]
    given = [settings.checkpoint, *policies, "--data", settings.data[0], *sizes, "--dtype", "float32"]
    arguments = [*given, "--adapted", settings.checkpoint, "--out", str(out)]
    result = CliRunner().invoke(gates.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "gates.json").read_text())
    rows = {(row["model"], row["name"], row["budget"]): row for row in found["rows"]}
    assert len(rows) == 2 * 6 * 2 and all(row["segments"] == 4 for row in rows.values())
    for budget in (8, 12):
        window, slow, tova = (rows["model", name, budget] for name in ("window", "slow", "tova"))
        assert slow["above_full"] == pytest.approx(window["above_full"], abs=1e-6)  # all tokens fade alike
        assert slow["against_tova"] == pytest.approx(slow["above_full"] - tova["above_full"], abs=1e-9)
        assert slow["closed"] == pytest.approx(-slow["against_tova"] / tova["above_full"], abs=1e-6)
        assert slow["against_h2o"] == pytest.approx(slow["above_full"] - rows["model", "h2o", budget]["above_full"])
        assert rows["adapted", "fast", budget]["perplexity"] == rows["model", "fast", budget]["perplexity"]
    soft = {(row["name"], row["against"]): row for row in found["soft"]}
    assert set(soft) == {
        (name, against) for name in ("slow", "fast") for against in ("full", "hard at 8", "hard at 12")
    }
    assert abs(soft["slow", "full"]["kl"]) < 1e-5 < 1e-3 < soft["fast", "full"]["kl"]
    for budget in (8, 12):  # from what is nearly full attention hard choices are as far as from the full model
        assert soft["slow", f"hard at {budget}"]["kl"] == pytest.approx(rows["model", "slow", budget]["kl"], rel=1e-3)
    assert "won back" in (out / "gates.md").read_text() and (out / "gates.png").stat().st_size > 1000
    with open(out / "model.jsonl") as file:
        before = file.read()
    CliRunner().invoke(gates.app, arguments, catch_exceptions=False)
    assert (out / "model.jsonl").read_text().count('"nats"') == before.count('"nats"')
    for wrong, said in (
        (["tova"], "policy tova is no gate of a file"),
        ([policies[0]] * 2, "no two may have one name"),
    ):
        refused = CliRunner().invoke(gates.app, [settings.checkpoint, *wrong, "--data", settings.data[0]])
        assert refused.exit_code == 2 and said in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "firm"}, "gate is 'firm'; it must be one of soft, rank, straight, attention"),
        ({"gate": "soft"}, "policy is tova; a gate is trained for 'learned', without a file, and soft=False"),
        ({"gate": "soft", "policy": "learned:ageing=False"}, "tokens fade with age"),
        ({"gate": "soft", "policy": "learned", "lora": 2}, "a gate is trained alone; lora must be 0"),
        ({"gate": "soft", "policy": "learned", "start": "nowhere"}, "nowhere"),
        ({"gate": "soft", "policy": "learned"}, "segment is 16; for a gate it must be the length, 32"),
        ({"gate": "soft", "policy": "learned", "gate_width": 0}, "gate_width is 0"),
        ({"hinge": 2.0}, "hinge is 2.0, but no gate is trained; give gate too"),
    ],
)
def test_refuses_what_cannot_be_done_before_it_writes(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(make_settings(tmp_path, **changes), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()
