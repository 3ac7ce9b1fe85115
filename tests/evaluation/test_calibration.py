"""Mean queries, measured beforehand: what they are means of, and what becomes of a policy that reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import safetensors.numpy
import tiny
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from msrnn_jax.cli.app import app
from msrnn_jax.evaluation.calibration import calibrate, save_calibration
from msrnn_jax.policies.source import source_hash

T = 12
SEGMENTS = [tiny.tokens(T, seed) for seed in range(2)]


def mean_queries():
    """By the oracle's parts: queries of the first layer before rotation, whose input is the embedding."""
    weights = oracle.as_numpy(tiny.params())
    layer = weights.layers[0]
    x = oracle.norm(tiny.CONFIG, weights.embedding[np.concatenate(SEGMENTS)], layer.attention_norm)
    queries = oracle.projections(tiny.CONFIG, layer, x)[0]  # [2 T, N, H]
    first, second = np.split(queries, 2, axis=-1)
    return queries.mean(axis=0), np.hypot(first, second).mean(axis=0)


def test_they_are_means_of_queries_before_rotation(tmp_path):
    seen = []
    found = calibrate(tiny.CONFIG, tiny.params(), SEGMENTS, seen.append)
    mean, size = mean_queries()
    np.testing.assert_allclose(found["mean"][0], mean, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["size"][0], size, rtol=0, atol=1e-5)
    assert found["mean"].shape == (2, 6, 10) and found["size"].shape == (2, 6, 5) and seen == [T, 2 * T]
    path = tmp_path / "queries.safetensors"
    save_calibration(path, tiny.CONFIG, tiny.params(), found)
    policy = ms.parse_policy(f"triattention:calibration={path},every=1,prompt=False")
    state = ms.init_state(tiny.CONFIG, policy, 6)
    after, _ = ms.extend(tiny.CONFIG, policy, tiny.params(), state, SEGMENTS[0])
    for index, layer in enumerate(after.layers):
        np.testing.assert_array_equal(layer.row_stats["mean"].reshape(6, 10), found["mean"][index])
        assert (layer.row_stats["count"] == 1).all()  # what is read does not change them
    plain = ms.parse_policy("triattention:every=1,prompt=False")
    other, _ = ms.extend(tiny.CONFIG, plain, tiny.params(), ms.init_state(tiny.CONFIG, plain, 6), SEGMENTS[0])
    assert tiny.held(after.layers[0]) != tiny.held(other.layers[0])


def test_a_calibration_belongs_to_its_policy(tmp_path):
    path = tmp_path / "queries.safetensors"
    found = {"mean": np.ones((2, 6, 10), np.float32), "size": np.ones((2, 6, 5), np.float32)}
    policy = ms.parse_policy(f"triattention:calibration={path}")
    with pytest.raises(ValueError, match=r"calibration '.*queries.safetensors' cannot be read: .*No such file"):
        ms.init_state(tiny.CONFIG, policy, 6)
    path.write_bytes(safetensors.numpy.save(found))
    first = source_hash(policy)
    ms.init_state(tiny.CONFIG, policy, 6)
    path.write_bytes(safetensors.numpy.save({**found, "size": 2 * found["size"], "more": found["size"]}))
    assert source_hash(policy) != first and source_hash(ms.parse_policy("triattention")) is None
    state = ms.init_state(tiny.CONFIG, policy, 6)  # the file is read again
    assert (jax.tree.leaves(state.layers[0].row_stats["size"])[0] == jnp.float32(2)).all()
    with pytest.raises(ValueError, match=r"has mean of shape \(2, 6, 10\); for this model it must be \(3, 6, 10\)"):
        ms.init_state(tiny.CONFIG.replace(num_layers=3), policy, 6)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        ms.init_state(tiny.CONFIG, policy, 6)
    with pytest.raises(ValueError, match="it must be a path without a comma"):
        ms.policies.POLICIES["triattention"](calibration="a,b")


def test_the_command_writes_what_the_policy_reads(tmp_path):
    checkpoint, out, book = make_toy(tmp_path / "toy"), str(tmp_path / "q.safetensors"), tmp_path / "book.txt"
    book.write_text("the sea is wide and the sea is deep " * 20)
    run = CliRunner().invoke
    command = ["calibrate", str(checkpoint), out, "--text", str(book), "--segment", "16", "--segments", "2"]
    done = run(app, command)
    assert done.exit_code == 0 and done.stdout.endswith("mean queries of 32 tokens\n"), done.output
    asked = ["perplexity", str(checkpoint), "--text", str(book), "--segment", "16", "--segments", "1", "--budget", "4"]
    assert run(app, [*asked, "--policy", f"triattention:calibration={out}"]).exit_code == 0
    none = run(app, [*command[:-3], "90000"])
    assert none.exit_code == 2 and "there is no segment to calibrate on" in none.stderr
