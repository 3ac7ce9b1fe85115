"""Position modes: how far apart remembered tokens count as being, and keys turned to their places."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Int

from msrnn_jax.config import Config, at_least_float32
from msrnn_jax.recurrence.attention import attention_logits
from msrnn_jax.recurrence.conditional import where_any
from msrnn_jax.recurrence.rotary import Angles, rotate, rotation
from msrnn_jax.state import EMPTY, LayerState

WHOLE_GAP = 10  # "gap": the longest distance between neighbours that counts in full


class Frame(struct.PyTreeNode):
    """Where every candidate of a chunk stands, for the position modes in which that changes.

    Attention sees differences of places only, so the origin is free: the newest token held before the chunk.
    A token that comes moves nobody; one that goes moves those newer than it, all by the same angle. So keys
    are turned once when the chunk begins and once for every token that goes, and places hardly grow
    beyond the chunk. The rounding of as many rotations stays that of a few.
    """

    keys: Array  # [K, M, H], rotated to their places, at least float32
    place: Array  # [#K], of the newest held token
    newest: Array  # [#K] int32, its position, EMPTY where nothing is held


def make_frame(config: Config, mode: str, angles: Angles | None, layer: LayerState, count: int) -> Frame:
    """The frame of a layer's slots, with room for `count` tokens."""
    keys = rotate_to_newest(config, mode, angles, layer.keys, layer.positions)
    return Frame(
        keys=jnp.pad(keys, ((0, 0), (0, count), (0, 0))),
        place=jnp.zeros(layer.num_rows, keys.dtype),
        newest=jnp.max(layer.positions, axis=1),
    )


def place_token(
    config: Config,
    mode: str,
    frame: Frame,
    slot: Int[Array, ""],
    query: Float[Array, "K G H"],
    key: Float[Array, "K H"],
    position: Int[Array, ""],
) -> tuple[Frame, Float[Array, "K G H"]]:
    """Gives a new token its place, unless it is padding; returns its query, rotated to it."""
    dtype = frame.keys.dtype
    real = position != EMPTY
    place = frame.place + counted_distance(mode, position - frame.newest, dtype)  # [#K]
    cos, sin = rotation(config, place)  # [#K, H / 2]
    turned = rotate(key.astype(dtype), cos, sin)
    frame = frame.replace(
        keys=lax.dynamic_update_slice_in_dim(frame.keys, turned[:, None], slot, axis=1),
        place=jnp.where(real, place, frame.place),
        newest=jnp.where(real, position, frame.newest),
    )
    return frame, rotate(query.astype(dtype), cos[:, None], sin[:, None])


def close_gap(config: Config, mode: str, frame: Frame, before: Int[Array, "#K M"], after: Int[Array, "#K M"]) -> Frame:
    """Closes the gap of the token that each row has freed, if any."""
    dtype, far = frame.keys.dtype, jnp.iinfo(jnp.int32).max
    gone = jnp.max(jnp.where(before == after, EMPTY, before), axis=1)  # [#K]
    older = jnp.max(jnp.where(after < gone[:, None], after, EMPTY), axis=1)
    newer = jnp.min(jnp.where(after > gone[:, None], after, far), axis=1)
    was_newest = (gone != EMPTY) & (newer == far)
    inside = (older != EMPTY) & (newer != far)  # where nothing was freed, there is no older one
    apart = counted_distance(mode, gone - older, dtype)
    closer = counted_distance(mode, newer - older, dtype) - counted_distance(mode, newer - gone, dtype) - apart
    shift = jnp.where(inside, closer, jnp.zeros((), dtype))
    cos, sin = (angle[:, None] for angle in rotation(config, shift))  # [#K, 1, H / 2]
    moves = (inside[:, None] & (after > gone[:, None]))[..., None]  # [#K, M, 1]
    return frame.replace(
        keys=jnp.where(moves, rotate(frame.keys, cos, sin), frame.keys),
        place=frame.place + jnp.where(was_newest, -apart, shift),
        newest=jnp.where(was_newest, older, frame.newest),
    )


