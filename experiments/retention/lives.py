"""What the record of one passage says: how recent what is kept is, how long tokens live, what forgetting costs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.retention.recording import Recorded
from msrnn_jax.tracing.lifetimes import STILL_HELD

FIRST = 25  # tokens, as in Figure 9


def numbers_of(recorded: Recorded, budget: int, tags: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """The numbers of one line, all means over layers (and KV heads, where each forgets for itself) unless said.

    A token that came at step p and was freed after step t was *kept* for t - p + 1 steps: 1 if it went in its own.
    One that is held at the end was kept until then, T - p steps. So the mean is the one that the paper has.

    Args:
      tags: of every token, see `tags.tag_tokens`.

    Returns:
      `recent`: the share of what is held that is among the newest `budget` positions, mean over the steps from the
      first that forgets; `recent_layers`, of every layer; `recent_end`, after the last step. `first`: steps that each
      of the first 25 tokens was kept; `first_held`: the share of layers that hold it at the end. `life`: steps kept,
      mean over all tokens. `lost`: the share of a query's attention that lay on what was forgotten right after, mean
      over the same steps as `recent`; `lost_layers`. `tags`: for every tag how many tokens have it, alone or with
      others, and the sum of the steps they were kept; `joined`, of tokens that have several, the same for these
      together.
    """
    freed = recorded.freed
    count = freed.shape[2]
    share = recent_share(freed, budget)[:, :, budget:].mean(axis=1)  # [L, steps]
    lost = recorded.lost[budget:].astype(np.float64).mean(axis=0)  # [L]
    kept = steps_kept(freed).mean(axis=(0, 1))  # [T]
    return {
        "tokens": count,
        "recent": float(share.mean()),
        "recent_layers": share.mean(axis=1).tolist(),
        "recent_end": float(share[:, -1].mean()),
        "first": kept[:FIRST].tolist(),
        "first_held": (freed[:, :, :FIRST] == STILL_HELD).mean(axis=(0, 1)).tolist(),
        "life": float(kept.mean()),
        "lost": float(lost.mean()),
        "lost_layers": lost.tolist(),
        "tags": _by_kind(tags, kept),
        "joined": _by_kind([(" ".join(found),) if len(found) > 1 else () for found in tags], kept),
    }


def _by_kind(kinds: Sequence[Sequence[str]], kept: Float[np.ndarray, " T"]) -> dict[str, list[float]]:
    """How many tokens are of each kind, and the sum of the steps they were kept; a token may be of any number."""
    found = {}
    for kind in sorted({kind for some in kinds for kind in some}):
        mine = np.asarray([kind in some for some in kinds], bool)
        found[kind] = [int(mine.sum()), float(kept[mine].sum())]
    return found


def steps_kept(freed: Int[np.ndarray, "L #K T"]) -> Int[np.ndarray, "L #K T"]:
    """In how many steps each token was there, its own the first, those held at the end up to the last."""
    count = freed.shape[2]
    return np.minimum(freed, count - 1) + 1 - np.arange(count)


def recent_share(freed: Int[np.ndarray, "L #K T"], budget: int) -> Float[np.ndarray, "L #K T"]:
    """After every step the share of what is held that is among the newest `budget` positions."""
    positions = np.arange(freed.shape[2])
    recent = _held_until(np.minimum(freed, positions + budget))
    return recent / np.maximum(_held_until(freed), 1)  # a sliding window may leave nothing


def _held_until(ends: Int[np.ndarray, "L #K T"]) -> Int[np.ndarray, "L #K T"]:
    """How many tokens p are there after every step t, where p is from step p until before step `ends[p]`."""
    layers, rows, count = ends.shape
    gone = np.zeros((layers, rows, count + 1), np.int64)
    np.add.at(gone, (np.arange(layers)[:, None, None], np.arange(rows)[:, None], np.minimum(ends, count)), 1)
    return np.arange(1, count + 1) - gone[:, :, :count].cumsum(axis=2)
