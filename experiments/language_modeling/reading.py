"""One segment under many budgets, with every prediction held against the full model's."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

import msrnn_jax as ms
from experiments.common.model import Model
from msrnn_jax.evaluation.losses import read_fidelity, read_losses
from msrnn_jax.evaluation.segments import segment
from msrnn_jax.model.extend import CHUNK, scan_chunks
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.slots import init_state, slots_of

ALIKE = 512  # budgets up to it cost about the same: attention is the smaller part of a chunk


class Full(NamedTuple):
    """What the full model makes of a segment."""

    stream: Array  # [T - 1, D], after the last layer
    nats: np.ndarray  # [T - 1], of every next token


def read_full(model: Model, tokens: Int[np.ndarray, " T"], policy: Policy | None = None) -> Full:
    """Reads a segment with full attention, or with what a policy makes of it while nothing is forgotten."""
    kept = _read_full(model.config, ms.Full() if policy is None else policy, model.params, jnp.asarray(tokens))
    return Full(kept["x"], np.asarray(kept["nats"]))


@jax.jit
def _read_full(config: ms.Config, policy: Policy, params: Params, tokens: Int[Array, " T"]) -> dict[str, Array]:
    empty, forgetting = init_state(config, policy, tokens.shape[0] - 1), not policy.forgets
    inputs, beside = tokens[:-1], {"targets": tokens[1:]}
    how = {"reader": _read_stream, "forgetting": forgetting}
    return scan_chunks(config, policy, params, empty, inputs, beside, None, **how)[2]


def _read_stream(config: ms.Config, params: Params, x: Float[Array, "C D"], beside: dict[str, Array]) -> dict[str, Any]:
    return {**read_losses(config, params, x, beside), "x": x}


def read_budgets(
    model: Model, policy: Policy, tokens: Int[np.ndarray, " T"], full: Full, budgets: Sequence[int]
) -> list[dict[str, Any]]:
    """Reads a segment from an empty state at every budget, by one program.

    Returns:
      For every budget sums over the predicted tokens: `nats`, those of the full model on the same tokens, KL
      divergence of the policy's predictions from the full model's in nats, and how often their likeliest tokens agree.
    """
    numbers = model.rows(jnp.asarray(budgets, jnp.int32))
    segment = jnp.asarray(tokens)
    slots = slots_of(model.config, policy, max(budgets))
    kept = _read_budgets(model.config, policy, model.params, segment, full.stream, numbers, slots=slots)
    return [_sums({name: leaf[row] for name, leaf in kept.items()}, full.nats) for row in range(len(budgets))]


@partial(jax.jit, static_argnames="slots")
def _read_budgets(
    config: ms.Config,
    policy: Policy,
    params: Params,
    tokens: Int[Array, " T"],
    stream: Float[Array, "N D"],
    budgets: Int[Array, " B"],
    *,
    slots: int | tuple[int, ...],
) -> dict[str, Array]:
    beside = {"targets": tokens[1:], "full": stream}  # not batched: the full model's logits are computed once for all

    def one(budget: Array) -> dict[str, Array]:
        empty = init_state(config, policy, budget, slots=slots)
        return scan_chunks(config, policy, params, empty, tokens[:-1], beside, None, reader=read_fidelity)[2]

    return jax.vmap(one)(budgets)


def compare_whole(model: Model, whole: Full, tokens: Int[np.ndarray, " T"], full: Full) -> dict[str, Any]:
    """The sums of `read_budgets` for what `read_full` has made of a segment."""
    kept = _compare(model.config, model.params, whole.stream, full.stream, jnp.asarray(tokens)[1:])
    return _sums(kept, full.nats)


@jax.jit
def _compare(
    config: ms.Config, params: Params, mine: Float[Array, "N D"], full: Float[Array, "N D"], targets: Int[Array, " N"]
) -> dict[str, Array]:
    def one(item: tuple[Array, Array, Array]) -> dict[str, Array]:
        x, full, target = (leaf[None] for leaf in item)
        return jax.tree.map(lambda leaf: leaf[0], read_fidelity(config, params, x, {"full": full, "targets": target}))

    return lax.map(one, (mine, full, targets), batch_size=CHUNK)  # logits of all would not fit


def read_short(model: Model, tokens: Int[np.ndarray, " T"], full: Full, size: int) -> dict[str, Any]:
    """The paper's baseline: full attention over pieces of `size` tokens, each read as if it were alone.

    Returns:
      As `read_budgets`; the first token of a piece is context only, so that fewer are predicted.
    """
    pieces, lengths = segment(tokens, size)
    starts = np.arange(len(pieces)) * size
    kept = _read_short(model.config, model.params, pieces, lengths, full.stream, starts)
    counted = (np.arange(size - 1)[None] < lengths[:, None] - 1).reshape(-1)
    places = np.minimum(starts[:, None] + np.arange(size - 1), len(full.nats) - 1).reshape(-1)[counted]
    rows = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1)[counted], kept)
    return _sums(rows, full.nats[places])


@jax.jit
def _read_short(config: ms.Config, params: Params, pieces: Any, lengths: Any, stream: Array, starts: Any) -> Any:
    size = pieces.shape[1]
    padded = jnp.pad(stream, ((0, size), (0, 0)))

    def one(item: tuple[Array, Array, Array]) -> dict[str, Array]:
        tokens, length, start = item
        empty = init_state(config, ms.Full(), size - 1)
        beside = {"targets": tokens[1:], "full": lax.dynamic_slice_in_dim(padded, start, size - 1)}
        return scan_chunks(config, ms.Full(), params, empty, tokens[:-1], beside, length - 1, reader=read_fidelity)[2]

    return lax.map(one, (pieces, lengths, starts))  # one after the other: logits of all would not fit


def _sums(kept: dict[str, Any], full: Float[np.ndarray, " N"]) -> dict[str, Any]:
    sums = {name: float(np.asarray(leaf).sum(dtype=np.float64)) for name, leaf in kept.items()}
    return {"tokens": len(full), **sums, "full_nats": float(full.sum(dtype=np.float64))}


def together(budgets: Sequence[int]) -> list[list[int]]:
    """Budgets in groups that are read by one program, whose slots are those of the largest in it."""
    groups: list[list[int]] = []
    for budget in sorted(budgets, reverse=True):
        limit = max(groups[-1][0] // 4, ALIKE) if groups else 0
        if groups and (budget > limit or groups[-1][0] <= ALIKE):
            groups[-1].append(budget)
        else:
            groups.append([budget])
    return [sorted(group) for group in reversed(groups)]
