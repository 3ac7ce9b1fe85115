"""`extend` is the scan of `step`, exactly.

In float64 nothing is excused: every policy in every position mode, every budget, every chunk size. In float32 all
that may differ is what follows a near-tie, the first of which is printed (`pytest -rP`).
"""

import inspect
import os
from functools import cache, partial
from typing import Any, ClassVar

import compilations
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import msrnn_jax as ms
from msrnn_jax.evaluation.losses import losses_of
from msrnn_jax.model.llama import advance, context_of, run_blocks
from msrnn_jax.recurrence.checks import check_state

T = 38  # a multiple of neither 7 nor 64
MODES = ("absolute", "cache", "gap")
CHUNKS = (1, 7, 64)
WATCHED = 6  # the budget at which every prefix is looked at, to see what is held after every token
DEFINED = (2, WATCHED, 17)  # budgets at which the oracle is asked; many policies protect more than 2 tokens

FLOAT64 = tiny.CONFIG.replace(dtype="float64")
ONE_LAYER = FLOAT64.replace(num_layers=1)

# Rows: every budget for the whole text, then every prefix for the watched one.
BUDGETS = np.array([*range(1, T + 1)] + [WATCHED] * (T - 1), np.int32)  # [R]
LENGTHS = np.array([T] * T + [*range(1, T)], np.int32)  # [R]


@partial(jax.jit, static_argnames="mode")
def stepped(config, policy, params, tokens, mode):
    """`tiny.watch` for every budget from 1 to T, in one program."""

    return jax.vmap(lambda state: tiny.watch(config, policy, params, state, tokens))(empty(config, policy, mode))


def empty(config, policy, mode):
    """A state for every budget from 1 to T."""

    def one(budget):
        return ms.init_state(config, policy, budget, slots=T + 1, positions=mode)

    return jax.vmap(one)(jnp.arange(1, T + 1, dtype=jnp.int32))


@partial(jax.jit, static_argnames=("mode", "chunk"))
def extended(config, policy, params, tokens, budgets, lengths, mode, chunk):
    """States and logits for every pair of a budget and a length, in one program."""

    def one(budget, length):
        state = ms.init_state(config, policy, budget, slots=T + 1, positions=mode)
        return ms.extend(config, policy, params, state, tokens, length=length, chunk=chunk)

    return jax.vmap(one)(budgets, lengths)


def compare(config, policy, params, tokens, mode, chunk, *, logits, stats, excused=False):
    """Holds `extend` against `step` row by row.

    Args:
      logits: absolute tolerance.
      stats: relative tolerance of statistics, keys and values of held slots.
      excused: whether a row counts only up to its first near-tie.

    Returns:
      The first near-tie of every budget, T where there is none; the states and logits of `extend`; and what
      `stepped` returned.
    """
    last, expected, seen = jax.device_get(stepped(config, policy, params, tokens, mode))
    states, found = jax.device_get(extended(config, policy, params, tokens, BUDGETS, LENGTHS, mode, chunk))
    ties = np.full(T, T)  # [B]
    if excused:
        margins = jax.vmap(tiny.margins, (None, 0, 0))(policy, empty(config, policy, mode), seen)
        ties = np.array([tiny.first_near_tie(row) for row in margins])
    row, end = BUDGETS - 1, LENGTHS - 1
    real = np.arange(T) < LENGTHS[:, None]  # [R, T]
    alike = real & (np.arange(T) <= ties[row][:, None])  # a token forgotten at t is missed from t + 1 on
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[alike], expected[row][alike], rtol=0, atol=logits)
    assert not found[~real].any()
    np.testing.assert_array_equal(states.t, LENGTHS)
    whole = LENGTHS <= ties[row]  # rows that end before anything could differ
    for layer, (positions, statistics), final in zip(states.layers, seen, last.layers, strict=True):
        ours, theirs = layer.positions[whole], positions[row, end][whole]
        kept = held_table(ours)
        np.testing.assert_array_equal(kept, held_table(theirs))
        np.testing.assert_array_equal((ours != ms.EMPTY).sum(axis=-1), kept.sum(axis=-1))  # none is held twice
        np.testing.assert_array_equal(layer.budget, np.minimum(BUDGETS, T))
        jax.tree.map(
            lambda mine, other, ours=ours, theirs=theirs: np.testing.assert_allclose(
                tiny.by_position(ours, mine[whole], T),
                tiny.by_position(theirs, other[row, end][whole], T),
                rtol=stats,
                atol=1e-30,
            ),
            layer.stats,
            statistics,
        )
        complete = whole & (LENGTHS == T)
        for mine, other in [(layer.keys, final.keys), (layer.values, final.values)]:
            np.testing.assert_allclose(
                tiny.by_position(layer.positions[complete], mine[complete], T),
                tiny.by_position(final.positions[row[complete]], other[row[complete]], T),
                rtol=stats,
                atol=logits,
            )
    return ties, (states, found), (last, expected, seen)


