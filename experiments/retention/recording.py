"""Passages read side by side by the recurrence, with when each of their tokens was freed and what it was given then."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Int

import msrnn_jax as ms
from experiments.common.model import Model
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.policies.base import RowStats, Score, Stats, option_fields
from msrnn_jax.recurrence.checks import Slots
from msrnn_jax.recurrence.slots import init_state, slots_of
from msrnn_jax.state import EMPTY, LayerInfo, LayerState, MultiState, View
from msrnn_jax.tracing.lifetimes import follow_with, start_record

BATCH = 8  # passages; always so many, the last one repeated: a passage is read alike whatever others there are
BLOCK = 64  # tokens between two chances for ctrl-C


class Watched(Policy):
    """Forgets what another policy forgets; made by `watch`.

    Its statistics are those of the other and the last row of attention, mean over the query heads that share a slot.
    Forgetting leaves statistics where they are, so after a step that of a freed slot says what its token had still
    been given.
    """

    inner: Policy = struct.field(kw_only=True)

    def init(self, rows: int, slots: int) -> Stats:
        return self.inner.init(rows, slots), jnp.zeros((rows, slots), jnp.float32)

    def observe(self, stats: Stats, view: View) -> Stats:
        mass = view.probs.mean(axis=1) if self.scope == "head" else view.probs.mean(axis=(0, 1))[None]
        return self.inner.observe(stats[0], view), mass

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        return self.inner.score(layer.replace(stats=layer.stats[0]), t)

    def init_rows(self, info: LayerInfo) -> RowStats:
        return self.inner.init_rows(info)

    def observe_rows(self, rows: RowStats, view: View) -> RowStats:
        return self.inner.observe_rows(rows, view)

    def revise(self, layer: LayerState, t: Int[Array, ""]) -> Stats:
        return self.inner.revise(layer.replace(stats=layer.stats[0]), t), layer.stats[1]

    def bias(self, layer: LayerState, t: Int[Array, ""]) -> Float[Array, "#K S"]:
        return self.inner.bias(layer.replace(stats=layer.stats[0]), t)

    def defines(self, name: str) -> bool:
        return name == "observe" or self.inner.defines(name)

    def __str__(self) -> str:
        return str(self.inner)


def watch(policy: Policy) -> Watched:
    """The same policy, watched."""
    return Watched(inner=policy, **{name: getattr(policy, name) for name in option_fields(Policy)})


def forgotten_mass(state: MultiState) -> Float[Array, " L"]:
    """The share of the newest query's attention that lay on what was forgotten right after its step.

    Mean over all query heads of a layer. Slots that were free before the step have no attention, so all that are
    free now can be summed.
    """

    def one(layer: LayerState) -> Array:
        return jnp.where(layer.positions == EMPTY, layer.stats[1], 0.0).sum(axis=1).mean()

    return jnp.stack([one(layer) for layer in state.layers])


class Recorded(NamedTuple):
    """What became of one passage's tokens."""

    freed: np.ndarray  # [L, #K, T] int32, as `lifetimes.follow` says
    lost: np.ndarray  # [T, L] float32, of every step, see `watched.forgotten_mass`


def record(model: Model, policy: Policy, budget: int, passages: Sequence[Int[np.ndarray, " T"]]) -> list[Recorded]:
    """Steps over passages of one length from empty states, at most `BATCH` of them.

    They share one program, whose slots are those of the budget: one for all budgets would have to attend to the slots
    of the largest in each, which costs more than compiling anew.
    """
    rows = np.stack([*passages, *[passages[-1]] * (BATCH - len(passages))])  # [B, T]
    count = rows.shape[1]
    padded = np.pad(rows, ((0, 0), (0, -count % BLOCK)))
    watched = watch(policy)
    budgets = jnp.full(BATCH, budget, jnp.int32)
    slots = slots_of(model.config, watched, budget)
    state, freed = _start(model.config, watched, budgets, slots=slots, count=count)
    state, freed = model.states(watched, state), model.rows(freed)
    lost = []
    for start in range(0, count, BLOCK):
        tokens = model.rows(jnp.asarray(padded[:, start : start + BLOCK]))
        length = jnp.asarray(count - start, jnp.int32)
        state, freed, shares = _read(model.config, watched, model.params, state, freed, tokens, length)
        lost.append(np.asarray(shares))
    found, shares = np.asarray(freed), np.concatenate(lost, axis=1)[:, :count]
    return [Recorded(found[row], shares[row]) for row in range(len(passages))]


@partial(jax.jit, static_argnames=("slots", "count"))
def _start(
    config: ms.Config, policy: Watched, budgets: Int[Array, " B"], *, slots: Slots, count: int
) -> tuple[MultiState, Int[Array, "B L #K T"]]:
    def one(budget: Array) -> tuple[MultiState, Array]:
        state = init_state(config, policy, budget, slots=slots)
        return state, start_record(state, count)

    return jax.vmap(one)(budgets)


@partial(jax.jit, donate_argnames=("state", "freed"))
def _read(
    config: ms.Config,
    policy: Watched,
    params: Params,
    state: MultiState,
    freed: Int[Array, "B L #K T"],
    tokens: Int[Array, "B C"],
    length: Int[Array, ""],
) -> tuple[MultiState, Int[Array, "B L #K T"], Float[Array, "B C L"]]:
    """A block of tokens; those from `length` on are padding, and change nothing."""

    def one(state: MultiState, freed: Array, tokens: Array) -> tuple[MultiState, Array, Array]:
        (state, freed), shares = follow_watched(config, policy, params, state, freed, tokens, length)
        return state, freed, shares

    return jax.vmap(one)(state, freed, tokens)


def follow_watched(
    config: ms.Config,
    policy: Watched,
    params: Params,
    state: MultiState,
    freed: Int[Array, "L #K T"],
    tokens: Int[Array, " C"],
    length: Int[Array, ""],
) -> tuple[tuple[MultiState, Int[Array, "L #K T"]], Float[Array, "C L"]]:
    """`lifetimes.follow`, and the attention that every step lost; at padding it says that of the last real one."""
    return follow_with(config, policy, params, state, freed, tokens, length, also=forgotten_mass)
