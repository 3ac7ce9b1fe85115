"""What `check_contract` refuses, word for word, and that it refuses nothing else."""

import inspect
import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import struct

import msrnn_jax as ms


class Good(ms.Policy):
    """TOVA by head and layer; what is broken below is a change of it."""

    def init(self, rows, slots):
        return jnp.zeros((rows, slots))

    def observe(self, stats, view):
        probs = view.probs.mean(axis=1)
        return probs if self.scope == "head" else probs.mean(axis=0)[None]

    def score(self, layer, t):
        return layer.stats


class NoRows(Good):
    def init(self, rows, slots):
        return jnp.zeros(slots)


class Fixed(Good):
    def init(self, rows, slots):
        return jnp.zeros((rows, 8))


class Scalar(Good):
    def init(self, rows, slots):
        return 0.0


class Numbered(Good):
    def init(self, rows, slots):
        return jnp.broadcast_to(jnp.arange(slots, dtype=jnp.float32), (rows, slots))


class Drawn(Good):
    def init(self, rows, slots):
        return jnp.full((rows, slots), np.random.default_rng().random())


class Unlike(Good):
    def init(self, rows, slots):
        return [jnp.zeros((rows, slots))] * (slots // 8 + slots % 8)


class Restructured(Good):
    def observe(self, stats, view):
        return {"probs": super().observe(stats, view)}


class Flat(Good):
    def observe(self, stats, view):
        return super().observe(stats, view)[0]


class Truncated(Good):
    def init(self, rows, slots):
        return jnp.zeros((rows, slots), jnp.int32)


class Misspelled(Good):
    def observe(self, stats, view):
        return stats + view.probabilities


class Divided(Good):
    def score(self, layer, t):
        raise ZeroDivisionError("division by zero\nand more of it")


class NoSlots(Good):
    def score(self, layer, t):
        return layer.stats.sum(axis=1)


class Boolean(Good):
    def score(self, layer, t):
        return layer.stats > 0.1


class Listed(Good):
    def score(self, layer, t):
        return [1.0, 2.0]


class Entropy(Good):
    def score(self, layer, t):
        return -layer.stats * jnp.log(layer.stats)


class Nervous(Good):
    calls: ClassVar[list] = []

    def score(self, layer, t):
        self.calls.append(1)
        return layer.stats * len(self.calls)


class First(Good):
    def score(self, layer, t):
        return jnp.where(jnp.arange(layer.num_slots)[None] == 0, layer.stats + 1, layer.stats)


class Neighbour(Good):
    def observe(self, stats, view):
        return jnp.maximum(super().observe(stats, view), jnp.roll(stats, 1, axis=1))


class Ranks(Good):
    """Of equal statistics the slot decides."""

    def score(self, layer, t):
        held = layer.positions != ms.EMPTY
        return jnp.argsort(jnp.argsort(jnp.where(held, layer.stats, jnp.inf), axis=1), axis=1)


class AcrossRows(Good):
    """Slots of one number hold other tokens in every row."""

    def score(self, layer, t):
        return layer.stats + layer.stats.mean(axis=0)[None]


class Shares(Good):
    def score(self, layer, t):
        return layer.stats / layer.stats.sum(axis=1, keepdims=True)


class Echo(Good):
    def observe(self, stats, view):
        return super().observe(stats, view) + jnp.abs(view.values.astype(jnp.float32)).sum(axis=(0, 2)).max()


class Relative(Good):
    def score(self, layer, t):
        norms = jnp.abs(layer.keys.astype(jnp.float32)).sum(axis=(0, 2))[None]
        return norms / norms.max(axis=1, keepdims=True)


class Young(Good):
    """Runs for fifty thousand tokens."""

    def score(self, layer, t):
        return layer.stats * jnp.sqrt(50_000 - t.astype(jnp.float32))


class Counted(Good):
    def score(self, layer, t):
        return layer.stats * layer.num_slots


class Branching(Good):
    def score(self, layer, t):
        return layer.stats if t > 5 else -layer.stats


class InNumpy(Good):
    def observe(self, stats, view):
        return np.asarray(super().observe(stats, view))


class Callback(Good):
    def score(self, layer, t):
        shape = jax.ShapeDtypeStruct(layer.stats.shape, layer.stats.dtype)
        return jax.pure_callback(lambda stats: stats, shape, layer.stats)


class Watched(Good):
    """Static, it says, though what it observes decides."""

    static: ClassVar[bool] = True


class Ageing(ms.Policy):
    """Static, it says, though time decides: the newest eight tokens are worth nothing."""

    static: ClassVar[bool] = True

    def score(self, layer, t):
        return jnp.where(layer.positions < t - 8, layer.positions, -layer.positions)


class Picky(Good):
    """Looks at an option that is data."""

    alpha: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if self.alpha < 0:
            raise ValueError("alpha must be at least 0")


class Frozen(Good):
    """An array among the static options, which are compared."""

    weights: Any = struct.field(pytree_node=False, default=None)


class Budgeting(Good):
    def budget(self, layer):
        return layer.budget // 2


class NewbornFlat(Good):
    def init_token(self, arrival):
        return arrival.key[0, 0]


class NewbornByChance(Good):
    def init_token(self, arrival):
        return jnp.full((1,), np.random.default_rng().random())


class NewbornInNumpy(Good):
    def init_token(self, arrival):
        return jnp.asarray(np.asarray(arrival.value)[0, :1])


class Fixing(Good):
    """Says its budget as an option."""

    budget: int = struct.field(pytree_node=False, default=8)


class Guarding(Good):
    def protected(self, layer, t):
        return layer.positions < 4


class AlmostSpelled(Good):
    def observe_row(self, rows, view):
        return rows


class Merging(Good):
    def merge(self, layer, t):
        return layer


class Editing(Good):
    def observe(self, stats, view):
        object.__setattr__(view, "values", 2 * view.values)
        return super().observe(stats, view)


class Greedy(Good):
    """Wants more than it gets."""

    def score(self, layer, t, view):
        return view.probs.mean(axis=(0, 1))[None]


class Hoping(Good):
    """Might use more than it gets."""

    def score(self, layer, t, view=None):
        return super().score(layer, t)


class Writing(Good):
    def init(self, rows, slots):
        return {"received": super().init(rows, slots)}

    def observe(self, stats, view):
        return {"received": view.probs.mean(axis=(0, 1))[None]}

    def score(self, layer, t):
        layer.stats["received"] = 2 * layer.stats["received"]
        return layer.stats["received"]


class RowsOfSlots(Good):
    def init_rows(self, info):
        return jnp.zeros(3)


class RowsByChance(Good):
    def init_rows(self, info):
        return jnp.full((info.rows, 2), np.random.default_rng().random())


class RowsRestructured(Good):
    def init_rows(self, info):
        return jnp.zeros((info.rows, 2))

    def observe_rows(self, rows, view):
        return rows[:, :1]


class RowsOfTheFirst(Good):
    def init_rows(self, info):
        return jnp.zeros((info.rows, info.config.head_dim))

    def observe_rows(self, rows, view):
        return rows + view.keys[:1, 0].astype(rows.dtype)


class Infinitely(Good):
    def bias(self, layer, t):
        return jnp.where(layer.positions < t - 3, -jnp.inf, 0.0)


class BiasOfTheFirst(Good):
    def bias(self, layer, t):
        return jnp.where(jnp.arange(layer.num_slots)[None] == 0, 1.0, 0.0)


class RevisedByOrder(Good):
    def revise(self, layer, t):
        return layer.stats + jnp.roll(layer.stats, 1, axis=1)


ALONE = "when called again with the same arguments; it must be a function of them alone"
ORDER = "with slots in another order; it must not depend on that"
LEFT = "with other leftovers in free slots (those whose position is EMPTY); it must not depend on that"
COMPILED = (
    "cannot be compiled by jit: it must be written in jax.numpy, without numpy "
    "or Python's if, for and float() on arrays"
)
ARGUMENT = (
    "an option that is an array must be a plain field, one that Python code looks at static, "
    "struct.field(pytree_node=False, default=...)"
)
UNASKED = "which nobody asks for"
STATIC = "leave static out, or score by the token alone"

# "..." stands for words of JAX's own.
BROKEN = [
    (
        NoRows(),
        "init(1, 8) returned an array of shape (8,); it must be (1, 8, ...), the rest whatever the number of slots",
    ),
    (
        Fixed(),
        "init(1, 9) returned an array of shape (1, 8); it must be (1, 9, ...), the rest whatever the number of slots",
    ),
    (Scalar(), "init returned 0.0; statistics must be arrays [1, 8, ...]"),
    (Numbered(), "init(1, 8) returned other numbers for some slots; a new token may come into any slot"),
    (Drawn(), "init(1, 8) returned other numbers when called again; it must return the same ones"),
    (Unlike(), "init returned 1 arrays for 8 slots and 2 for 9; it must return the same tree of arrays"),
    (Restructured(), "observe returned shapes {'probs': (1, 8)}; they must be those of init, (1, 8)"),
    (Flat(), "observe returned shapes (8,); they must be those of init, (1, 8)"),
    (Truncated(), "observe returned float32; it must return what init does, int32"),
    (Misspelled(), "observe failed: AttributeError: 'View' object has no attribute 'probabilities'"),
    (Divided(), "score failed: ZeroDivisionError: division by zero"),
    (NoSlots(), "score has shape (1,); it must be (1, 8), [#K, S]"),
    (Boolean(), "score has dtype bool; it must be a float or an integer"),
    (Listed(), "score returned [1.0, 2.0]; it must be an array (1, 8), [#K, S]"),
    (Entropy(), "score is nan for the token at position 2 (row 0, after 4 tokens); it must be a number"),
    (Nervous(), f"score gives the token at position 7 (row 0, after 10 tokens) 1.75, and 1.60417 {ALONE}"),
    (First(), f"score gives the token at position 0 (row 0, after 1 token) 2, but 1 {ORDER}"),
    (
        Neighbour(scope="head"),
        f"observe gives the token at position 2 (row 0, after 5 tokens) 0.3125, but 0.1875 {ORDER}",
    ),
    (Ranks(), f"score gives the token at position 7 (row 0, after 9 tokens) 0, but 1 {ORDER}"),
    (
        AcrossRows(scope="head"),
        f"score gives the token at position 0 (row 0, after 1 token) 2, but 1.33333 {ORDER}",
    ),
    (Shares(), f"score gives the token at position 0 (row 0, after 1 token) 1, but 0.125 {LEFT}"),
    (Echo(), f"observe gives the token at position 0 (row 0, after 1 token) 34.25, but 91 {LEFT}"),
    (Relative(), f"score gives the token at position 0 (row 0, after 1 token) 1, but 0.361111 {LEFT}"),
    (Young(), "score is nan for the token at position 100000 (row 0, after 100001 tokens); it must be a number"),
    (
        Counted(),
        "score gives the token at position 0 (row 0, after 1 token) 8, but 10 with two more free slots; "
        "it must not depend on that",
    ),
    (Branching(), f"score {COMPILED}: TracerBoolConversionError: ..."),
    (InNumpy(), f"observe {COMPILED}: TracerArrayConversionError: ..."),
    (Callback(), "score cannot be batched by vmap: NotImplementedError: ..."),
    (
        Watched(),
        "static = True, but of the tokens at positions 0 and 1 (row 0) the first has the higher score after 2 tokens "
        f"and the lower after 3; {STATIC}",
    ),
    (
        Ageing(),
        "static = True, but of the tokens at positions 2 and 3 (row 0) the first has the higher score after 4 tokens "
        f"and the lower after 110; {STATIC}",
    ),
    (Picky(), f"it cannot be an argument of jit: TracerBoolConversionError: ...; {ARGUMENT}"),
    (
        Budgeting(),
        f"it defines budget, {UNASKED}; a budget is given to init_state; `adaptive` and `pyramid` share it out",
    ),
    (
        Fixing(),
        f"it defines budget, {UNASKED}; a budget is given to init_state; `adaptive` and `pyramid` share it out",
    ),
    (Guarding(), f"it defines protected, {UNASKED}; `sinks`, `recent` and `prompt` protect tokens"),
    (AlmostSpelled(), f"it defines observe_row, {UNASKED}; the engine calls observe_rows"),
    (Merging(), f"it defines merge, {UNASKED}; what is freed is gone: no policy changes keys or values"),
    (Editing(), "observe changed its view; only what it returns counts"),
    (Greedy(), "score takes view, which nobody gives; it gets layer, t"),
    (Hoping(), "score takes view, which nobody gives; it gets layer, t"),
    (Writing(), "score changed its layer; only what it returns counts"),
    (NewbornFlat(), "init_token returned shapes (); they must be those of init, (1,)"),
    (NewbornByChance(), "init_token returned other numbers when called again; it must return the same ones"),
    (NewbornInNumpy(), f"init_token {COMPILED}: TracerArrayConversionError: ..."),
    (RowsOfSlots(), "init_rows returned ...; statistics of rows must be arrays [1, ...]"),
    (RowsByChance(), "init_rows returned other numbers when called again; it must return the same ones"),
    (RowsRestructured(), "observe_rows returned shapes (1, 1); they must be those of init, (1, 2)"),
    (RowsOfTheFirst(), f"observe_rows gives row 0 (after 1 token) values such as 1.5, but values such as 0 {ORDER}"),
    (Infinitely(), "bias is -inf for the token at position 0 (row 0, after 4 tokens); it must be a number"),
    (BiasOfTheFirst(), f"bias gives the token at position 0 (row 0, after 1 token) 1, but 0 {ORDER}"),
    (RevisedByOrder(), f"revise gives the token at position ... (row 0, after ...) ..., but ... {LEFT}"),
    (Frozen(weights=np.ones(3)), f"it cannot be an argument of jit: ValueError: ...; {ARGUMENT}"),
]


@pytest.mark.parametrize(("policy", "message"), BROKEN, ids=[type(policy).__name__ for policy, _ in BROKEN])
def test_what_is_broken_is_said_in_one_line(policy, message):
    with pytest.raises(ValueError) as raised:
        ms.check_contract(policy, tiny.CONFIG)
    expected = re.escape(f"policy {policy}: {message}").replace(re.escape("..."), ".+")
    assert re.fullmatch(expected, str(raised.value)), raised.value


class ValueNorm(ms.Policy):
    """The README's."""

    def score(self, layer, t):
        norms = jnp.linalg.norm(layer.values.astype(jnp.float32), axis=-1)
        return norms if self.scope == "head" else norms.mean(axis=0)[None]


class Learned(ms.Policy):
    """A weight that is data, statistics in a tree, and all of the view."""

    weight: jax.Array
    shift: float = 0.5

    def init(self, rows, slots):
        return {"worth": jnp.full((rows, slots), 0.5), "pair": jnp.ones((rows, slots, 2), jnp.bfloat16)}

    def observe(self, stats, view):
        heads, _, width = view.keys.shape
        queries = view.queries.reshape(heads, -1, width).astype(jnp.float32)
        seen = jnp.tanh(jnp.einsum("kgh,ksh->ks", queries, view.keys.astype(jnp.float32)))
        mass = view.probs.sum(axis=1) * jnp.cos(view.token.astype(jnp.float32) + view.layer)
        pair = stats["pair"].astype(jnp.float32) + jnp.stack([seen, mass], axis=-1).mean(axis=0)[None]
        age = (view.t - view.positions).astype(jnp.float32)
        return {"worth": stats["worth"] + pair @ self.weight - 0.01 * age, "pair": pair}

    def score(self, layer, t):
        return layer.stats["worth"] + self.shift


class Infinite(ms.Policy):
    """Never forgets even positions, and odd ones that are old at once."""

    def score(self, layer, t):
        odd = jnp.where(layer.positions < t - 3, -jnp.inf, layer.positions.astype(jnp.float32))
        return jnp.where(layer.positions % 2 == 0, jnp.inf, odd)


class Buckets(ms.Policy):
    """Integers with many ties, the same at all times."""

    static: ClassVar[bool] = True

    def score(self, layer, t):
        return layer.positions % 5 - t


class Knorm(ms.Policy):
    """Static by the key, which a token keeps."""

    static: ClassVar[bool] = True

    def score(self, layer, t):
        norms = jnp.linalg.norm(layer.keys.astype(jnp.float32), axis=-1)
        return -norms if self.scope == "head" else -norms.mean(axis=0)[None]


class Busy(ms.Policy):
    """Counts in all slots, free ones too, and scores by the token alone."""

    static: ClassVar[bool] = True

    def init(self, rows, slots):
        return jnp.full((rows, slots), 7, jnp.int32)

    def observe(self, stats, view):
        return stats + view.token

    def score(self, layer, t):
        return -layer.positions


class Masked(Good):
    """Shares and ranks of the tokens held, equal ones together."""

    def score(self, layer, t):
        held = layer.positions != ms.EMPTY
        mine = jnp.where(held, layer.stats, 0)
        below = (mine[:, None, :] < mine[:, :, None]) & held[:, None, :]
        return below.sum(axis=-1).astype(mine.dtype) + mine / jnp.maximum(mine.sum(axis=1, keepdims=True), 1e-9)


SOUND = [
    tiny.more(Good()),
    tiny.more(ValueNorm()),
    ValueNorm(scope="head", sinks=1, recent=4),
    Learned(weight=jnp.asarray([0.3, -0.8])),
    Infinite(),
    Buckets(),
    tiny.more(Knorm()),
    Knorm(scope="head", sinks=900, recent=None),
    Busy(),
    Masked(scope="head"),
]


@pytest.mark.parametrize("dtype", ["float32", tiny.more("bfloat16")])
@pytest.mark.parametrize("policy", [*tiny.few(tiny.POLICIES, *tiny.TYPICAL), *SOUND], ids=str)
def test_a_sound_policy_passes(policy, dtype):
    ms.check_contract(policy, tiny.CONFIG.replace(dtype=dtype))


def test_probabilities_narrower_than_statistics_pass(x64):
    """`init` makes float64 then, `observe` returns float32: the engine goes on with what `init` made."""
    ms.check_contract(ms.TOVA(), tiny.CONFIG)


def test_the_smallest_of_models_passes():
    ms.check_contract(Masked(), tiny.CONFIG.replace(num_heads=1, num_kv_heads=1, vocab_size=1, num_layers=1))


def test_what_is_no_policy_or_config_is_refused():
    check: Any = inspect.unwrap(ms.check_contract)  # without the tests' own type checks
    with pytest.raises(ValueError, match="policy is 'tova'; it must be a Policy"):
        check("tova", tiny.CONFIG)
    with pytest.raises(ValueError, match="config is 3; it must be a Config"):
        check(ms.TOVA(), 3)
