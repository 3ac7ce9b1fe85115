"""One model on many devices: the tokens and logits of one device, and no more talk between devices than needed."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from devices import environment, on_devices
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from msrnn_jax.cli.app import app
from msrnn_jax.devices.sharding import spell_mesh, split_letters

CONFIG = tiny.CONFIG.replace(num_heads=8, num_kv_heads=4, mlp_dim=48, vocab_size=56)
CASES = [("tova", "absolute"), ("h2o", "absolute"), ("h2o:scope=layer,recent=3", "cache"), ("tova:scope=head", "gap")]
POLICIES = ["tova", "tova:scope=head", "h2o", "h2o:scope=layer,recent=3", "window:sinks=4"]

MODEL = """
from functools import partial
sys.path[:0] = sys.argv[1], f"{sys.argv[1]}/devices"
import tiny
from test_sharding import CONFIG
places = {}
params = tiny.params(config=CONFIG)

def on(policy, **options):
    return ms.shardings(CONFIG, policy, mesh, **options)

def states(policy, **options):
    state = ms.init_state(CONFIG, policy, 6, **options)
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], 4, 0), state)
"""
HERE = pathlib.Path(__file__).parents[1]


@pytest.mark.exhaustive
def test_tokens_and_logits_are_those_of_one_device() -> None:
    printed = on_devices(
        MODEL
        + """
tokens = np.stack([tiny.tokens(24, seed) for seed in range(4)])
lengths = np.array([24, 9, 17, 20])
for text, positions in json.loads(sys.argv[2]):
    policy = ms.parse_policy(text)
    found = []
    for shared in (False, True):
        place = on(policy, positions=positions)
        put = (lambda tree, where: jax.device_put(tree, where)) if shared else (lambda tree, where: tree)
        weights, rows = put(params, place.params), put(jnp.asarray(tokens), place.rows)
        state = put(states(policy, positions=positions), place.state)
        read = jax.jit(jax.vmap(lambda w, s, t: ms.extend(CONFIG, policy, w, s, t, chunk=8), (None, 0, 0)))
        state, logits = read(weights, state, rows)
        step = jax.jit(jax.vmap(partial(ms.step, CONFIG, policy), (None, 0, 0)))
        state, after = step(weights, state, rows[:, 0])
        written, counts, _ = ms.generate(
            CONFIG, policy, weights, rows, lengths, budget=6, max_new_tokens=12, positions=positions
        )
        held = np.sort(np.asarray(state.layers[1].positions), axis=-1)
        found.append((logits, after, written, held))
        if shared:
            leaves, wanted = jax.tree.leaves(state), jax.tree.leaves(place.state)
            assert all(leaf.sharding.is_equivalent_to(where, leaf.ndim) for leaf, where in zip(leaves, wanted))
    one, eight = found
    far = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(one[:2], eight[:2]))
    print(text, positions, far < 2e-4, np.array_equal(one[2], eight[2]), np.array_equal(one[3], eight[3]))
""",
        HERE,
        json.dumps(CASES),
        quick=True,
    )
    lines = printed.splitlines()
    assert len(lines) == len(CASES)
    assert all(line.endswith("True True True") for line in lines), printed


@pytest.mark.exhaustive
def test_a_mesh_may_have_one_axis_alone() -> None:
    """Rows are then all on every device, or heads."""
    printed = on_devices(
        MODEL
        + """
