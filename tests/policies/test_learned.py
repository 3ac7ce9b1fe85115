"""The policy that asks a gate: against the oracle, its file, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from test_family import BUDGET, CHUNK, DEEP, MODES, SHORT, TOKENS, T, params_of, read

import msrnn_jax as ms
from msrnn_jax.policies import Learned, init_gate, save_gate

OPTIONS = (
    ({}, {"soft": True}, {"scope": "layer", "sinks": 1}, {"ageing": False}, {"ageing": False, "every": 3})
    + ({"soft": True, "recent": 3, "sinks": 2}, {"soft": True, "scope": "layer", "ageing": False})
    + ({"adaptive": 0.5}, {"every": 4, "soft": True})
)
ALL = [(options, mode) for options in OPTIONS for mode in MODES]
CHOSEN = [
    (OPTIONS[0], "gap"),
    (OPTIONS[1], "absolute"),
    (OPTIONS[2], "cache"),
    (OPTIONS[3], "absolute"),
    (OPTIONS[5], "gap"),
]


def in_numpy(gate):
    """The network written from its equation, for the oracle."""
    weights = [np.asarray(leaf, np.float64) for leaf in gate]

    def log_beta(layer, head, key, value, x):
        inward, inward_bias, outward, outward_bias = (leaf[layer, head] for leaf in weights)
        numbers = np.concatenate([key, value, x])[: len(inward)]
        logit = np.tanh(numbers @ inward + inward_bias) @ outward + outward_bias
        return -np.log1p(np.exp(-logit))

    return log_beta


def spelled(options):
    """As the oracle reads it."""
    return ":".join(["learned", ",".join(f"{name}={value}" for name, value in options.items())])


@pytest.mark.parametrize(("options", "mode"), tiny.few(ALL, *CHOSEN))
def test_step_extend_and_the_oracle_are_one(options, mode, x64):
    gate = tiny.gate(DEEP, hidden="scope" not in options)
    policy, lengths = Learned(weights=gate, **options), np.array([T, SHORT], np.int32)
    params = params_of(DEEP)
    (logits, kept), (states, found) = jax.device_get(read(DEEP, policy, params, TOKENS, lengths, mode))
    text, asked = spelled(options), in_numpy(gate)
    moments = oracle.run(DEEP, text, params, TOKENS.tolist(), BUDGET, positions=mode, gate=asked)
    np.testing.assert_allclose(logits, np.stack([moment.logits for moment in moments]), rtol=0, atol=1e-9)
    for t, moment in enumerate(moments):
        assert [tiny.sets(positions[t]) for positions, _, _ in kept] == moment.kept, f"after token {t}"
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row][:length], logits[:length], rtol=0, atol=1e-9)
        for index, layer in enumerate(states.layers):
            assert tiny.sets(layer.positions[row]) == moments[length - 1].kept[index]


@pytest.mark.parametrize("options", [{"soft": True}, {"soft": True, "recent": 3}])
def test_a_prompt_fades_before_it_is_cut(options, x64):
    """Nothing is forgotten while a prompt is read, and biases are then worked out for all tokens at once."""
    gate, params = tiny.gate(DEEP, hidden=True), params_of(DEEP)
    policy, asked = Learned(weights=gate, **options), in_numpy(gate)
    for mode in MODES:
        state = ms.init_state(DEEP, policy, BUDGET, positions=mode)
        state, logits = ms.prefill(DEEP, policy, params, state, TOKENS[:20], mode="oneshot", chunk=CHUNK)
        moments = oracle.run(
            DEEP, spelled(options), params, TOKENS[:20].tolist(), BUDGET, oneshot=20, positions=mode, gate=asked
        )
        np.testing.assert_allclose(logits, moments[-1].logits, rtol=0, atol=1e-9)
        assert [tiny.held(layer) for layer in state.layers] == moments[-1].kept


def test_a_token_keeps_what_it_came_with_beside_what_is_observed(x64):
    """A chunk has all its tokens from the start, but those that are still to come do not observe."""

    class Ageing(ms.Policy):
        def init(self, rows, slots):
            return jnp.zeros((rows, slots))

        def init_token(self, arrival):
            return arrival.token[None] / 10

        def observe(self, stats, view):
            return stats + 1

        def score(self, layer, t):
            return -layer.stats

    policy, params = Ageing(), params_of(DEEP)
    ms.check_contract(policy, DEEP)
    (logits, kept), (states, found) = read(DEEP, policy, params, TOKENS, np.array([T, SHORT], np.int32), "absolute")
    np.testing.assert_allclose(found[0], logits, rtol=0, atol=1e-9)
    for layer, (positions, stats, _) in zip(states.layers, kept, strict=True):
        assert tiny.sets(layer.positions[0]) == tiny.sets(positions[-1])
        np.testing.assert_allclose(
            tiny.by_position(layer.positions[0], layer.stats[0], T),
            tiny.by_position(positions[-1], stats[-1], T),
            rtol=1e-9,
        )


def test_biases_that_are_worked_out_at_once_see_what_is_held_then(x64):
    class Crowded(ms.Window):
        def bias(self, layer, t):
            newer = (layer.positions[:, None, :] > layer.positions[:, :, None]).sum(axis=-1)
            return -0.1 * newer.astype(jnp.float64) ** 2  # no shift of all

    policy, params = Crowded(), params_of(DEEP)
    ms.check_contract(policy, DEEP)
    (logits, _), (_, found) = read(DEEP, policy, params, TOKENS, np.array([T, SHORT], np.int32), "absolute")
    np.testing.assert_allclose(found[0], logits, rtol=0, atol=1e-9)
    prompt = jnp.asarray(TOKENS[:BUDGET])  # nothing has to go yet, whichever way it is read
    by_mode = [
        ms.prefill(DEEP, policy, params, ms.init_state(DEEP, policy, BUDGET), prompt, mode=mode)[1]
        for mode in ("stepwise", "oneshot")
    ]
    np.testing.assert_allclose(by_mode[1], by_mode[0], rtol=0, atol=1e-9)
    assert np.abs(by_mode[0] - logits[BUDGET - 1]).max() < 1e-9


def test_a_new_gate_is_the_window():
    config, params = tiny.CONFIG, tiny.params()
    held = []
    for policy in (ms.Window(scope="head"), Learned(), Learned(weights=init_gate(config, jax.random.key(0)))):
        state, _ = ms.extend(config, policy, params, ms.init_state(config, policy, 8), TOKENS)
        held.append([tiny.held(layer) for layer in state.layers])
    assert held[0] == held[1] == held[2]
    log_beta = float(np.asarray(state.layers[0].stats).max(initial=-np.inf, where=state.layers[0].positions >= 0))
    np.testing.assert_allclose(1 / (1 - np.exp(log_beta)), 64, rtol=1e-4)  # the sum of all weights


def test_gradients_are_those_of_finite_differences(x64):
    """In `step` and `extend`; beside the choice of who goes, which these small changes leave alone."""
    config, params, gate = DEEP, params_of(DEEP), tiny.gate(DEEP, hidden=True)
    empty = ms.init_state(config, Learned(soft=True), BUDGET)

    def loss(gate, chunk):
        policy = Learned(weights=gate, soft=True)
        return ms.nll(config, policy, params, empty, TOKENS[:-1], TOKENS[1:], chunk=chunk)[1].mean()

    slopes = [jax.grad(loss)(gate, chunk) for chunk in (T, 5)]
    for first, second in zip(*slopes, strict=True):
        assert np.abs(first).max() > 1e-6
        np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-12)
    direction = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), gate)
    eps = 1e-6
    ahead, behind = (loss(jax.tree.map(lambda a, b, s=s: a + s * b, gate, direction), T) for s in (eps, -eps))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), slopes[0], direction)))
    np.testing.assert_allclose((ahead - behind) / (2 * eps), slope, rtol=1e-5)


def test_hard_choices_give_a_gate_no_gradient():
    gate = tiny.gate(hidden=True)

    def loss(gate):
        policy = Learned(weights=gate)
        state = ms.init_state(tiny.CONFIG, policy, BUDGET)
        return ms.nll(tiny.CONFIG, policy, tiny.params(), state, TOKENS[:-1], TOKENS[1:])[1].mean()

    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(jax.grad(loss)(gate)))


def test_a_file_is_a_policy(tmp_path):
    gate, path = tiny.gate(hidden=True), tmp_path / "gate.safetensors"
    save_gate(path, gate, trained_by="nobody")
    policy = ms.parse_policy(f"learned:{path},sinks=2")
    assert policy == ms.parse_policy(str(policy)) == Learned(gate=str(path), sinks=2)
    assert str(policy) == f"learned:sinks=2,gate={path}" and policy.ageing
    for mine, theirs in zip(policy.weights, gate, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    ms.check_contract(policy, tiny.CONFIG)
    save_gate(path, gate, ageing=False)
    assert str(ms.parse_policy(f"learned:{path}")) == f"learned:gate={path},ageing=False"
    assert ms.parse_policy("learned") == Learned()


def test_what_is_no_gate_is_refused(tmp_path):
    path = tmp_path / "gate.safetensors"
    save_gate(path, tiny.gate(hidden=True))
    whole = path.read_bytes()

    def refused(content, said):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            ms.parse_policy(f"learned:{path}")

    refused(whole[:-7], "gate '.*' cannot be read")
    refused(b"", "gate '.*' cannot be read")
    refused(whole.replace(b"msrnn_jax gate", b"msrnn_jax goat"), "is no file that save_gate has written")
    refused(whole.replace(b'format\\": 1', b'format\\": 9'), "is no file that save_gate has written")
    save_gate(path, tiny.gate(hidden=True)._replace(outward=jnp.full((2, 3, 5), jnp.nan)))
    refused(path.read_bytes(), "has numbers that are not finite")
    save_gate(path, tiny.gate(hidden=True)._replace(outward=jnp.zeros((2, 3, 4))))
    refused(path.read_bytes(), "is no file that save_gate has written")
    with pytest.raises(ValueError, match="gate 'nowhere' cannot be read"):
        ms.parse_policy("learned:nowhere")
    with pytest.raises(ValueError, match="a path without a comma"):
        Learned(gate="a,b")
    for options, said in (({"width": 0}, "width is 0"), ({"lifetime": 1}, "lifetime is 1")):
        with pytest.raises(ValueError, match=said):
            init_gate(tiny.CONFIG, jax.random.key(0), **options)


def test_the_gate_of_another_model_is_refused():
    for other in ({"num_layers": 1}, {"num_heads": 4, "num_kv_heads": 2}, {"head_dim": 8}):
        gate = init_gate(tiny.CONFIG.replace(**other), jax.random.key(0))
        with pytest.raises(ValueError, match=r"the gate has .* layers of .* heads and reads .* numbers; layer"):
            policy = Learned(weights=gate)
            ms.extend(tiny.CONFIG, policy, tiny.params(), ms.init_state(tiny.CONFIG, policy, BUDGET), TOKENS)
