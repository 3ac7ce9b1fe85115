"""`extend` with somebody's own policies: what they are shown, what they keep, and which token they let go."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from extending import BUDGETS, FLOAT64, LENGTHS, T, compare, extended, held_table, listener, stepped

import msrnn_jax as ms

ONE_LAYER = FLOAT64.replace(num_layers=1)


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


@pytest.mark.parametrize(("scope", "mode", "chunk"), [("head", "cache", 64), tiny.more("layer", "absolute", 7)])
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
    (scored("Modulo", modulo, static=False)(sinks=2), "absolute"),
    (scored("Gaps", gaps)(), "absolute"),
    (Knorm(scope="head", sinks=1), "gap"),
    tiny.more(Counting(), "absolute"),
    tiny.more(Sticky(), "absolute"),
    tiny.more(scored("Modulo", modulo)(), "absolute"),
    tiny.more(scored("Gaps", gaps, static=False)(), "cache"),
    tiny.more(Knorm(scope="head"), "absolute"),
    tiny.more(ms.Random(scope="head", sinks=1, recent=3), "absolute"),
]


@pytest.mark.parametrize(("policy", "mode"), STATIC, ids=str)
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


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "make",
    [lambda: listener("head"), tiny.more(Counting), tiny.more(lambda: listener("layer"))],
    ids="hcl",
)
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
