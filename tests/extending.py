"""`extend` and the scan of `step`, held against each other row by row."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import tiny

import msrnn_jax as ms

T = 38  # a multiple of neither 7 nor 64
MODES = ("absolute", "cache", "gap")
CHUNKS = (1, 7, 64)
WATCHED = 6  # the budget at which every prefix is looked at, to see what is held after every token
DEFINED = (2, WATCHED, 17)  # budgets at which the oracle is asked; many policies protect more than 2 tokens

FLOAT64 = tiny.CONFIG.replace(dtype="float64")

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


@cache
def full_logits():
    return oracle.full_logits(FLOAT64, tiny.params("float64"), tiny.tokens(T).tolist())


def compare_with_oracle(policy, mode, logits, kept):
    """Logits of every budget [B, T, V], and what is held after every token by budget, against the oracle."""
    np.testing.assert_allclose(logits[T - 1], full_logits(), rtol=0, atol=1e-9)  # the budget that holds everything
    for budget in DEFINED:
        moments = oracle_moments(str(policy), mode, budget)
        np.testing.assert_allclose(logits[budget - 1], np.stack([m.logits for m in moments]), rtol=0, atol=1e-9)
        for t, moment in enumerate(moments):
            if budget in kept:
                assert kept[budget][t] == moment.kept, f"budget {budget}: kept sets differ after token {t}"


def row_of(length):
    """The row of a prefix at the watched budget."""
    return int(np.flatnonzero((BUDGETS == WATCHED) & (LENGTHS == length))[0])


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


def listener(scope):
    return Listener(scope=scope, weight=jnp.asarray([0.3, -0.8], jnp.float64))
