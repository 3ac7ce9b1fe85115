"""Every policy against the oracle, which was written apart from the code: `step`, `extend` and ragged batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.model.extend import scan_chunks
from msrnn_jax.policies.registry import POLICIES

T, SHORT, BUDGET, CHUNK = 34, 23, 8, 7  # tokens of two rows, and a chunk that divides neither
MODES = ("absolute", "cache", "gap")
DEEP = tiny.CONFIG.replace(dtype="float64")
SHALLOW = DEEP.replace(num_layers=1)
TOKENS = np.random.default_rng(0).permutation(50)[:T].astype(np.int32)  # none twice: equal keys would tie

# One of each policy, and one of each thing that the engine does for any of them, with a position mode.
CHOSEN = [
    ("random:scope=head,apart=True", "absolute"),
    ("h2o:normalize=True,every=3", "gap"),
    ("h2o:weigh=True,scope=layer", "absolute"),
    ("a2sf:recent=0.3", "absolute"),
    ("roco:recent=2", "cache"),
    ("keyformer:horizon=20,seed=3", "absolute"),
    ("snapkv:recent=3,kernel=3", "absolute"),
    ("snapkvd:recent=3,every=4", "absolute"),
    ("rkv:recent=2,every=3,mix=0.3", "gap"),
    ("gkv:recent=2,every=3", "absolute"),
    ("morphkv:recent=3", "cache"),
    ("expectedattention:every=3,sinks=1,future=16", "absolute"),
    ("triattention:every=3", "cache"),
    ("knorm", "cache"),
    ("keydiff:every=5", "absolute"),
    ("cur:sinks=1,window=4", "absolute"),
    ("lagkv:lag=3,every=4,sinks=1", "gap"),
    ("window:sinks=1,every=4", "cache"),
    ("tova:pyramid=4", "absolute"),
    ("tova:scope=head,adaptive=0.8,every=2", "gap"),
    ("h2o:adaptive=0.8,recent=1", "absolute"),
    ("gkv:recent=2,adaptive=0.2,every=4", "absolute"),
]
OTHERS = (
    ("tova:every=5", "tova:recent=0.3,every=2", "h2o:adaptive=0.3", "a2sf:decay=0.8,scope=layer,recent=2")
    + ("roco:adaptive=0.2,recent=1", "roco:every=4,recent=3,sinks=1,share=0.6", "keyformer:scope=layer,horizon=20")
    + ("snapkv:recent=3,scope=layer", "snapkv:recent=2,adaptive=0.3", "snapkvd:recent=2,every=1,kernel=3,sinks=1")
    + ("rkv:scope=layer,recent=2,every=2", "rkv:recent=2,adaptive=0.3,every=3", "gkv:scope=layer,recent=2,every=3")
    + ("gkv:recent=2,every=1", "gkv:recent=2,decay=0.3,every=7", "morphkv:recent=3,fuse=sum,scope=layer")
    + ("expectedattention:scope=layer,every=2,sinks=2,future=8,epsilon=0.01", "triattention:every=3,scope=layer")
    + ("triattention:every=1", "knorm:scope=layer", "keydiff:scope=layer,every=2", "cur:scope=layer,sinks=0")
    + ("lagkv:scope=layer,lag=3,every=1,sinks=2", "lagkv:lag=2,every=9,sinks=0", "knorm:pyramid=3,every=2")
)
ALL = [(text, mode) for text in (*(text for text, _ in CHOSEN), *OTHERS) for mode in MODES]


def config_of(policy):
    """One layer compiles in half the time; but some do something else in each."""
    own = policy.pyramid is not None or getattr(policy, "apart", False) or hasattr(policy, "horizon")
    return DEEP if own else SHALLOW


def params_of(config):
    return tiny.params("float64", config=config)


@partial(jax.jit, static_argnames="mode")
def read(config, policy, params, tokens, lengths, mode):
    """By steps: logits and positions after every token. By `extend`: states of rows of two lengths, and logits."""
    empty = ms.init_state(config, policy, BUDGET, positions=mode)

    def one(state, token):
        state, logits = ms.step(config, policy, params, state, token)
        kept = [(layer.positions, layer.stats, layer.row_stats) for layer in state.layers]
        return state, (logits, kept)

    def extended(length):
        return ms.extend(config, policy, params, empty, tokens, length=length, chunk=CHUNK)

    return jax.lax.scan(one, empty, tokens)[1], jax.vmap(extended)(lengths)


@pytest.mark.parametrize(("text", "mode"), tiny.few(ALL, *CHOSEN))
def test_step_extend_and_the_oracle_are_one(text, mode, x64):
    policy = ms.parse_policy(text)
    config, lengths = config_of(policy), np.array([T, SHORT], np.int32)
    params = params_of(config)
    (logits, kept), (states, found) = jax.device_get(read(config, policy, params, TOKENS, lengths, mode))
    moments = oracle.run(config, text, params, TOKENS.tolist(), BUDGET, positions=mode)
    np.testing.assert_allclose(logits, np.stack([moment.logits for moment in moments]), rtol=0, atol=1e-9)
    for t, moment in enumerate(moments):
        assert [tiny.sets(positions[t]) for positions, _, _ in kept] == moment.kept, f"after token {t}"
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row][:length], logits[:length], rtol=0, atol=1e-9)
        assert not found[row][length:].any()
        for layer, own in zip(states.layers, kept, strict=True):
            positions, stats, row_stats = jax.tree.map(lambda leaf, end=length: leaf[end - 1], own)
            assert tiny.sets(layer.positions[row]) == tiny.sets(positions)
            for mine, theirs in zip(jax.tree.leaves(layer.stats), jax.tree.leaves(stats), strict=True):
                np.testing.assert_allclose(
                    tiny.by_position(layer.positions[row], mine[row], T),
                    tiny.by_position(positions, theirs, T),
                    rtol=1e-7,
                    atol=1e-12,
                )
            for mine, theirs in zip(jax.tree.leaves(layer.row_stats), jax.tree.leaves(row_stats), strict=True):
                np.testing.assert_allclose(mine[row], theirs, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    "text", ["random:scope=head,every=3", tiny.more("knorm:every=2"), tiny.more("window:sinks=1,every=4")]
)
def test_cuts_that_are_known_beforehand_are_those_of_steps(text):
    """From states that hold little, much and too much, with padding: a closed form stands in for stepping there."""
    policy, params, length = ms.parse_policy(text), tiny.params(config=tiny.SHALLOW), 17
    empty = ms.init_state(tiny.SHALLOW, policy, 16, slots=24)
    for before in (0, 3, 9, 15):
        state = empty
        if before:
            state, _ = ms.extend(
                tiny.SHALLOW, policy, params, empty, np.pad(TOKENS[:before], (0, 15 - before)), length=before
            )
        state = state.replace(layers=tuple(layer.replace(budget=jnp.int32(6)) for layer in state.layers))
        tokens = TOKENS[before : before + length]
        stepped, _, _ = tiny.watch(tiny.SHALLOW, policy, params, state, tokens)
        extended, _ = ms.extend(tiny.SHALLOW, policy, params, state, np.pad(tokens, (0, 6)), length=length, chunk=9)
        assert tiny.held(extended.layers[0]) == tiny.held(stepped.layers[0])


SCORED = ("rkv:recent=4", "lagkv:lag=3,sinks=1", "triattention", "expectedattention:sinks=1,future=16", "cur:window=4")
MORE = (
    ("snapkv:recent=3", "snapkvd:recent=3", "gkv:recent=3", "morphkv:recent=3", "keyformer:horizon=9", "roco:recent=1")
    + ("keydiff", "knorm", "a2sf:recent=1", "h2o:weigh=True", "h2o:normalize=True", "rkv:recent=4,scope=layer")
    + ("lagkv:lag=3,sinks=1,scope=layer", "triattention:scope=layer", "expectedattention:sinks=1,scope=layer")
)


@pytest.mark.parametrize("mode", ["absolute", tiny.more("cache")])
@pytest.mark.parametrize("text", tiny.few([*SCORED, *MORE], *SCORED))
def test_scores_are_those_of_the_oracle(text, mode, x64):
    """The numbers themselves, of which those who are kept may not show a small fault."""
    policy, count = ms.parse_policy(text), 20
    params, config = params_of(SHALLOW), SHALLOW
    state = ms.init_state(config, policy, BUDGET, slots=count + policy.every, positions=mode)
    state, _, _ = scan_chunks(config, policy, params, state, jnp.asarray(TOKENS[:count]), None, None, forgetting=False)
    layer, seen = state.layers[0], jnp.int32(count)
    if policy.revises:
        layer = layer.replace(stats=policy.revise(layer, seen))
    scores = np.asarray(policy.score(layer, seen))
    moment = oracle.run(config, text, params, TOKENS[:count].tolist(), BUDGET, oneshot=count, positions=mode)[-1]
    for row, expected in enumerate(moment.scores[0]):
        found = dict(zip(np.asarray(layer.positions)[row].tolist(), scores[row].tolist(), strict=True))
        assert len(expected) > count - BUDGET
        for position, score in expected.items():
            np.testing.assert_allclose(found[position], score, rtol=1e-9, atol=1e-12)


ONESHOT = ["snapkv:recent=3,kernel=3", "gkv:recent=2,every=4", "expectedattention:sinks=1,future=16", "lagkv:lag=3"]


@pytest.mark.parametrize("text", tiny.few([*ONESHOT, "h2o:adaptive=0.3", "rkv:recent=3", "tova:every=4"], ONESHOT[0]))
def test_a_prompt_is_cut_once(text, x64):
    policy, prompt = ms.parse_policy(text), 20
    params = params_of(SHALLOW)
    state, logits = ms.prefill(
        SHALLOW, policy, params, ms.init_state(SHALLOW, policy, BUDGET), TOKENS[:prompt], mode="oneshot"
    )
    moments = oracle.run(SHALLOW, text, params, TOKENS.tolist(), BUDGET, oneshot=prompt)
    np.testing.assert_allclose(logits, moments[prompt - 1].logits, rtol=0, atol=1e-9)
    assert tiny.held(state.layers[0]) == moments[prompt - 1].kept[0]
    state, after = ms.extend(SHALLOW, policy, params, state, TOKENS[prompt:])
    np.testing.assert_allclose(after, [moment.logits for moment in moments[prompt:]], rtol=0, atol=1e-9)
    assert tiny.held(state.layers[0]) == moments[-1].kept[0]


@pytest.mark.parametrize("text", ["random:scope=head,prompt=True", tiny.more("triattention:every=3")])
def test_prompts_of_any_length_are_kept_by_one_program(text, x64):
    policy, params, lengths = ms.parse_policy(text), params_of(SHALLOW), np.array([3, 6], np.int32)
    empty = ms.init_state(SHALLOW, policy, BUDGET)

    @jax.jit
    @jax.vmap
    def run(length):
        prompt = jnp.asarray(TOKENS[:6])
        state, _ = ms.prefill(SHALLOW, policy, params, empty, prompt, length)
        return ms.extend(SHALLOW, policy, params, state, jnp.asarray(TOKENS[6:]))[0]

    states = jax.device_get(run(lengths))
    for row, length in enumerate(lengths.tolist()):
        tokens = [*TOKENS[:length].tolist(), *TOKENS[6:].tolist()]
        moments = oracle.run(SHALLOW, text, params, tokens, BUDGET, prompt=length)
        assert tiny.sets(states.layers[0].positions[row]) == moments[-1].kept[0]
        assert all(set(range(length)) <= set(held) for held in moments[-1].kept[0])


def test_a_prompt_that_no_budget_holds_is_refused():
    policy = ms.Random(prompt=True, recent=2)
    state = ms.init_state(tiny.SHALLOW, policy, BUDGET)
    refused = (
        r"the prompt has 7 tokens, which random:recent=2,prompt=True keeps with 2 recent ones, but the budget is 8"
    )
    with pytest.raises(ValueError, match=refused):
        ms.prefill(tiny.SHALLOW, policy, tiny.params(config=tiny.SHALLOW), state, TOKENS[:7])
    with pytest.raises(ValueError, match="the prompt has 9 tokens"):
        ms.generate(
            tiny.SHALLOW,
            policy,
            tiny.params(config=tiny.SHALLOW),
            [TOKENS[:9].tolist()],
            budget=BUDGET,
            max_new_tokens=2,
        )
    state, _ = ms.prefill(tiny.SHALLOW, policy, tiny.params(config=tiny.SHALLOW), state, TOKENS[:4])
    state, _ = ms.prefill(
        tiny.SHALLOW, policy, tiny.params(config=tiny.SHALLOW), state, TOKENS[4:6]
    )  # the prompt goes on
    assert int(state.layers[0].pinned) == 6
    state, _ = ms.extend(tiny.SHALLOW, policy, tiny.params(config=tiny.SHALLOW), state, TOKENS[6:9])
    state, _ = ms.prefill(
        tiny.SHALLOW, policy, tiny.params(config=tiny.SHALLOW), state, TOKENS[9:12]
    )  # what comes later is no prompt
    assert int(state.layers[0].pinned) == 6


@pytest.mark.parametrize("text", ["tova:scope=head", tiny.more("h2o:every=3"), tiny.more("snapkvd:recent=2,every=2")])
def test_every_head_has_its_own_budget(text, x64):
    policy, params = ms.parse_policy(text), params_of(DEEP)
    budget = np.array([[3, 8, 5], [6, 4, 12]], np.int32)
    state = ms.init_state(DEEP, policy, budget)
    assert [layer.num_slots for layer in state.layers] == [8 + policy.every, 12 + policy.every]
    state, logits = ms.extend(DEEP, policy, params, state, TOKENS, chunk=CHUNK)
    moments = oracle.run(DEEP, text, params, TOKENS.tolist(), budget)
    np.testing.assert_allclose(logits, [moment.logits for moment in moments], rtol=0, atol=1e-9)
    assert [tiny.held(layer) for layer in state.layers] == moments[-1].kept
    cut = ms.compress(policy, state)
    assert [[len(row) for row in tiny.held(layer)] for layer in cut.layers] == budget.tolist()


@pytest.mark.parametrize("scope", [tiny.more("layer"), "head"])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_keeps_the_contract(name, scope):
    small = {"recent": 2} if hasattr(POLICIES[name], "window") and name != "cur" else {}
    small |= {"lag": 2} if name == "lagkv" else {}
    ms.check_contract(POLICIES[name](scope=scope, **small), tiny.CONFIG)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tova:every=0", "TOVA: every is 0; it must be an integer of at least 1"),
        ("tova:recent=1.5", "TOVA: recent is 1.5; it must be an integer of at least 0, half, or a share such as 0.3"),
        ("tova:recent=few", "recent is 'few'; it must be an integer, a share or half"),
        ("tova:adaptive=0.2", "TOVA: scope is 'layer'; it must be 'head', since adaptive is 0.2"),
        ("h2o:adaptive=2", "H2O: adaptive is 2; it must be a share from 0 to 1"),
        ("tova:pyramid=0.5", "TOVA: pyramid is 0.5; it must be a number of at least 1"),
        ("a2sf:decay=2", "A2SF: decay is 2.0; it must be from 0 to 1"),
        ("roco:share=1", "RoCo: share is 1.0; it must be from 0 to less than 1"),
        ("keyformer:end=0", "Keyformer: end is 0.0; it must be above 0"),
        ("keyformer:horizon=0", "Keyformer: horizon is 0; it must be an integer above 0"),
        ("snapkv:kernel=4", "SnapKV: kernel is 4; it must be an odd integer of at least 1"),
        ("rkv:kernel=0", "RKV: kernel is 0; it must be an odd integer of at least 1"),
        ("rkv:recent=0", "RKV: recent is 0; it must be an integer of at least 1, the tokens of its observation window"),
        ("gkv:recent=half", "GKV: recent is None; it must be an integer of at least 1"),
        ("rkv:mix=-1", "RKV: mix is -1.0; it must be from 0 to 1"),
        ("gkv:decay=3", "GKV: decay is 3.0; it must be from 0 to 1"),
        ("morphkv:fuse=mean", "MorphKV: fuse is 'mean'; it must be one of max, sum"),
        ("cur:window=0", "CUR: window is 0; it must be an integer of at least 1"),
        ("lagkv:lag=1", "LagKV: lag is 1; it must be an integer of at least 2"),
        ("expectedattention:future=0", "ExpectedAttention: future is 0; it must be an integer of at least 1"),
        ("expectedattention:epsilon=-1", "ExpectedAttention: epsilon is -1.0; it must be at least 0"),
    ],
)
def test_an_option_out_of_range_is_refused(text, said):
    with pytest.raises(ValueError) as refused:
        ms.parse_policy(text)
    assert said in str(refused.value)
