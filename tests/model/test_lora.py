"""Low-rank adapters: the same model as with their product added into the weights, on disk as in memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import msrnn_jax as ms
from convert.huggingface.export import export
from msrnn_jax.checkpoint.identity import fingerprint
from msrnn_jax.checkpoint.load import load_deferred
from msrnn_jax.devices.memory import part_sizes
from msrnn_jax.params import MATRICES

BIASED = tiny.CONFIG.replace(attention_bias=True, output_bias=True, mlp_bias=True)


def adapted(config, params, *, weights=MATRICES, rank=2, scale=0.3):
    """Adapters whose halves are both random."""
    drawn = ms.init_adapters(config, rank, jax.random.key(1), weights=weights)
    leaves, tree = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    made = [scale * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return ms.attach_adapters(config, params, jax.tree.unflatten(tree, made))


@jax.jit
def logits_of(config, params, tokens):
    state = ms.init_state(config, ms.TOVA(), 6)
    return ms.extend(config, ms.TOVA(), params, state, tokens, chunk=5)[1]


@pytest.mark.parametrize("config", [tiny.more(tiny.CONFIG), BIASED], ids=["plain", "biases"])
def test_equals_the_merged_model(config, x64):
    config = config.replace(dtype="float64")
    params, tokens = tiny.params("float64", config=config), jnp.asarray(tiny.tokens(20))
    low_rank = adapted(config, params)
    merged = ms.merge_adapters(low_rank)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    for name in MATRICES:  # W + A B, written out
        leaf = getattr(low_rank.layers[1], name)
        product = np.asarray(leaf.adapter.down) @ np.asarray(leaf.adapter.up)
        assert leaf.adapter.down.shape == (leaf.shape[0], 2)
        np.testing.assert_allclose(getattr(merged.layers[1], name), leaf.weight + product, rtol=1e-12)
    ours, theirs = logits_of(config, low_rank, tokens), logits_of(config, merged, tokens)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
    assert np.abs(ours - logits_of(config, params, tokens)).max() > 0.01


def test_new_ones_change_nothing_and_come_off_again():
    params, tokens = tiny.params(config=tiny.SHALLOW), jnp.asarray(tiny.tokens(20))
    adapters = ms.init_adapters(tiny.SHALLOW, 3, jax.random.key(0), weights=("query", "down"))
    low_rank = ms.attach_adapters(tiny.SHALLOW, params, adapters)
    np.testing.assert_array_equal(logits_of(tiny.SHALLOW, low_rank, tokens), logits_of(tiny.SHALLOW, params, tokens))
    plain, found = ms.detach_adapters(low_rank)
    jax.tree.map(np.testing.assert_array_equal, (plain, found), (params, adapters))
    assert isinstance(low_rank.layers[0].query, ms.LowRank) and not isinstance(low_rank.layers[0].key, ms.LowRank)
    spread = np.std(np.asarray(ms.init_adapters(tiny.CONFIG, 400, jax.random.key(0))[0]["output"].down))
    wanted = (tiny.CONFIG.num_heads * tiny.CONFIG.head_dim) ** -0.5
    assert spread == pytest.approx(wanted, rel=0.05)


def test_gradients_reach_adapters_only_where_asked():
    """The gradient by the adapters alone is that of the whole model at the same place; `up` is 0 at first."""
    params, tokens = tiny.params(config=tiny.SHALLOW), jnp.asarray(tiny.tokens(20))
    plain, adapters = ms.detach_adapters(adapted(tiny.SHALLOW, params))

    @jax.jit
    def gradients(plain, adapters):
        def loss(plain, adapters):
            both = ms.attach_adapters(tiny.SHALLOW, plain, adapters)
            state = ms.init_state(tiny.SHALLOW, ms.TOVA(), 6)
            return ms.nll(tiny.SHALLOW, ms.TOVA(), both, state, tokens[:-1], tokens[1:])[1].mean()

        return jax.grad(loss, argnums=1)(plain, adapters)

    found = gradients(plain, adapters)
    assert all(np.abs(leaf).max() > 1e-7 for leaf in jax.tree.leaves(found))
    fresh = ms.init_adapters(tiny.SHALLOW, 2, jax.random.key(0))
    found = gradients(plain, fresh)
    for layer in found:
        for adapter in layer.values():
            assert not np.abs(adapter.down).max() and np.abs(adapter.up).max() > 1e-7


def test_checkpoints_keep_them_apart_and_export_merges_them(tmp_path):
    low_rank = adapted(tiny.CONFIG, tiny.params(), weights=("query", "output"))
    ms.save(tmp_path / "ours", tiny.CONFIG, low_rank)
    config, read = ms.load(tmp_path / "ours")
    assert jax.tree.structure(read) == jax.tree.structure(low_rank)
    jax.tree.map(np.testing.assert_array_equal, read, low_rank)
    prints = [fingerprint(config, one) for one in (read, low_rank, tiny.params(), ms.merge_adapters(low_rank))]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    halved = ms.load(tmp_path / "ours", dtype="bfloat16")[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(halved)} == {"bfloat16"}
    merged = ms.merge_adapters(low_rank)
    for ours, theirs in zip(jax.tree.leaves(load_deferred(tmp_path / "ours")[1]), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(ours.read(), theirs, rtol=1e-6, atol=1e-6)
    export(tmp_path / "ours", tmp_path / "theirs")
    export_of = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert export_of["hidden_size"] == config.model_dim
    ms.save(tmp_path / "merged", tiny.CONFIG, merged)
    assert jax.tree.structure(ms.load(tmp_path / "merged")[1]) == jax.tree.structure(tiny.params())


def test_sharded_ones_are_whole_on_every_device(tmp_path):
    ms.save(tmp_path / "ours", tiny.CONFIG, adapted(tiny.CONFIG, tiny.params()))
    place = jax.sharding.NamedSharding(jax.make_mesh((1,), ("model",)), jax.sharding.PartitionSpec("model"))
    leaf = ms.load(tmp_path / "ours", sharding=place)[1].layers[0].gate
    assert (
        isinstance(leaf, ms.LowRank) and leaf.weight.sharding == place and leaf.adapter.up.sharding.is_fully_replicated
    )


def test_counts_them_beside_the_weights():
    low_rank = adapted(tiny.CONFIG, tiny.params(), weights=("gate",), rank=3)
    parts, c = part_sizes(low_rank), tiny.CONFIG
    assert parts.pop("adapters") == c.num_layers * 3 * (c.model_dim + c.mlp_dim)
    assert parts == part_sizes(tiny.params())


def test_refuses_what_does_not_fit(tmp_path):
    params, config = tiny.params(), tiny.CONFIG
    adapters = ms.init_adapters(config, 2, jax.random.key(0))
    low_rank = ms.attach_adapters(config, params, adapters)
    with pytest.raises(ValueError, match="rank is 0; it must be a whole number of at least 1"):
        ms.init_adapters(config, 0, jax.random.key(0))
    with pytest.raises(ValueError, match="weight 'mlp_norm' takes no adapter"):
        ms.init_adapters(config, 2, jax.random.key(0), weights=("mlp_norm",))
    with pytest.raises(ValueError, match="adapters are for 1 layers; the model has"):
        ms.attach_adapters(config, params, adapters[:1])
    with pytest.raises(ValueError, match="layer 0: query has an adapter already"):
        ms.attach_adapters(config, low_rank, adapters)
    wide = ms.init_adapters(config.replace(mlp_dim=config.mlp_dim + 1), 2, jax.random.key(0))
    with pytest.raises(ValueError, match=r"layers\[0\].gate.adapter.up is .*; it must be"):
        ms.attach_adapters(config, params, wide)
    norm = params.replace(final_norm=ms.LowRank(params.final_norm, adapters[0]["gate"]))
    with pytest.raises(ValueError, match="final_norm has an adapter; only query, key"):
        ms.save(tmp_path / "ours", config, norm)
    gate = params.layers[0].replace(gate=ms.LowRank(params.layers[0].gate, wide[0]["gate"]))
    embedding = ms.LowRank(params.embedding, adapters[0]["gate"])
    with pytest.raises(ValueError, match="embedding has an adapter.*gate.adapter.up is"):
        ms.save(tmp_path / "ours", config, params.replace(embedding=embedding, layers=(gate, *params.layers[1:])))
    half = ms.init_adapters(config, 2, jax.random.key(0), dtype="bfloat16")
    with pytest.raises(ValueError, match="adapter.down is bfloat16.*it must be float32"):
        ms.save(tmp_path / "ours", config, ms.attach_adapters(config, params, half))
    with pytest.raises(ValueError, match="has an adapter, which a cell does not take; merge it"):
        ms.MultiStateCell(config, ms.TOVA(), low_rank, 4)
    assert not (tmp_path / "ours").exists()