def held_table(positions):
    """Which tokens are held, [..., rows, T]."""
    return tiny.by_position(positions, np.asarray(positions) != ms.EMPTY, T)


@cache
def oracle_moments(policy, mode, budget):
    return oracle.run(tiny.CONFIG, policy, tiny.params("float64"), tiny.tokens(T).tolist(), budget, positions=mode)


def compare_with_oracle(policy, mode, logits, kept):
    """Logits of every budget [B, T, V], and what is held after every token by budget, against the oracle."""
    for budget in DEFINED:
        moments = oracle_moments(str(policy), mode, budget)
        np.testing.assert_allclose(logits[budget - 1], np.stack([m.logits for m in moments]), rtol=0, atol=1e-9)
        for t, moment in enumerate(moments):
            if budget in kept:
                assert kept[budget][t] == moment.kept, f"budget {budget}: kept sets differ after token {t}"


def row_of(length):
    """The row of a prefix at the watched budget."""
    return int(np.flatnonzero((BUDGETS == WATCHED) & (LENGTHS == length))[0])


# Every policy in every mode, and every policy at every chunk, one in each mode in turn: one token at a time, chunks
# of which the last is padded, all tokens at once. MSRNN_EXHAUSTIVE=1 runs the whole product.
EVERY = [
    pytest.param(policy, mode, chunk, id=f"{policy}-{mode}-{chunk}")
    for number, policy in enumerate(tiny.POLICIES)
    for place, mode in enumerate(MODES)
    for turn, chunk in enumerate(CHUNKS)
    if (number + place + turn) % 3 == 0 or os.environ.get("MSRNN_EXHAUSTIVE")
]


@pytest.mark.parametrize(("policy", "mode", "chunk"), EVERY)
def test_extend_step_and_the_oracle_are_one(policy, mode, chunk, x64):
    params, tokens = tiny.params("float64"), tiny.tokens(T)
    _, (states, found), steps = compare(FLOAT64, policy, params, tokens, mode, chunk, logits=1e-9, stats=1e-7)
    kept = [[tiny.sets(layer.positions[row_of(length)]) for layer in states.layers] for length in range(1, T + 1)]
    compare_with_oracle(policy, mode, found[:T], {WATCHED: kept})
    _, logits, seen = steps
    kept = {b: [[tiny.sets(positions[b - 1, t]) for positions, _ in seen] for t in range(T)] for b in DEFINED}
    compare_with_oracle(policy, mode, logits, kept)


class Listener(ms.Policy):
    """Somebody's own policy: a weight that is data, statistics that start above zero, and all of the view."""

    weight: jax.Array

    def init(self, rows, slots):
        return {"worth": jnp.full((rows, slots), 0.5), "pair": jnp.ones((rows, slots, 2))}

    def observe(self, stats, view):
        heads, _, width = view.keys.shape
        queries = view.queries.reshape(heads, -1, width)
        seen = jnp.tanh(jnp.einsum("kgh,ksh->ks", queries, view.keys) + view.values.sum(axis=-1))  # [K, S]
        mass = view.probs.sum(axis=1) * jnp.cos(view.token.astype(self.weight.dtype) + view.layer)  # [K, S]
        both = jnp.stack([seen, mass], axis=-1)  # [K, S, 2]
        if self.scope == "layer":
            both = both.mean(axis=0)[None]
        pair = 0.7 * stats["pair"] + both
        age = (view.t - view.positions).astype(pair.dtype)
        return {"worth": stats["worth"] + pair @ self.weight - 0.01 * age, "pair": pair}

    def score(self, layer, t):
        return layer.stats["worth"]


def scored(name, worth, static=True):
    """A policy that scores positions by a function of numbers or arrays."""

    def score(self, layer, t):
        return worth(layer.positions)

    return type(name, (ms.Policy,), {"score": score, "static": static, "__module__": __name__})


def modulo(positions):
    """Integers with ties: among equals the oldest goes."""
    return positions % 5


def gaps(positions):
    """Floats, some of them no numbers, which go first, and of them the oldest; and zeros of either sign, all equal."""
    positions = jnp.asarray(positions)
    zero = jnp.where(positions % 2 == 0, 0.0, -0.0).astype(jnp.float32)
    number = jnp.where(positions % 3 == 1, zero, jnp.cos(positions.astype(jnp.float32)))
    return jnp.where(positions % 3 == 0, jnp.nan, number)


class Counting(ms.Policy):
    """Scores of the token alone, but statistics of its own: they must be kept all the same."""

    static: ClassVar[bool] = True

    def init(self, rows, slots):
        return jnp.full((rows, slots), 7, jnp.int32)

    def observe(self, stats, view):
        return stats + view.token  # free slots too: a token that comes must not inherit what was counted there

    def score(self, layer, t):
        return -layer.positions


