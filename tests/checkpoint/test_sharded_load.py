"""Weights restored straight onto their devices, on eight that XLA makes of one CPU."""

import textwrap

import jax
import pytest
import tiny
from devices import on_devices
from jax.sharding import PartitionSpec as P

import msrnn_jax as ms

CONFIG = tiny.CONFIG.replace(num_heads=8, num_kv_heads=4, mlp_dim=48, vocab_size=56)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "model"
    ms.save(path, CONFIG, tiny.params(config=CONFIG))
    return path


# Programs that see eight devices, which one process runs one after another. Each prints for a test below.
PROGRAMS = {
    "one sharding": """
        everywhere = NamedSharding(mesh, P())
        config, params = ms.load(path, dtype="bfloat16", sharding=everywhere)
        print(config.dtype, {str(leaf.dtype) for leaf in jax.tree.leaves(params)})
        print(all(leaf.sharding == everywhere for leaf in jax.tree.leaves(params)))
        _, host = ms.load(path, dtype="bfloat16")
        print(all(jax.tree.leaves(jax.tree.map(lambda one, other: np.array_equal(one, other), params, host))))
        leaves = jax.tree.leaves(host)
        print({len(leaf.devices()) for leaf in leaves}, any(leaf.committed for leaf in leaves))
        last = jax.sharding.SingleDeviceSharding(jax.devices()[5])
        _, params = ms.load(path, sharding=ms.Params(last, last, last, last))  # a tree like the top of the params
        print({device.id for leaf in jax.tree.leaves(params) for device in leaf.devices()})
    """,
    "odd ones": """
        five = jax.make_mesh((5,), ("model",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:5])
        for odd in (NamedSharding(five, P(None, "model")), NamedSharding(mesh, P(None, None, "model"))):
            try:
                ms.load(path, sharding=ms.Params(*[NamedSharding(mesh, P())] * 3, odd))
            except ValueError as error:
                print(error)
    """,
    "through heads": """
        from msrnn_jax.params import param_axes
        config, host = ms.load(path)
        spread = {"KH": ("data", "model")}
        shardings = jax.tree.map(
            lambda axes: NamedSharding(mesh, P(*map(spread.get, axes.split()))), param_axes(config)
        )
        _, params = ms.load(path, sharding=shardings)
        same = jax.tree.map(lambda leaf, place: leaf.sharding == place, params, shardings)
        equal = jax.tree.map(lambda one, other: np.array_equal(one, other), params, host)
        print(all(jax.tree.leaves(same)), all(jax.tree.leaves(equal)))
        print({part.data.shape for part in params.layers[0].key.addressable_shards})
    """,
}


@pytest.fixture(scope="module")
def printed(saved) -> dict[str, list[str]]:
    """What the programs print, line by line."""
    programs = (f"print({name!r})\n{textwrap.dedent(code)}print()\n" for name, code in PROGRAMS.items())
    parts = on_devices("path = sys.argv[1]\n" + "".join(programs), saved).split("\n\n")
    return {name: lines for name, *lines in (part.splitlines() for part in parts if part)}


@pytest.mark.exhaustive
def test_every_device_holds_its_part_and_no_device_held_all(saved):
    printed = on_devices(
        """
        path = sys.argv[1]
        from msrnn_jax.params import abstract_params, param_axes
        spec = {"V": "model", "NH": "model", "KH": "model", "F": "model"}
        config, host = ms.load(path)
        shardings = jax.tree.map(
            lambda axes: NamedSharding(mesh, P(*map(spec.get, axes.split()))), param_axes(config)
        )

        given = set()  # shapes of all that any device was given on the way
        put = jax.device_put
        def watched(x, *rest, **options):
            given.update(jnp.shape(leaf) for leaf in jax.tree.leaves(x))
            return put(x, *rest, **options)
        jax.device_put = watched
        _, params = ms.load(path, sharding=shardings)
        jax.device_put = put
        shapes = zip(jax.tree.leaves(abstract_params(config)), jax.tree.leaves(shardings))
        split = {leaf.shape for leaf, place in shapes if place.shard_shape(leaf.shape) != leaf.shape}
        print(len(split), (24, 2, 10) in given, split & given)
        same = jax.tree.map(lambda leaf, place: leaf.sharding == place and leaf.committed, params, shardings)
        equal = jax.tree.map(lambda one, other: np.array_equal(one, other), params, host)
        print(all(jax.tree.leaves(same)), all(jax.tree.leaves(equal)))
        query = params.layers[0].query
        print(query.shape, sorted({part.data.shape for part in query.addressable_shards}), len(query.devices()))
        tokens = jnp.arange(12, dtype=jnp.int32)
        for weights in (host, params):
            state, logits = ms.extend(config, ms.TOVA(), weights, ms.init_state(config, ms.TOVA(), 5), tokens)
            print(float(jnp.abs(logits).sum()))
        """,
        saved,
    ).splitlines()
    assert printed[:3] == ["7 True set()", "True True", "(24, 80) [(24, 20)] 8"]
    assert float(printed[3]) == pytest.approx(float(printed[4]), rel=1e-5)


def test_one_sharding_serves_all_weights_and_dtype_casts_on_the_way(printed):
    assert printed["one sharding"] == ["bfloat16 {'bfloat16'}", "True", "True", "{1} False", "{5}"]


def test_shardings_that_do_not_fit_are_named(saved, printed):
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, P("model", None, None, None))
    with pytest.raises(ValueError, match=r"sharding of params.embedding \[56, 24\] does not fit: "):
        ms.load(saved, sharding=place)
    with pytest.raises(
        ValueError, match=r"sharding of params.embedding is 'model'; it must be a jax.sharding.Sharding"
    ):
        ms.load(saved, sharding="model")
    with pytest.raises(ValueError, match="sharding is no tree shaped like the params"):
        ms.load(saved, sharding=(place, place))
    assert len(printed["odd ones"]) == 2
    assert all(
        line.startswith("sharding of params.unembedding [24, 56] does not fit: ") for line in printed["odd ones"]
    )


def test_a_sharding_may_cut_through_heads(printed):
    """Files have an axis of four KV heads, which eight devices cannot share out."""
    assert printed["through heads"] == ["True True", "{(24, 5)}"]
