"""Sliding windows: what a query sees, when tokens expire, and how many a layer can then hold."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from msrnn_jax.config import Config
from msrnn_jax.state import EMPTY, LayerState


def window_in(config: Config, mode: str, index: int, *, forgetting: bool) -> int | None:
    """The window of a layer where it has to be minded, in tokens; None where nothing can be out of sight.

    In the position mode "cache" windows are over places among what is held, of which there are at most W
    (see `check_windows`), so only a prompt read without forgetting outgrows them.
    """
    return None if mode == "cache" and forgetting else config.window_of(index)


def free_expired(layer: LayerState, window: int, t: Int[Array, ""]) -> LayerState:
    """Frees what a query at position `t`, and so every later one, no longer sees."""
    return layer.replace(positions=jnp.where(layer.positions <= t - window, EMPTY, layer.positions))


def visible_in_window(
    mode: str, positions: Int[Array, "#K M"], queries: Int[Array, "#K T"], window: int
) -> Bool[Array, "#K T M"]:
    """What queries see that attend to all of `positions` written before them, but for their window.

    Args:
      positions: of everything held or about to be, EMPTY for anything else.
      queries: their slots.
    """
    places = positions
    if mode == "cache":  # free slots come first, and leave differences between the others as they are
        places = jnp.argsort(jnp.argsort(positions, axis=1), axis=1).astype(jnp.int32)
    own = jnp.take_along_axis(places, queries, axis=1)  # [#K, T]
    return places[:, None, :] > own[:, :, None] - window


def most_held(config: Config, mode: str, index: int, count: int) -> int:
    """How many of `count` tokens a layer holds, at most, where no policy forgets any."""
    window = config.window_of(index)
    return count if window is None or mode == "cache" else min(count, window - 1)


def room_for(config: Config, mode: str, count: int) -> int:
    """The budget with which no layer has to forget any of `count` tokens that a later query can see."""
    return max(most_held(config, mode, index, count) for index in range(config.num_layers))


def check_windows(config: Config, mode: str, slots: Sequence[int]) -> None:
    """Refuses position modes in which a window of true positions means nothing.

    Args:
      slots: how many each layer has.

    Raises:
      ValueError: for the mode "gap", and for "cache" with so many slots that tokens held at once could stand
        W places apart: within W slots the window never binds, and nothing expires.
    """
    for index, count in enumerate(slots):
        window = config.window_of(index)
        if window is None or mode == "absolute":
            continue
        if mode == "gap":
            raise ValueError(
                f"positions is 'gap', but layer {index} has a sliding window of {window} true positions; "
                "it must be 'absolute', or 'cache' with at most as many slots"
            )
        if count > window:
            raise ValueError(
                f"positions is 'cache' and there are {count} slots, but layer {index} has a sliding window of "
                f"{window}; there must be at most {window}, for budgets up to {window - 1}"
            )