class Knorm(ms.Policy):
    """Scores by the key, which the token alone decides: the same in closed form and by stepping."""

    static: ClassVar[bool] = True

    def score(self, layer, t):
        return -jnp.linalg.norm(layer.keys, axis=-1)


class Sticky(ms.Window):
    """Scores of its own under a static policy's name."""

    def init(self, rows, slots):
        return jnp.zeros((rows, slots))

    def observe(self, stats, view):
        return view.probs.mean(axis=(0, 1))[None]

    def score(self, layer, t):
        return layer.stats


class Shy(ms.Policy):
    """Forgets what the newest query attends to most."""

    def init(self, rows, slots):
        return jnp.zeros((rows, slots))

    def observe(self, stats, view):
        return -view.probs.sum(axis=(0, 1))[None]

    def score(self, layer, t):
        return layer.stats


def listener(scope):
    return Listener(scope=scope, weight=jnp.asarray([0.3, -0.8], jnp.float64))


@pytest.mark.parametrize(("scope", "mode", "chunk"), [("layer", "absolute", 7), ("head", "cache", 64)])
def test_a_policy_of_ones_own_goes_through(scope, mode, chunk, x64):
    _, (states, _), _ = compare(
        FLOAT64,
        listener(scope),
        tiny.params("float64"),
        tiny.tokens(T),
        mode,
        chunk,
        logits=1e-9,
        stats=1e-7,
    )
    kept = held_table(states.layers[1].positions)[9]  # budget 10
    assert not (kept[:, -10:].all() or kept[:, :10].all())  # it is no window


class Diary(ms.Policy):
    """Writes into each token's slot what was shown when it was the newest."""

    def init(self, rows, slots):
        return {"token": jnp.zeros((rows, slots), jnp.int32), "queries": jnp.zeros((rows, slots, 6, 10))}

    def observe(self, stats, view):
        newest = view.positions == view.t
        number = 100 * view.layer + view.token
        seen = jnp.where(newest[..., None, None], view.queries, stats["queries"])
        return {"token": jnp.where(newest, number, stats["token"]), "queries": seen}

    def score(self, layer, t):
        return layer.positions


def test_a_policy_is_shown_every_token_as_it_is_read(x64):
    """The token, its position, the layer and the queries; in the first layer these are known from the token alone."""
    params, tokens = tiny.params("float64"), tiny.tokens(T)
    steps, _, _ = stepped(FLOAT64, Diary(), params, tokens, "cache")
    chunks, _ = extended(FLOAT64, Diary(), params, tokens, BUDGETS, LENGTHS, "cache", 7)
    weights = oracle.as_numpy(params)
    x = oracle.norm(FLOAT64, weights.embedding[tokens], weights.layers[0].attention_norm)
    queries, _, _ = oracle.projections(FLOAT64, weights.layers[0], x)  # [T, N, H], not rotated in this mode
    for state in (steps, chunks):
        for index, layer in enumerate(state.layers):
            diary = jax.tree.map(lambda leaf, layer=layer: tiny.by_position(layer.positions, leaf, T), layer.stats)
            np.testing.assert_array_equal(diary["token"][T - 1, 0], tokens + 100 * index)  # the budget held all
        first = state.layers[0]
        found = tiny.by_position(first.positions, first.stats["queries"], T)[T - 1, 0]
        np.testing.assert_allclose(found, queries, rtol=0, atol=1e-9)


# Static policies with and without statistics of their own, or protection that stepping must apply.
STATIC = [
    (scored("Modulo", modulo)(), "absolute"),
    (scored("Modulo", modulo, static=False)(sinks=2), "absolute"),
    (scored("Gaps", gaps)(), "absolute"),
    (scored("Gaps", gaps, static=False)(), "cache"),
    (Counting(), "absolute"),
    (Sticky(), "absolute"),
    (Knorm(scope="head"), "absolute"),
    (Knorm(scope="head", sinks=1), "gap"),
    (ms.Random(scope="head", sinks=1, recent=3), "absolute"),
]


@pytest.mark.parametrize(
    ("policy", "mode"), STATIC, ids=[f"{type(p).__name__}{'' if p.static else '-watched'}-{m}" for p, m in STATIC]
)
def test_scores_of_any_kind_forget_as_the_steps_do(policy, mode, x64):
    params = tiny.params("float64", config=ONE_LAYER)
    tokens = np.random.default_rng(0).permutation(50)[:T].astype(np.int32)  # no two keys are equally long
    _, (states, _), _ = compare(ONE_LAYER, policy, params, tokens, mode, 7, logits=1e-9, stats=1e-7)
    for name, worth in [("Modulo", modulo), ("Gaps", gaps)]:
        if type(policy).__name__ == name:
            scores = np.nan_to_num(np.asarray(worth(np.arange(T))), nan=-np.inf)
            for row, (budget, length) in enumerate(zip(BUDGETS, LENGTHS, strict=True)):
                assert tiny.sets(states.layers[0].positions[row]) == [by_hand(scores, budget, length, policy.sinks)]


