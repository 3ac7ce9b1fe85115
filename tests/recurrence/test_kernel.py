"""The kernel over a chunk does what the scan does, to the bit; here JAX interprets it."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from devices import on_devices
from extending import CHUNKS, FLOAT64, Listener, T, compare
from flax import struct

import msrnn_jax as ms
from msrnn_jax.recurrence import chunk, kernel
from msrnn_jax.recurrence.kernel import Kernel, step_through
from msrnn_jax.recurrence.kernel_choice import LEAST, SWITCH, kernels_for, why_not
from msrnn_jax.state import LayerState, StepContext

HEADS, GROUP, COUNT, SLOTS, WIDTH = 4, 2, 11, 9, 10
PLATFORMS = ("tpu", "cuda")
HIDDEN = jax.ShapeDtypeStruct((8,), jnp.float32)  # the input of a layer
HERE = pathlib.Path(__file__).parents[1]


class Novelty(ms.Policy):
    """Somebody's own: two statistics, of which a new slot's are not zero, and the token, time and layer it is shown."""

    scope: str = struct.field(pytree_node=False, default="head", kw_only=True)

    def init(self, rows, slots):
        return {"best": jnp.full((rows, slots), -0.5), "pair": jnp.ones((rows, slots, 2))}

    def observe(self, stats, view):
        assert view.keys.shape[1] == view.values.shape[1] == view.probs.shape[2]
        assert view.queries.shape == (view.probs.shape[0] * view.probs.shape[1], view.keys.shape[2])
        mass = view.probs.max(axis=1) if self.scope == "head" else view.probs.max(axis=(0, 1))[None]
        best = jnp.maximum(0.9 * stats["best"], mass) + 0.01 * (view.token + view.layer).astype(jnp.float32)
        return {"best": best, "pair": 0.5 * stats["pair"] + best[..., None]}

    def score(self, layer, t):
        age = (t - layer.positions).astype(jnp.float32)
        return layer.stats["best"] + layer.stats["pair"].sum(axis=-1) - 0.1 * age


class Peeking(ms.Policy):
    """One that looks at keys."""

    def score(self, layer, t):
        return (layer.keys**2).sum(axis=(0, 2))[None]


class Halving(ms.Policy):
    """One that computes in half precision."""

    def score(self, layer, t):
        return layer.positions.astype(jnp.bfloat16)


class Pairing(ms.Policy):
    """One whose statistics are three for each slot, from a table."""

    def init(self, rows, slots):
        return jnp.broadcast_to(np.arange(3, dtype=np.float32), (rows, slots, 3))

    def score(self, layer, t):
        return layer.stats.sum(axis=-1)


class Tripling(Pairing):
    """The same without a table."""

    def init(self, rows, slots):
        return jnp.zeros((rows, slots, 3))


class Sorting(ms.Policy):
    """One that does what no kernel can."""

    def score(self, layer, t):
        return jnp.argsort(layer.positions, axis=1)


POLICIES = [*tiny.POLICIES, Novelty(), Novelty(scope="layer", sinks=1)]


def situation(policy, seed=0, *, budget=SLOTS - 1, padded=0, heads=HEADS, group=GROUP, ties=False):
    """A layer with a chunk's tokens in their slots, and the products of their queries; rows hold unequally many."""
    rng = np.random.default_rng(seed)
    rows, slots = (1 if policy.scope == "layer" else heads), SLOTS + COUNT
    positions = np.full((rows, slots), ms.EMPTY, np.int32)
    for row in positions:
        count = rng.integers(2, SLOTS + 1)
        row[rng.choice(SLOTS, count, replace=False)] = rng.choice(30, count, replace=False)
    stats = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape), leaf.dtype), policy.init(rows, slots))
    cache = jnp.zeros((heads, slots, WIDTH))
    layer = LayerState(cache, cache, jnp.asarray(positions), stats, jnp.int32(budget))
    now = np.arange(30, 30 + COUNT, dtype=np.int32)
    real = np.arange(COUNT) < COUNT - padded
    context = StepContext(
        token=jnp.asarray(rng.integers(0, 50, COUNT), jnp.int32),
        position=jnp.asarray(np.where(real, now, ms.EMPTY)),
        seen=jnp.asarray(np.minimum(now + 1, 30 + COUNT - padded)),
        angles=None,
        hidden=jnp.zeros((COUNT, 8)),
    )
    products = 3 * rng.normal(size=(heads, COUNT, group, slots))
    products = jnp.asarray(products.round() if ties else products, jnp.float32)
    return layer, context, products