tokens, policy = np.stack([tiny.tokens(12, seed) for seed in range(4)]), ms.TOVA()
read = jax.jit(jax.vmap(lambda w, s, t: ms.extend(CONFIG, policy, w, s, t, chunk=8)[1], (None, 0, 0)))
wanted = np.asarray(read(params, states(policy), tokens))
for name in ("model", "data"):
    place = ms.shardings(CONFIG, policy, jax.make_mesh((4,), (name,), axis_types=(jax.sharding.AxisType.Auto,)))
    weights, state = jax.device_put(params, place.params), jax.device_put(states(policy), place.state)
    found = np.asarray(read(weights, state, jax.device_put(tokens, place.rows)))
    keys, query = state.layers[0].keys, weights.layers[0].query
    sizes = [leaf.size // leaf.addressable_shards[0].data.size for leaf in (keys, query, state.t)]
    print(name, np.abs(found - wanted).max() < 2e-4, sizes)
""",
        HERE,
        quick=True,
    )
    assert printed.splitlines() == ["model True [4, 4, 1]", "data True [4, 1, 4]"]


@pytest.mark.exhaustive
def test_a_step_takes_two_sums_over_devices_a_layer_and_one_more_number_a_slot_for_tova() -> None:
    """Read out of the compiled program: attention's output, with TOVA's mean over heads, and the MLP's."""
    printed = on_devices(
        MODEL
        + """
import re
names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
for policy in map(ms.parse_policy, json.loads(sys.argv[2])):
    place = on(policy)
    step = jax.jit(jax.vmap(partial(ms.step, CONFIG, policy), (None, 0, 0)), donate_argnums=1)
    tokens = jax.device_put(jnp.zeros(4, jnp.int32), place.rows)
    program = step.lower(jax.device_put(params, place.params), jax.device_put(states(policy), place.state), tokens)
    found = re.findall(rf"= (\\S+|\\(.*?\\)) ({names})(?:-start)?\\(", program.compile().as_text())
    print(json.dumps([[name, re.sub(r"\\{.*?\\}", "", shape)] for shape, name in found]))
""",
        HERE,
        json.dumps(POLICIES),
    )
    by_attention = {"tova": 1, "h2o:scope=layer,recent=3": 1}
    output, slots = "f32[2,24]", "f32[2,7]"  # 2 rows a device; D = 24, S = 7
    for policy, line in zip(POLICIES, printed.splitlines(), strict=True):
        found = json.loads(line)
        assert {name for name, _ in found} == {"all-reduce"}
        numbers = [part for _, shapes in found for part in shapes.strip("()").split(", ")]
        sums = 2 * CONFIG.num_layers + 1  # 1 for the embedding
        assert numbers.count(output) + numbers.count("f32[2,1,24]") == sums
        assert numbers.count(slots) == CONFIG.num_layers * by_attention.get(policy, 0)
        assert len(numbers) == sums + numbers.count(slots)


def perplexity(toy: str, text: pathlib.Path, *options: str) -> list[dict]:
    arguments = ["perplexity", toy, "--text", str(text), "--segment", "40", "--policy", "full", "--policy", "tova"]
    arguments += ["--budget", "4", "--budget", "9", "--fidelity", "--json", *options]
    if "--mesh" not in options:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]
    command = [sys.executable, "-m", "msrnn_jax", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.exhaustive
@pytest.mark.parametrize("mesh", ["data=4,model=2", "model=3"])
def test_perplexity_on_a_mesh_is_that_of_one_device(tmp_path: pathlib.Path, mesh: str) -> None:
    """model=2 divides the toy's MLP and vocabulary, not its 3 KV heads; model=3 alone these and none of the others."""
    toy, text = make_toy(tmp_path / "toy"), tmp_path / "text.txt"
    dice = np.random.default_rng(0)
    text.write_text("".join(dice.choice(list("abcdefgh "), 190)))
    wanted = perplexity(toy, text)
    out = tmp_path / "out.jsonl"
    found = perplexity(toy, text, "--mesh", mesh, "--out", str(out))
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours["policy"], ours["budget"]) == (theirs["policy"], theirs["budget"])
        for name in ("perplexity", "nll", "kl"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6)
        assert ours["tokens"] == theirs["tokens"] and theirs["mesh"] is None
    assert found[0]["mesh"] == {"model=3": "data=1,model=3"}.get(mesh, mesh)
    if mesh == "model=3":
        return
    lines = out.read_text().count("\n")
    assert perplexity(toy, text, "--mesh", mesh, "--out", str(out)) == found  # nothing is run again
    assert out.read_text().count("\n") == lines + 1


def test_what_is_shared_out_follows_what_the_axis_divides() -> None:
    llama = ms.Config(
        vocab_size=32000, model_dim=4096, num_layers=2, num_heads=32, num_kv_heads=8, head_dim=128, mlp_dim=11008
    )
    assert split_letters(llama, 8) == set("NKFV") and split_letters(llama, 16) == set("FV")
    assert split_letters(llama, 1) == set()
    with pytest.raises(ValueError, match=r"model=7 divides neither the KV heads \(8\), nor the MLP's width \(11008\)"):
        split_letters(llama, 7)
    mesh = ms.parse_mesh("model=1")
    place = ms.shardings(llama, ms.TOVA(), mesh)
    keys = place.state.layers[0].keys
    assert isinstance(keys, NamedSharding) and keys.spec == P("data") and spell_mesh(mesh) == "data=1,model=1"
    assert jax.tree.structure(place.params) == jax.tree.structure(tiny.params(config=CONFIG))


@pytest.mark.parametrize("text", ["", "data", "data=0", "data=2,data=2", "rows=2", "model=-1", "data=1.5"])
def test_text_that_is_no_mesh_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it must be like data=4,model=2"):
        ms.parse_mesh(text)


def test_a_mesh_of_given_devices() -> None:
    devices = jax.devices()[:1]
    assert list(ms.parse_mesh("data=1", devices).devices.flat) == devices
    with pytest.raises(ValueError, match="takes 2 devices; there are 1"):
        ms.parse_mesh("data=2", devices)


@pytest.mark.exhaustive
def test_refuses_what_cannot_be_shared_out(tmp_path: pathlib.Path) -> None:
    toy = make_toy(tmp_path / "toy")
    result = CliRunner().invoke(app, ["perplexity", toy, "--mesh", "data=64"])
    assert result.exit_code == 2 and "takes 64 devices; there are" in result.output
    with pytest.raises(ValueError, match="mesh has the axis 'rows'; it may have 'data' and 'model'"):
        ms.shardings(tiny.CONFIG, ms.TOVA(), jax.make_mesh((1,), ("rows",)))
    command = [sys.executable, "-m", "msrnn_jax", "perplexity", toy, "--mesh", "data=4", "--batch", "6"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert ended.returncode == 2 and "batch is 6; it must be a multiple of 4" in ended.stderr