def by_hand(scores, budget, length, sinks):
    """What is held after `length` tokens whose scores never change."""
    held = []
    for t in range(length):
        held.append(t)
        if len(held) > budget:
            eligible = [p for p in held if p >= sinks] or held
            held.remove(min(eligible, key=lambda p: (scores[p], p)))
    return held


def test_what_padding_holds_does_not_matter():
    """Not a bit of the outputs, nor of what is held."""
    policy, mode, tokens = ms.TOVA(scope="head"), "absolute", tiny.tokens(T)
    other = np.where(np.arange(T) < 20, tokens, tokens[::-1])
    args = (tiny.CONFIG, policy, tiny.params())
    short = LENGTHS <= 20
    results = [extended(*args, text, BUDGETS, LENGTHS, mode, 7) for text in (tokens, other)]
    (first, a), (second, b) = jax.device_get(results)
    np.testing.assert_array_equal(a[short], b[short])
    assert (a[~short] != b[~short]).any()
    for mine, theirs in zip(first.layers, second.layers, strict=True):
        np.testing.assert_array_equal(mine.positions[short], theirs.positions[short])
        for leaf in ("keys", "values", "stats"):
            ours, others = (tiny.by_position(x.positions[short], getattr(x, leaf)[short], T) for x in (mine, theirs))
            np.testing.assert_array_equal(ours, others)


def test_a_row_of_a_batch_equals_the_row_alone(x64):
    policy, params, tokens = ms.TOVA(), tiny.params("float64"), tiny.tokens(T)
    states, logits = extended(FLOAT64, policy, params, tokens, BUDGETS, LENGTHS, "absolute", 64)
    length, row = 17, row_of(17)
    start = ms.init_state(FLOAT64, policy, WATCHED)
    alone, expected = ms.extend(FLOAT64, policy, params, start, tokens[:length], chunk=9)  # other shapes throughout
    np.testing.assert_allclose(logits[row, :length], expected, rtol=0, atol=1e-9)
    for mine, theirs in zip(states.layers, alone.layers, strict=True):
        assert tiny.sets(mine.positions[row]) == tiny.held(theirs)


# Parts of a text with budgets that change between them, in either direction: where a budget is lowered without
# `compress`, more than the budget is held from then on, since a step frees one slot at most.

FIRST, SECOND = 13, 11  # the longest parts


@partial(jax.jit, static_argnames=("slots", "mode", "chunk"))
def in_parts(config, policy, params, first, second, then, lengths, budgets, slots, mode, chunk):
    """Extends, extends again, and steps; budgets [2, L]."""
    state = ms.init_state(config, policy, list(budgets[0]), slots=slots, positions=mode)
    state, before = ms.extend(config, policy, params, state, first, length=lengths[0], chunk=chunk)
    state = with_budgets(state, budgets[1])
    state, after = ms.extend(config, policy, params, state, second, length=lengths[1], chunk=chunk)
    state, last = ms.step(config, policy, params, state, then)
    return state, (before, after, last)


@partial(jax.jit, static_argnames=("slots", "mode"))
def in_steps(config, policy, params, tokens, changed, budgets, slots, mode):
    """Steps through tokens [T], the budgets being the second ones from step `changed` on; every state."""

    def one(state, item):
        t, token = item
        state = with_budgets(state, jnp.where(t < changed, budgets[0], budgets[1]))
        state, logits = ms.step(config, policy, params, state, token)
        return state, (state, logits)

    state = ms.init_state(config, policy, list(budgets[0]), slots=slots, positions=mode)
    return jax.lax.scan(one, state, (jnp.arange(tokens.shape[0], dtype=jnp.int32), tokens))[1]


def with_budgets(state, budgets):
    layers = zip(state.layers, budgets, strict=True)
    return state.replace(layers=tuple(layer.replace(budget=budget) for layer, budget in layers))


def check_in_parts(case, seed, lengths, budgets):
    policy, mode, chunk, slots = case
    params, tokens = tiny.params("float64"), tiny.tokens(FIRST + SECOND + 1, seed)
    m, n = lengths
    budgets = np.array(budgets, np.int32)
    args = (FLOAT64, policy, params)
    state, (before, after, last) = jax.device_get(
        in_parts(*args, tokens[:FIRST], tokens[FIRST:-1], tokens[-1], np.array(lengths), budgets, slots, mode, chunk)
    )
    real = np.concatenate([tokens[:m], tokens[FIRST : FIRST + n], tokens[-1:]])
    padded = np.zeros_like(tokens)
    padded[: m + n + 1] = real
    states, logits = jax.device_get(in_steps(*args, padded, m, budgets, slots, mode))
    found = np.concatenate([before[:m], after[:n], last[None]])
    np.testing.assert_allclose(found, logits[: m + n + 1], rtol=0, atol=1e-9)
    assert not before[m:].any() and not after[n:].any()
    assert state.t == m + n + 1
    for mine, theirs in zip(state.layers, states.layers, strict=True):
        there = theirs.positions[m + n]
        assert tiny.sets(mine.positions) == tiny.sets(there)
        pairs = [(mine.keys, theirs.keys), (mine.values, theirs.values)]
        pairs += zip(jax.tree.leaves(mine.stats), jax.tree.leaves(theirs.stats), strict=True)
        for ours, other in pairs:
            ours = tiny.by_position(mine.positions, ours, m + n + 1)
            np.testing.assert_allclose(ours, tiny.by_position(there, other[m + n], m + n + 1), rtol=1e-7, atol=1e-12)