def by_scan(policy, layer, context, products, window=None):
    layer, visible, _ = chunk._scan_masks(policy, layer, context, queries(products), products, 3, window)
    return layer.positions, layer.stats, visible


def queries(products):
    return jnp.zeros((COUNT, products.shape[0] * products.shape[2], WIDTH))


def by_kernel(policy, layer, context, products, window=None, *, platform="tpu"):
    made = Kernel(policy, 3, window, "absolute", WIDTH, platform, interpret=True)
    assert why_not(made, layer, products, HIDDEN) is None
    return step_through(made, layer, context, products)


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


EVERY = tiny.few(
    itertools.product(POLICIES, PLATFORMS),
    (ms.TOVA(sinks=2, recent=3), "tpu"),
    (Novelty(), "tpu"),
    (ms.H2O(), "cuda"),
    (ms.Random(scope="head", sinks=1), "cuda"),
)


@pytest.mark.parametrize(("policy", "platform"), EVERY, ids=str)
def test_the_kernel_is_the_scan(policy, platform):
    for seed, options in enumerate([{}, {"padded": 3}, {"budget": 4, "ties": True}]):
        case = situation(policy, seed, **options)
        assert_same(by_kernel(policy, *case, platform=platform), by_scan(policy, *case))


@pytest.mark.parametrize("policy", [ms.TOVA(recent=2), tiny.more(ms.H2O()), tiny.more(Novelty())], ids=str)
def test_blocks_of_a_chunk_go_on_from_each_other(policy, monkeypatch):
    """Of four tokens, the last of three."""
    case = situation(policy)
    monkeypatch.setattr(kernel, "BLOCK", 4 * kernel.tiled(HEADS, GROUP, SLOTS + COUNT))
    assert_same(by_kernel(policy, *case), by_scan(policy, *case))


@pytest.mark.parametrize(
    ("heads", "group", "platform"),
    tiny.few([(*heads, name) for heads in [(4, 1), (1, 1), (1, 4), (2, 8)] for name in PLATFORMS], (4, 1, "tpu")),
)
def test_heads_of_every_number(heads, group, platform):
    for policy in (ms.TOVA(), ms.H2O()):
        case = situation(policy, heads=heads, group=group)
        assert_same(by_kernel(policy, *case, platform=platform), by_scan(policy, *case))


def test_tokens_expire_in_a_window():
    for policy in (ms.TOVA(), ms.H2O()):
        case = situation(policy, budget=5)
        found = by_kernel(policy, *case, 7)
        assert_same(found, by_scan(policy, *case, 7))
        assert np.asarray(found[0]).max(initial=0) - np.asarray(found[0])[found[0] != ms.EMPTY].min() < 7


def test_rows_of_a_batch_and_a_batch_of_batches():
    """Some of the arrays have no axis of the batch."""
    policy = ms.H2O()
    layers, contexts, products = zip(*(situation(policy, seed) for seed in range(6)), strict=True)
    layer, products = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (layers, products))
    run = jax.vmap(lambda layer, products: by_kernel(policy, layer, contexts[0], products))
    found = run(layer, products)
    for row in range(6):
        expected = by_scan(policy, layers[row], contexts[0], products[row])
        assert_same(jax.tree.map(lambda leaf, row=row: leaf[row], found), expected)
    twice = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), (layer, products))
    assert_same(jax.tree.map(lambda leaf: leaf.reshape(6, *leaf.shape[2:]), jax.vmap(run)(*twice)), found)


def read(switch, monkeypatch, policy):
    """What `extend` makes of a text with the switch so."""
    monkeypatch.setenv(SWITCH, switch)
    jax.clear_caches()  # the switch is read where a program is traced
    state = ms.init_state(tiny.CONFIG, policy, 6)
    return ms.extend(tiny.CONFIG, policy, tiny.params(), state, tiny.tokens(23), length=20, chunk=9)


