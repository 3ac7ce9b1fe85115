"""Many budgets at once: every (budget, segment) is a row of one batch, whatever its budget."""

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jaxtyping import Int

from msrnn_jax.config import Config
from msrnn_jax.devices.sharding import put_rows, shardings
from msrnn_jax.evaluation.losses import read_losses
from msrnn_jax.model.extend import ChunkHead, scan_chunks
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.sliding_window import room_for
from msrnn_jax.recurrence.slots import init_state
from msrnn_jax.state import EMPTY, MultiState

T = TypeVar("T")


class Row(NamedTuple):
    """One segment under one budget."""

    budget: int
    segment: int  # its index


def rows_of(budgets: Sequence[int], segments: Sequence[int]) -> list[Row]:
    """Every segment under every budget, a budget after the other."""
    return [Row(budget, segment) for budget in budgets for segment in segments]


def cut_batches(rows: Sequence[T], batch: int) -> list[Sequence[T]]:
    """The rows, `batch` at a time."""
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def fill_batch(rows: Sequence[T], batch: int) -> list[T]:
    """The rows, the last one repeated until there are `batch`: every batch runs through the same program."""
    return [*rows, *[rows[-1]] * (batch - len(rows))]


def check_settings(
    config: Config, policy: Policy, lengths: np.ndarray, budgets: Sequence[int], *, positions: str = "absolute"
) -> None:
    """Raises what reading rows would, before any work and without any memory for states."""
    needed = room_for(config, positions, int(lengths.max()) - 1)
    for budget in budgets:
        jax.eval_shape(partial(init_state, config, policy, budget, positions=positions))
        if not policy.forgets and budget < needed:
            raise ValueError(f"budget is {budget}, but {policy} forgets nothing and must hold {needed} tokens")


def read_rows(
    config: Config,
    policy: Policy,
    params: Params,
    segments: np.ndarray,
    lengths: np.ndarray,
    rows: Sequence[Row],
    *,
    slots: int | tuple[int, ...],
    positions: str = "absolute",
    reader: ChunkHead = read_losses,
    full: np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """Runs one batch: the weights are read once per chunk for all of its rows.

    Args:
      rows: B of them; their number, `slots` and the width of the segments are what is compiled for.
      reader: what is kept of every token, leaves [B, T - 1, ...], 0 at padding.
      full: for readers that ask for it, the full model's residual streams [B, T - 1, D].
      mesh: devices that share the rows and, if the weights lie on it so, the heads (see `shardings`); B must be a
        multiple of its axis `data`.

    Raises:
      ValueError: where the policy scored a token NaN that is held at the end of a segment.
    """
    index = np.asarray([row.segment for row in rows], np.int32)
    budgets = np.asarray([row.budget for row in rows], np.int32)
    batch = (segments[index], lengths[index], budgets, {} if full is None else {"full": full})
    if mesh is not None:
        batch = put_rows(batch, shardings(config, policy, mesh, positions=positions).rows)
    fixed: Any = {"reader": reader, "slots": slots, "positions": positions, "mesh": mesh}
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):  # kernels need it
        kept, wrong = _read_rows(config, policy, params, *batch, **fixed)
    # Where losses are no numbers either, it is the model that fails, and the policy cannot help it.
    sound = np.isfinite(np.asarray(kept["nats"])).all(axis=1, keepdims=True)
    for row, layer in np.argwhere((np.asarray(wrong) != EMPTY) & sound)[:1]:
        raise ValueError(
            f"policy {policy} scores the token at position {int(wrong[row, layer])} NaN in layer {layer} "
            f"(budget {rows[row].budget}, segment {rows[row].segment}); a score must be a number"
        )
    return jax.tree.map(np.asarray, kept)


@partial(jax.jit, static_argnames=("reader", "slots", "positions", "mesh"))
def _read_rows(
    config: Config,
    policy: Policy,
    params: Params,
    segments: Any,
    lengths: Any,
    budgets: Any,
    beside: dict[str, Any],
    *,
    reader: ChunkHead,
    slots: int | tuple[int, ...],
    positions: str,
    mesh: Mesh | None,
) -> tuple[Any, Array]:
    def make(budget: Array) -> MultiState:
        return init_state(config, policy, budget, slots=slots, positions=positions)

    def one(empty: MultiState, tokens: Array, length: Array, beside: dict[str, Array]) -> tuple[Any, Array]:
        beside = {"targets": tokens[1:], **beside}
        state, _, kept = scan_chunks(config, policy, params, empty, tokens[:-1], beside, length - 1, reader=reader)
        return kept, no_numbers(policy, state)

    empty = jax.vmap(make)(jnp.asarray(budgets))
    if mesh is None:
        return jax.vmap(one)(empty, segments, lengths, beside)
    places = shardings(config, policy, mesh, positions=positions)
    empty = lax.with_sharding_constraint(empty, places.state)
    return lax.with_sharding_constraint(jax.vmap(one)(empty, segments, lengths, beside), places.whole)


def no_numbers(policy: Policy, state: MultiState) -> Int[Array, " L"]:
    """For every layer the first position held that the policy scores NaN, or EMPTY."""
    found = []
    for index, layer in enumerate(state.layers):
        score = policy.score(layer.replace(index=index), state.t)
        if not jnp.issubdtype(score.dtype, jnp.floating):
            found.append(jnp.full((), EMPTY, jnp.int32))
            continue
        wrong = (layer.positions != EMPTY) & jnp.isnan(score)
        last = jnp.iinfo(jnp.int32).max
        first = jnp.min(jnp.where(wrong, layer.positions, last))
        found.append(jnp.where(first == last, EMPTY, first))
    return jnp.stack(found)