CASES = [
    (ms.H2O(sinks=1), "gap", 4, 12),
    (ms.Window(sinks=1), "absolute", 6, 10),
    (ms.TOVA(scope="head", recent=None), "cache", 64, 9),
    (ms.Random(scope="head", sinks=1), "absolute", 3, 7),
]


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_parts_continue_one_another(data):
    with jax.enable_x64(True):
        case = data.draw(st.sampled_from(CASES))
        budget = st.integers(1, case[3] - 1)
        check_in_parts(
            case,
            data.draw(st.integers(0, 10_000)),
            (data.draw(st.integers(1, FIRST)), data.draw(st.integers(1, SECOND))),
            [data.draw(st.tuples(budget, budget)) for _ in range(2)],
        )


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_an_overfull_state_evolves_as_under_step(case, x64):
    """Padding, which makes up most of the second part here, must not empty it."""
    check_in_parts(case, 0, (FIRST, 3), [(6, 5), (3, 2)])
    check_in_parts(case, 1, (FIRST, SECOND), [(5, 6), (1, 4)])


# Logits that dwarf the others: one token's keys are so large that queries attend to nothing else, or not at all.

TALL = 49


@cache
def tall_params(dtype):
    """One axis of the residual stream is written by one token's embedding alone, and read into huge keys."""
    params = tiny.params(dtype)
    embedding = params.embedding.at[:, 0].set(0.0).at[TALL, 0].set(5.0)
    layers = tuple(
        layer.replace(
            key=layer.key.at[0].multiply(1e5),
            output=layer.output.at[..., 0].set(0.0),
            down=layer.down.at[:, 0].set(0.0),
        )
        for layer in params.layers
    )
    return params.replace(embedding=embedding, layers=layers)


def tall_tokens():
    tokens = np.where(tiny.tokens(T) == TALL, 0, tiny.tokens(T))
    tokens[[5, 23]] = TALL
    return tokens


def test_the_tall_token_dwarfs_the_rest(x64):
    """In both layers and nearly every head its logit is 1e4 away from all others, which stay small."""
    weights = oracle.as_numpy(tall_params("float64"))
    x = weights.embedding[np.unique(tall_tokens())]
    for layer in weights.layers:
        queries, keys, _ = oracle.projections(FLOAT64, layer, oracle.norm(FLOAT64, x, layer.attention_norm))
        logits = np.einsum("tkgh,skh->kgts", queries.reshape(len(x), 3, 2, 10), keys) / np.sqrt(10)
        assert np.abs(logits[..., :-1]).max() < 200
        assert np.median(np.abs(logits[..., -1])) > 2e4 and np.abs(logits).max() < 1e6


ADVERSE = [
    (ms.Window(), "absolute"),
    (ms.TOVA(scope="head"), "absolute"),
    (ms.TOVA(scope="head"), "cache"),
    (Shy(), "cache"),
    (ms.H2O(), "gap"),
]
SPELLED = [f"{policy}-{mode}" for policy, mode in ADVERSE]


@pytest.mark.parametrize(("policy", "mode"), ADVERSE, ids=SPELLED)
def test_a_freed_slot_with_a_huge_logit_does_not_wipe_out_the_others(policy, mode, x64):
    params, tokens = tall_params("float64"), tall_tokens()
    _, (states, _), _ = compare(FLOAT64, policy, params, tokens, mode, 7, logits=1e-9, stats=1e-5)
    if not isinstance(policy, ms.H2O):  # which never lets go of what was attended to
        watched = held_table(states.layers[0].positions)[3:8]  # budgets 4 to 8
        assert not watched[..., 5].all()


@pytest.mark.parametrize(("policy", "mode"), ADVERSE, ids=SPELLED)
def test_float32_agrees_up_to_near_ties(policy, mode):
    ties, *_ = compare(
        tiny.CONFIG, policy, tiny.params(), tiny.tokens(T), mode, 7, logits=1e-4, stats=1e-4, excused=True
    )
    print(f"{policy}, {mode}: near-ties at (budget, step) {[(b + 1, int(t)) for b, t in enumerate(ties) if t < T]}")
    assert (ties == T).sum() > 0.9 * T  # near-ties are rare, or the test would show little