GATE = ms.policies.init_gate(tiny.CONFIG, jax.random.key(0), lifetime=4)
LEARNED = ms.policies.Learned(weights=GATE._replace(outward=GATE.outward + 1))


def test_a_policy_whose_arrays_say_what_a_token_comes_with_has_a_kernel(monkeypatch):
    monkeypatch.setenv(SWITCH, "on")
    layer, context, products = situation(LEARNED)
    assert sorted(kernels_for(LEARNED, layer, context, products, 0, None, WIDTH)) == ["cuda", "default", "tpu"]
    assert kernels_for(Listener(weight=jnp.ones(2)), *situation(ms.TOVA()), 0, None, WIDTH) == {}

    def loss(gate):
        policy = LEARNED.replace(weights=gate)
        state = ms.init_state(tiny.CONFIG, policy, 6)
        return ms.nll(tiny.CONFIG, policy, tiny.params(), state, tiny.tokens(23)[:-1], tiny.tokens(23)[1:])[1].sum()

    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.grad(loss)(LEARNED.weights)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("policy", [ms.TOVA(sinks=2, recent=3), Sorting(), LEARNED], ids=str)
def test_extend_reads_as_without_it(policy, monkeypatch):
    """Logits and what is held; heads are three, which the kernel of a TPU takes."""
    state, logits = read("on", monkeypatch, policy)
    expected, exactly = read("off", monkeypatch, policy)
    np.testing.assert_allclose(logits, exactly, rtol=0, atol=1e-5)
    for ours, theirs in zip(state.layers, expected.layers, strict=True):
        assert tiny.held(ours) == tiny.held(theirs)


READ = dict.fromkeys([*itertools.product(tiny.POLICIES, [7]), *itertools.product(tiny.TYPICAL, CHUNKS)])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("policy", "chunk"), READ, ids=str)
def test_extend_is_the_scan_of_step(policy, chunk, x64, monkeypatch):
    """Every budget and every length, as without a kernel."""
    monkeypatch.setenv(SWITCH, "on")
    jax.clear_caches()
    compare(FLOAT64, policy, tiny.params("float64"), tiny.tokens(T), "absolute", chunk, logits=1e-9, stats=1e-7)


@pytest.mark.parametrize("policy", [ms.H2O(), tiny.more(ms.TOVA()), tiny.more(Novelty())], ids=str)
def test_gradients_are_those_of_the_scan(policy, monkeypatch):
    """What statistics are to products; which slots are held has no derivative."""
    layer, context, products = situation(policy, padded=2)

    def total(products):
        after, visible, _ = chunk._step_through(policy, layer, context, queries(products), products, 3, None)
        return sum((leaf * leaf).sum() for leaf in jax.tree.leaves(after.stats)), (after.positions, visible)

    found = []
    for switch in ("on", "off"):
        monkeypatch.setenv(SWITCH, switch)
        found.append(jax.jit(jax.grad(lambda products: total(products), has_aux=True))(products))
    assert np.abs(found[1][0]).max() > 1e-3
    assert_same(*found)