def close_gaps(
    config: Config, mode: str, frame: Frame, before: Int[Array, "#K M"], after: Int[Array, "#K M"], *, one: bool
) -> Frame:
    """`close_gap` where any number of tokens may have gone; `one`: at most one of every row has.

    The newest token that is left stays where it is, and all others come nearer.
    """
    if one:
        return close_gap(config, mode, frame, before, after)
    dtype = frame.keys.dtype

    def turn(gone: Array, given: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        del gone  # where nothing has, nothing turns: the same distances, exactly
        before, after = given
        then, now = (distances(mode, positions, dtype) for positions in given)
        newest = after == jnp.max(after, axis=1, keepdims=True)
        back = jnp.max(jnp.where(newest & (after != EMPTY), then, 0), axis=1, initial=0)  # [#K]
        shift = jnp.where(after == EMPTY, 0, then - back[:, None] - now)
        return *rotation(config, shift), back

    def stay(gone: Array, given: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        cos = jnp.ones((*given[0].shape, config.head_dim // 2), dtype)
        return cos, jnp.zeros_like(cos), jnp.zeros(gone.shape[:1], dtype)

    cos, sin, back = where_any((before != after).any(axis=1), turn, stay, (before, after))
    return frame.replace(keys=rotate(frame.keys, cos, sin), place=frame.place - back, newest=jnp.max(after, axis=1))


def angles_for(config: Config, mode: str, positions: Int[Array, "*T"], slots: int) -> Angles | None:
    """What all layers share: the rotation of the tokens read, or a table for all distances among what is held."""
    if mode == "absolute":
        return rotation(config, positions)
    return rotation(config, jnp.arange(slots, dtype=jnp.int32)) if mode == "cache" else None


def rotate_to_newest(
    config: Config, mode: str, angles: Angles | None, keys: Float[Array, "K S H"], positions: Int[Array, "#K S"]
) -> Float[Array, "K S H"]:
    """Unrotated keys as an unrotated query at the newest held position sees them, in at least float32.

    Rotating the query by n and a key by r is rotating the key alone by r - n.
    """
    keys = keys.astype(at_least_float32(keys.dtype))
    behind = distances(mode, positions, keys.dtype)  # [#K, S]
    if angles is None:
        return rotate(keys, *rotation(config, -behind))
    cos, sin = (table[behind.astype(jnp.int32)].astype(keys.dtype) for table in angles)  # [#K, S, H / 2]
    return rotate(keys, cos, -sin)


def logits_by_place(
    config: Config,
    mode: str,
    angles: Angles | None,
    query: Float[Array, "K G H"],
    keys: Float[Array, "K S H"],
    positions: Int[Array, "#K S"],
) -> Float[Array, "K G S"]:
    """`attention_logits` of an unrotated query at the newest held position, with unrotated keys.

    On CPU as one product with rotated keys. Elsewhere half by half: XLA then rotates keys within the two products, and
    writes no copy of them. For TPU also one query head of a group after the other: it would write one for several.
    """
    return lax.platform_dependent(
        query,
        keys,
        positions,
        cpu=partial(_logits_at_once, config, mode, angles),
        tpu=partial(_logits_one_by_one, config, mode),
        default=partial(_logits_by_halves, config, mode),
    )


def _logits_at_once(
    config: Config, mode: str, angles: Angles | None, query: Array, keys: Array, positions: Array
) -> Array:
    turned = rotate_to_newest(config, mode, angles, keys, positions)
    return attention_logits(query.astype(turned.dtype), turned)


def _logits_by_halves(config: Config, mode: str, query: Array, keys: Array, positions: Array) -> Array:
    dtype = at_least_float32(keys.dtype)
    cos, sin = rotation(config, distances(mode, positions, dtype))  # [#K, S, H / 2]
    ahead, up = jnp.split(query.astype(dtype), 2, axis=-1)  # [K, G, H / 2]
    first, second = (half.astype(dtype) for half in jnp.split(keys, 2, axis=-1))  # [K, S, H / 2]
    return attention_logits(ahead, first * cos + second * sin) + attention_logits(up, second * cos - first * sin)


def _logits_one_by_one(config: Config, mode: str, query: Array, keys: Array, positions: Array) -> Array:
    heads = jnp.split(query, query.shape[1], axis=1)
    alone = (lax.optimization_barrier((head, keys)) for head in heads)  # so that no two share rotated keys
    return jnp.concatenate([_logits_by_halves(config, mode, head, own, positions) for head, own in alone], axis=1)


def counted_distance(mode: str, gap: Int[Array, "*T"], dtype: Any) -> Float[Array, "*T"]:
    """How far apart two held neighbours count as being whose true positions differ by `gap`.

    "cache": one place (Xiao et al., 2023, arXiv:2309.17453: positions are places among what is held). "gap": the
    true distance up to `WHOLE_GAP`, the logarithm's logarithm of a longer one (Oren et al., 2024,
    arXiv:2401.06104, section 7.2).
    """
    if mode == "cache":
        return jnp.ones(gap.shape, dtype)
    distance = gap.astype(dtype)
    return jnp.where(gap <= WHOLE_GAP, distance, jnp.log(jnp.log(jnp.maximum(distance, WHOLE_GAP + 1))))


def distances(mode: str, positions: Int[Array, "#K S"], dtype: Any) -> Float[Array, "#K S"]:
    """How far behind the newest held token of its row every held slot counts as being."""
    newer = positions[:, None, :] > positions[:, :, None]  # [#K, S, S]: [j, i] where i is newer than j
    if mode == "cache":
        return newer.sum(axis=-1, dtype=jnp.int32).astype(dtype)
    others = jnp.broadcast_to(positions[:, :, None], newer.shape)
    older = jnp.max(others, axis=1, where=newer, initial=EMPTY)  # [#K, S], the neighbour's position
    steps = counted_distance(mode, positions - older, dtype)
    return jnp.sum(jnp.broadcast_to(steps[:, None], newer.shape), axis=-1, where=newer)