@pytest.mark.parametrize(("policy", "mode"), ADVERSE, ids=SPELLED)
def test_float32_survives_huge_logits(policy, mode):
    compare(tiny.CONFIG, policy, tall_params("float32"), tall_tokens(), mode, 7, logits=1e-3, stats=1e-2)


@pytest.mark.parametrize(
    ("policy", "mode", "dtype"),
    [
        (ms.TOVA(), "absolute", "bfloat16"),
        (ms.Window(sinks=1), "absolute", "float16"),
        (ms.H2O(), "gap", "float16"),
    ],
    ids=str,
)
def test_runs_finite_in_half_precision(policy, mode, dtype):
    config, budgets, lengths = tiny.CONFIG.replace(dtype=dtype), np.array([8, T], np.int32), np.array([T, T], np.int32)
    states, logits = extended(config, policy, tiny.params(dtype), tiny.tokens(T), budgets, lengths, mode, 7)
    assert np.isfinite(logits).all() and logits.dtype == jnp.float32
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(states))
    assert states.layers[0].keys.dtype == dtype
    # With room for everything nothing but rounding differs: 8 bits of mantissa, two layers.
    exact = oracle.full_logits(tiny.CONFIG, tiny.params(), tiny.tokens(T).tolist())
    if mode == "absolute":
        assert np.abs(logits[1] - exact).max() < 0.4 < np.abs(exact).max()


# What is built on it.


@pytest.mark.parametrize(
    ("policy", "mode"), [(ms.TOVA(), "cache"), (ms.H2O(), "gap"), (ms.Window(sinks=1), "absolute")], ids=str
)
def test_a_oneshot_prompt_is_to_extend_without_forgetting_and_then_compress(policy, mode, x64):
    count, budget = 19, 7
    params, tokens = tiny.params("float64"), tiny.tokens(count)
    empty = ms.init_state(FLOAT64, policy, budget, positions=mode)
    state, last = ms.prefill(FLOAT64, policy, params, empty, tokens, mode="oneshot", chunk=7)
    assert [layer.num_slots for layer in state.layers] == [budget + 1] * 2
    moment = oracle.run(FLOAT64, str(policy), params, tokens.tolist(), budget, oneshot=count, positions=mode)[-1]
    np.testing.assert_allclose(last, moment.logits, rtol=0, atol=1e-9)
    assert [tiny.held(layer) for layer in state.layers] == moment.kept
    roomy = ms.init_state(FLOAT64, policy, count, positions=mode)
    roomy, logits = ms.extend(FLOAT64, policy, params, roomy, tokens, chunk=7)
    np.testing.assert_allclose(logits[-1], moment.logits, rtol=0, atol=1e-9)
    assert [tiny.held(layer) for layer in ms.compress(policy, roomy, budget).layers] == moment.kept


@pytest.mark.parametrize("make", [lambda: listener("layer"), lambda: listener("head"), Counting], ids="lhc")
def test_a_oneshot_prompt_shows_a_policy_of_ones_own_every_token_in_turn(make, x64):
    count, budget, policy = 19, 7, make()
    params, tokens = tiny.params("float64"), tiny.tokens(count)
    roomy, _ = tiny.unroll_jit(FLOAT64, policy, params, ms.init_state(FLOAT64, policy, count), tokens)
    expected = ms.compress(policy, roomy, budget)
    for chunk in (1, 7, 64):
        empty = ms.init_state(FLOAT64, policy, budget)
        state, _ = ms.prefill(FLOAT64, policy, params, empty, tokens, mode="oneshot", chunk=chunk)
        for mine, theirs in zip(state.layers, expected.layers, strict=True):
            assert tiny.held(mine) == tiny.held(theirs)
            for one, other in zip(jax.tree.leaves(mine.stats), jax.tree.leaves(theirs.stats), strict=True):
                one = tiny.by_position(np.asarray(mine.positions), np.asarray(one), count)
                other = tiny.by_position(np.asarray(theirs.positions), np.asarray(other), count)
                np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.optimised
@pytest.mark.parametrize("mode", MODES)
def test_a_state_narrower_than_the_weights_rounds_keys_as_steps_do(mode):
    """Unrounded keys move these logits by 0.006 and more, a probability rounded the other way by 0.0015."""
    policy, tokens = ms.Window(sinks=1), tiny.tokens(T)
    state = ms.init_state(tiny.CONFIG, policy, WATCHED, positions=mode, dtype="bfloat16")
    args = (tiny.CONFIG, policy, tiny.params(), state)
    _, (expected, _) = tiny.unroll_jit(*args, tokens)
    for chunk in (1, 7, 64):
        _, logits = ms.extend(*args, tokens, chunk=chunk)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize("policy", [ms.TOVA(), ms.Window()], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_padding_that_is_no_number_does_not_matter(policy, mode):
    params, tokens = tiny.params(), tiny.tokens(T) % 49
    broken = params.replace(embedding=params.embedding.at[49].set(jnp.nan))
    padded = np.where(np.arange(T) < 20, tokens, 49)
    state = ms.init_state(tiny.CONFIG, policy, WATCHED, positions=mode)
    after, logits = ms.extend(tiny.CONFIG, policy, broken, state, padded, length=20, chunk=8)
    _, expected = ms.extend(tiny.CONFIG, policy, params, state, tokens, length=20, chunk=8)
    np.testing.assert_array_equal(logits, expected)
    assert int(after.t) == 20 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.layers[1].values))