def test_what_a_kernel_cannot_do_is_left_to_the_scan():
    layer, context, products = situation(ms.TOVA())

    def reasons(policy, layer=layer, products=products):
        made = [Kernel(policy, 0, None, "absolute", WIDTH, name) for name in PLATFORMS]
        return [why_not(kernel, layer, products, HIDDEN) for kernel in made]

    assert reasons(ms.TOVA()) == [None, None]
    assert reasons(Peeking()) == ["the policy looks at queries, keys, values or the layer's input"] * 2
    assert reasons(ms.TOVA(every=4)) == reasons(ms.H2O(adaptive=0.2)) == ["the policy forgets many at once"] * 2
    rows = "the policy keeps statistics of rows, or changes attention"
    assert reasons(ms.parse_policy("morphkv:recent=3")) == [rows] * 2
    apart = layer.replace(budget=jnp.full(HEADS, 3, jnp.int32))
    assert reasons(ms.TOVA(scope="head"), apart) == ["every head has its own budget"] * 2
    assert reasons(Sorting()) == ["the policy uses sort"] * 2
    assert reasons(Halving()) == ["the policy computes in bfloat16"] * 2
    (tpu, gpu) = reasons(Tripling(), situation(Tripling())[0])
    assert tpu is None and gpu == "a GPU's kernels take powers of two; the policy makes an array (1, 20, 3)"
    assert reasons(Pairing(), situation(Pairing())[0]) == ["the policy has arrays"] * 2
    assert reasons(Listener(weight=jnp.ones(2))) == ["the policy has arrays"] * 2
    odd = situation(ms.TOVA(), heads=3)
    (tpu, gpu) = reasons(ms.TOVA(), odd[0], odd[2])
    assert tpu is None and gpu == "a GPU's kernels take powers of two; there are 3 KV heads and 2 query heads for each"
    assert reasons(ms.TOVA(), products=jnp.zeros((64, 1, 8, 8192))) == [
        "a token's products do not fit into a TPU's memory",
        "a token's products are too many for a GPU's kernel",
    ]
    with jax.enable_x64(True):
        wider = products.astype(jnp.float64)
        assert reasons(ms.TOVA(), products=wider) == ["attention is computed in float64"] * 2


def test_the_switch(monkeypatch):
    layer, context, products = situation(ms.TOVA())

    def made(switch, context=context):
        monkeypatch.setenv(SWITCH, switch)
        return sorted(kernels_for(ms.TOVA(), layer, context, products, 0, None, WIDTH))

    assert made("on") == ["cuda", "default", "tpu"] and made("off") == []
    longer = context.replace(token=jnp.zeros(LEAST, jnp.int32))
    assert made("auto", longer) == []  # on a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert made("auto", longer) == ["cuda", "tpu"]
    assert made("auto") == []  # a chunk so short is not worth it
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert made("auto", longer) == []  # nobody says what lies where
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert made("auto", longer) == ["cuda", "tpu"]
    with pytest.raises(ValueError, match="MSRNN_KERNELS is 'yes'; it must be one of auto, on, off"):
        made("yes")


@pytest.mark.exhaustive
def test_on_a_mesh_devices_keep_their_rows():
    """Tokens, logits and what is held are those of one device; no row goes to another, and heads are gathered once."""
    printed = on_devices(
        """
sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + "/devices")
import contextlib, os, tiny
from test_sharding import CONFIG
tokens = jnp.stack([tiny.tokens(24, seed) for seed in range(4)])
for text in json.loads(sys.argv[2]):
    policy, found = ms.parse_policy(text), []
    for switch, shared in [("off", False), ("on", False), ("on", True)]:
        os.environ["MSRNN_KERNELS"] = switch
        jax.clear_caches()
        place = ms.shardings(CONFIG, policy, mesh)
        put = jax.device_put if shared else (lambda tree, where: tree)
        state = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], 4, 0), ms.init_state(CONFIG, policy, 6))
        read = jax.jit(jax.vmap(lambda w, s, t: ms.extend(CONFIG, policy, w, s, t, chunk=8), (None, 0, 0)))
        args = put(tiny.params(config=CONFIG), place.params), put(state, place.state), put(tokens, place.rows)
        with jax.set_mesh(mesh) if shared else contextlib.nullcontext():
            state, logits = read(*args)
            program = read.lower(*args).compile().as_text()
        found.append((np.asarray(logits), [np.sort(np.asarray(layer.positions)) for layer in state.layers]))
    print(json.dumps({
        "far": [float(np.abs(logits - found[0][0]).max()) for logits, _ in found],
        "held": [all(map(np.array_equal, kept, found[0][1])) for _, kept in found],
        "rows": [rows for rows in (2, 4) if f"f32[{rows},8,4,2,15]" in program],  # of products, with all heads
    }))
""",
        HERE,
        json.dumps(["tova", "h2o"]),
        quick=True,
    )
    for line in map(json.loads, printed.splitlines()):
        assert max(line["far"]) < 2e-4 and all(line["held"]), line
        assert line["rows"] == [2]