def test_a_traced_length_outside_counts_as_the_nearest():
    tokens = tiny.tokens(8)
    state = ms.init_state(tiny.CONFIG, ms.TOVA(), 5)
    read = jax.jit(
        lambda length: ms.extend(tiny.CONFIG, ms.TOVA(), tiny.params(), state, tokens, length=length, chunk=3)
    )
    after, logits = read(jnp.int32(20))
    expected, exactly = read(jnp.int32(8))
    assert int(after.t) == 8
    np.testing.assert_array_equal(logits, exactly)
    assert [tiny.held(layer) for layer in after.layers] == [tiny.held(layer) for layer in expected.layers]


def test_prefill_and_nll_read_in_chunks_as_extend_does(x64):
    policy, params, tokens = ms.TOVA(), tiny.params("float64"), tiny.tokens(24)
    args = (FLOAT64, policy, params, ms.init_state(FLOAT64, policy, 6, positions="cache"))
    state, logits = ms.extend(*args, tokens[:-1], length=20, chunk=5)
    after, losses = ms.nll(*args, tokens[:-1], tokens[1:], 20, chunk=7)
    np.testing.assert_allclose(losses[:20], losses_of(logits, jnp.asarray(tokens[1:]))[:20], rtol=0, atol=1e-9)
    assert not losses[20:].any()
    filled, last = ms.prefill(*args, tokens[:-1], 20, chunk=9)
    np.testing.assert_allclose(last, logits[19], rtol=0, atol=1e-9)
    for layers in zip(state.layers, after.layers, filled.layers, strict=True):
        assert tiny.held(layers[0]) == tiny.held(layers[1]) == tiny.held(layers[2])


def test_the_layers_of_a_cell_take_chunks_too():
    policy, tokens = ms.TOVA(), jnp.asarray(tiny.tokens(9))
    cell = ms.MultiStateCell(tiny.CONFIG, policy, tiny.params(), 4)
    empty = ms.init_state(tiny.CONFIG, policy, 4)

    @jax.jit
    def by_modules(state, tokens):
        context = context_of(tiny.CONFIG, state, tokens)
        return run_blocks(policy, cell.params.embedding, list(cell.layers), state, context)

    expected, x = jax.jit(advance)(tiny.CONFIG, policy, tiny.params(), empty, tokens)
    state, y = by_modules(empty, tokens)
    np.testing.assert_allclose(y, x, atol=1e-5)
    assert [tiny.held(layer) for layer in state.layers] == [tiny.held(layer) for layer in expected.layers]
    assert int(state.t) == 9


# The head, compilations, refusals.


def test_a_head_is_applied_to_the_logits_and_tokens_of_every_chunk():
    policy, tokens = ms.TOVA(), tiny.tokens(T)
    args = (tiny.CONFIG, policy, tiny.params(), ms.init_state(tiny.CONFIG, policy, 6))

    def head(logits, tokens):
        best = jnp.argmax(logits, axis=-1)
        return {"best": best, "right": best == tokens, "both": (logits[:, :3], losses_of(logits, tokens))}

    state, logits = ms.extend(*args, tokens, length=31, chunk=7)
    again, kept = ms.extend(*args, tokens, length=31, chunk=7, head=head)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    expected = head(logits, jnp.asarray(tokens))
    assert jax.tree.structure(kept) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(kept), jax.tree.leaves(expected), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and not ours[31:].any()
        np.testing.assert_allclose(ours[:31], theirs[:31], atol=1e-5)
    assert ms.extend(*args, tokens, chunk=7, head=lambda logits, tokens: ())[1] == ()


def test_a_head_may_close_over_arrays_under_jit_and_gets_their_gradient():
    policy, tokens = ms.TOVA(), tiny.tokens(T)
    state = ms.init_state(tiny.CONFIG, policy, 6)

    @jax.jit
    def probe(weight):
        def head(logits, _):
            return logits @ weight

        kept = ms.extend(tiny.CONFIG, policy, tiny.params(), state, tokens, length=31, chunk=7, head=head)[1]
        return kept.sum(), kept

    _, logits = ms.extend(tiny.CONFIG, policy, tiny.params(), state, tokens, length=31, chunk=7)
    for seed in range(2):
        weight = np.random.default_rng(seed).normal(size=(50, 4)).astype(np.float32)
        gradient, kept = jax.grad(probe, has_aux=True)(weight)
        np.testing.assert_allclose(kept, logits @ weight, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(gradient, np.stack([logits.sum(axis=0)] * 4, axis=1), rtol=1e-4, atol=1e-4)


def test_a_second_call_outside_jit_compiles_nothing():
    tokens = tiny.tokens(23)

    def call(policy, budget, length, seed):
        state = ms.init_state(tiny.CONFIG, ms.TOVA(sinks=1), budget, slots=9)
        return ms.extend(tiny.CONFIG, policy, tiny.params(), state, tiny.tokens(23, seed), length=length, chunk=8)

    with compilations.count() as compiled:
        call(ms.TOVA(sinks=1), 5, 23, 0)
    assert compiled() > 0
    with compilations.count() as compiled:
        call(ms.parse_policy("tova:sinks=1"), 8, 9, 1)
        call(ms.TOVA(sinks=1).replace(), np.int64(3), np.int32(4), 2)
    assert compiled() == 0
    for policy in (ms.TOVA(), Listener(weight=jnp.ones(2))):  # whose statistics start with Python's numbers
        empty = ms.init_state(tiny.CONFIG, policy, 4)
        with compilations.count() as compiled:
            ms.extend(tiny.CONFIG, policy, tiny.params(), empty, tokens)
        first = compiled()
        with compilations.count() as compiled:
            state, _ = ms.extend(tiny.CONFIG, policy, tiny.params(), empty, tokens[::-1].tolist())
            ms.extend(tiny.CONFIG, policy, tiny.params(), state, tokens)  # from a state that it made itself
        assert compiled() == 0 < first


def test_refusals_name_what_is_wrong():
    params, policy, full = tiny.params(), ms.TOVA(), ms.Full()
    state, room = ms.init_state(tiny.CONFIG, policy, 6), ms.init_state(tiny.CONFIG, full, 6)

    extend = inspect.unwrap(ms.extend)  # without the tests' own type checks

    def refused(message, tokens: Any = (1, 2, 3), policy: Any = policy, state=state, **options):
        with pytest.raises(ValueError, match=message):
            extend(tiny.CONFIG, policy, params, state, tokens, **options)

    refused(r"tokens has shape \(0,\); it must be \[T\] with at least one token", np.zeros(0, np.int32))
    refused(r"tokens has shape \(0,\); it must be \[T\] with at least one token", [])
    refused(r"tokens has shape \(1, 3\); it must be \[T\]", np.array([[1, 2, 3]]))
    refused(r"tokens has shape \(\); it must be \[T\]", np.array(3))
    refused("tokens holds the token 50; it must be from 0 to 49", [50])
    refused("tokens holds the token -1; it must be from 0 to 49", [0, -1])
    refused("tokens has dtype float64; token numbers must be integers", np.array([0.5]))
    refused("chunk is 0; it must be a whole number of at least 1", chunk=0)
    refused("chunk is -3; it must be a whole number of at least 1", chunk=-3)
    refused("chunk is True; it must be a whole number of at least 1", chunk=True)
    refused("chunk is 7.0; it must be a whole number of at least 1", chunk=7.0)
    refused("length is 0; it must be from 1 to 3, the number of tokens given", length=0)
    refused("length is 4; it must be from 1 to 3, the number of tokens given", length=4)
    refused("length has dtype bool; lengths must be integers", length=True)
    refused(r"length has shape \(3,\); it must be one number, so vmap over a batch", length=np.array([1, 2, 3]))
    refused(r"tokens is \[1, \[2\]\]; its rows must have one length", [1, [2]])
    with pytest.raises(ValueError, match="state is 3; it must be a MultiState"):
        inspect.unwrap(check_state)(tiny.CONFIG, policy, 3)
    refused("head is 3; it must be a hashable function", head=3)
    unhashable = type("Unhashable", (), {"__hash__": None, "__call__": losses_of, "__repr__": lambda _: "unhashable"})
    refused("head is unhashable; it must be a hashable function", head=unhashable())
    refused(r"head returned an array of shape \(50,\); its first axis must be", head=lambda logits, _: logits.sum(0))
    refused(r"head returned an array of shape \(\); its first axis must be", head=lambda logits, _: (logits[:, 0], 0.0))
    refused("budget is 6, but full forgets nothing and must hold 7 tokens", [0] * 7, full, room)
    read = room.replace(t=jnp.int32(4))
    refused("budget is 6, but full forgets nothing and must hold 7 tokens", [0] * 3, full, read)
    ms.extend(tiny.CONFIG, full, params, read, [0] * 3, length=2)  # padding needs no room
    refused("forgets by head, which takes 3", policy=ms.TOVA(scope="head"))
    refused("other statistics than those of window", policy=ms.Window())
    refused("budget is 6, but tova:sinks=7 protects 7 sinks", policy=ms.TOVA(sinks=7))
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state)
    refused("so vmap over a batch", state=batch)
