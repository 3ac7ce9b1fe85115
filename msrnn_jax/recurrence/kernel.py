"""The recurrence over masks and statistics of a chunk as one kernel, by Pallas, for TPU (Mosaic) and GPU (Triton).

XLA makes a loop of it that launches a dozen kernels for every token. Here a kernel steps over the chunk by itself, with
what is held and the statistics on chip. It traces the policy's own `observe` and `score`: no policy is written twice.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.eviction import is_due
from msrnn_jax.recurrence.slots import hold_next
from msrnn_jax.recurrence.step import observe_and_forget
from msrnn_jax.state import EMPTY, LayerState, StepContext

DATA = "data"  # the axis of a mesh over which rows of a batch are shared out
BLOCK = 2 * 2**20  # bytes of products that are fetched at once, while the kernel works on those before
LANES, SUBLANES = 128, 8  # tiles that a TPU lays numbers out in
WARPS = 16  # of a GPU that work together on a row


class Kernel(NamedTuple):
    """A kernel for the recurrence of a layer; hashable.

    Attributes:
      policy: whose it is.
      index: of the layer.
      window: beyond which tokens expire, None where they do not.
      mode: how positions are rotated.
      width: of a head.
      platform: "tpu" or "cuda".
      interpret: run it by JAX, on any device.
    """

    policy: Policy
    index: int
    window: int | None
    mode: str
    width: int
    platform: str
    interpret: bool = False


def step_through(
    kernel: Kernel, layer: LayerState, context: StepContext, products: Float[Array, "K T G M"]
) -> tuple[Any, Any, Bool[Array, "#K T M"]]:
    """What is held after the last token, the statistics, and what every token sees.

    Under `vmap` rows of the batch are an axis of the kernel's grid. On a mesh (`jax.set_mesh`) every device takes its
    own rows; heads that are shared out are gathered first, K * T * G * M numbers a layer and chunk, since a policy may
    look at all, and every device then steps through all of them.
    """
    stats, tree = jax.tree.flatten(layer.stats)
    rows = jnp.moveaxis(products, 1, 0)  # [T, K, G, M]
    rows = rows[:, :, 0] if rows.shape[2] == 1 else rows  # an axis of one would be padded to SUBLANES
    numbers = [leaf[None] for leaf in (context.position, context.token, context.seen)]  # [1, T]
    limits = [layer.budget, jnp.zeros_like(layer.budget) if layer.pinned is None else layer.pinned]
    args = (rows, *numbers, jnp.stack(limits).reshape(1, 2), layer.positions, *stats)
    first = layer.num_slots - products.shape[1]
    query = jax.ShapeDtypeStruct((products.shape[0] * products.shape[2], kernel.width), layer.keys.dtype)
    keys = jax.ShapeDtypeStruct(layer.keys.shape, layer.keys.dtype)
    assert context.hidden is not None
    hidden = jax.ShapeDtypeStruct(context.hidden.shape[1:], context.hidden.dtype)
    call = _batched(partial(_call, kernel, (query, keys, hidden), tree, first))
    visible, positions, *stats = (leaf[0] for leaf in call(*(leaf[None] for leaf in args)))
    return positions, jax.tree.unflatten(tree, stats), jnp.moveaxis(visible, 0, 1) != 0


def _batched(call: Any) -> Any:
    """A function of arrays [B, ...] that takes another axis of `vmap` as more rows."""

    @custom_vmap
    def rows(*args: Array) -> tuple[Array, ...]:
        return _shared_out(call, args)

    @rows.def_vmap
    def _(size: int, batched: Sequence[bool], *args: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        args = tuple(
            leaf if is_batched else jnp.broadcast_to(leaf, (size, *leaf.shape))
            for leaf, is_batched in zip(args, batched, strict=True)
        )
        made = rows(*(leaf.reshape(-1, *leaf.shape[2:]) for leaf in args))
        return tuple(leaf.reshape(size, -1, *leaf.shape[1:]) for leaf in made), (True,) * len(made)

    return rows


def _shared_out(call: Any, args: tuple[Array, ...]) -> tuple[Array, ...]:
    """The call with its rows shared out over the devices of a mesh that is set, and all else whole on each."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
        return call(*args)
    divides = DATA in mesh.axis_names and args[0].shape[0] % mesh.shape[DATA] == 0
    rows = PartitionSpec(DATA if divides else None)
    return jax.shard_map(call, in_specs=rows, out_specs=rows, check_vma=False)(*args)


def _call(kernel: Kernel, unseen: tuple[Any, Any, Any], tree: Any, first: int, *args: Array) -> tuple[Array, ...]:
    """The kernel for rows of a batch.

    Args:
      unseen: the shapes of queries, of all keys and of the layer's input.
      first: the slot of the chunk's first token.
      args: products [B, T, K, G, M], or [B, T, K, M] for G of 1; position, token and seen [B, 1, T]; budget and
        pinned [B, 1, 2]; positions [B, #K, M] and statistics before.

    Returns:
      What every token sees [B, T, #K, M] int32, and positions and statistics after the last.
    """
    rows, *numbers, positions = args[:6]
    before = args[5:]
    batch, count, heads, slots = rows.shape[0], rows.shape[1], rows.shape[2], rows.shape[-1]
    group = rows.shape[3] if rows.ndim == 5 else 1
    size = count
    if kernel.platform == "tpu":  # a GPU reads products from its memory, token by token
        row = tiled(heads, group, slots)
        size = min(count, max(1, BLOCK // row))
    seen = jax.ShapeDtypeStruct((batch, count, *positions.shape[1:]), jnp.int32)
    width = power(slots) if kernel.platform == "cuda" else slots  # Triton's arrays have lengths that are powers of two

    def padded(shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(width if length == slots else length for length in shape)

    def part(leaf: Any) -> pl.BlockSpec:  # [B, T, ...]: a block of tokens
        rest = (0,) * (leaf.ndim - 2)
        return pl.BlockSpec((None, size, *padded(leaf.shape[2:])), lambda row, block: (row, block, *rest))

    def whole(leaf: Any, **options: Any) -> pl.BlockSpec:  # [B, ...]
        rest = (0,) * (leaf.ndim - 1)
        return pl.BlockSpec((None, *padded(leaf.shape[1:])), lambda row, block: (row, *rest), **options)

    made = pl.pallas_call(
        partial(_step_over, kernel, unseen, tree, (count, size, first, slots)),
        grid=(batch, -(-count // size)),
        out_shape=[seen, *(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in before)],
        in_specs=[part(rows), *(whole(leaf, **_scalars(kernel)) for leaf in numbers), *map(whole, before)],
        out_specs=[part(seen), *map(whole, before)],
        interpret=kernel.interpret,
        name=f"{type(kernel.policy).__name__.lower()}_chunk",
        **_options(kernel),
    )(*args)
    return tuple(made)


def _step_over(
    kernel: Kernel, unseen: tuple[Any, Any, Any], tree: Any, sizes: tuple[int, int, int, int], *refs: Any
) -> None:
    """The kernel: a block of tokens, one after the other, each block with what the one before has left.

    Args:
      sizes: of the chunk and of a block, the slot of the chunk's first token, and how many slots there are.
      refs: what `_call` is given and returns, of one row and block.
    """
    query, keys, hidden = unseen  # `why_not` has made sure that their shapes are enough
    count, size, first, slots = sizes
    leaves = 1 + tree.num_leaves  # positions and statistics
    products, position, token, seen, limits, *others = refs
    before, (visible, *after) = others[:leaves], others[leaves:]
    keys = keys.update(shape=(keys.shape[0], before[0].shape[1], keys.shape[2]))
    block = pl.program_id(1) if count > size else 0
    if count > size:  # blocks follow each other on the same core, and find what was written

        @pl.when(block == 0)
        def _() -> None:
            for target, source in zip(after, before, strict=True):
                target[...] = source[...]

        before = after

    def one(step: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        now = block * size + step
        positions, *stats = carry
        context = StepContext(
            token=token[0, now],
            position=position[0, now],
            seen=seen[0, now],
            angles=None,
            mode=kernel.mode,
            hidden=hidden,
        )
        pinned = limits[0, 1] if kernel.policy.prompt else None
        stats = jax.tree.unflatten(tree, stats)
        layer = LayerState(keys, keys, positions, stats, limits[0, 0], pinned=pinned, index=kernel.index)
        layer, sees = hold_next(kernel.policy, layer, first + now, context.position)
        probs = _softmax(_read(products.at[step], slots, products.ndim - 2), sees, kernel.width)
        due = is_due(kernel.policy, layer)
        layer = observe_and_forget(kernel.policy, layer, probs, query, context, kernel.index, due, kernel.window)
        _write(visible.at[step], jnp.where(sees, 1, 0).astype(jnp.int32), slots)
        return (layer.positions, *jax.tree.leaves(layer.stats))

    fresh = kernel.policy.init(*before[0].shape)
    start = tuple(
        _read(ref, slots, 1, leaf) for ref, leaf in zip(before, [EMPTY, *jax.tree.leaves(fresh)], strict=True)
    )
    steps = size if count % size == 0 else jnp.minimum(size, count - block * size)
    for target, leaf in zip(after, lax.fori_loop(0, steps, one, start), strict=True):
        _write(target, leaf, slots)


def _read(ref: Any, slots: int, axis: int, other: Any = 0) -> Array:
    """All of it, with something else in the slots that are there only for a power of two."""
    if ref.shape[axis] == slots:
        return ref[...]
    from jax.experimental.pallas import triton

    real = lax.broadcasted_iota(jnp.int32, ref.shape, axis) < slots
    return jnp.where(real, triton.load(ref, mask=real, other=0), jnp.asarray(other, ref.dtype))


def _write(ref: Any, leaf: Array, slots: int) -> None:
    """Into all of it but the slots [.., slots, ..] of axis 1 that are not there."""
    if ref.shape[1] == slots:
        ref[...] = leaf
        return
    from jax.experimental.pallas import triton

    triton.store(ref, leaf, mask=lax.broadcasted_iota(jnp.int32, ref.shape, 1) < slots)


def _softmax(products: Float[Array, "K *G M"], visible: Bool[Array, "#K M"], width: int) -> Float[Array, "K G M"]:
    """As `attention.softmax`; G is missing where it is 1."""
    if products.ndim == 3:
        visible = jnp.where(visible, 1, 0)[:, None] != 0  # Mosaic gives no new axis to booleans
    probs = jax.nn.softmax(jnp.where(visible, products * width**-0.5, -jnp.inf), axis=-1)
    return probs if products.ndim == 3 else probs[:, None]


def power(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def tiled(heads: int, group: int, slots: int) -> int:
    """Bytes of a token's products in a TPU's tiles."""
    outer, inner = (1, heads) if group == 1 else (heads, group)
    return 4 * outer * -(-inner // SUBLANES) * SUBLANES * -(-slots // LANES) * LANES


def _scalars(kernel: Kernel) -> dict[str, Any]:
    """Where numbers of a token lie."""
    if kernel.platform != "tpu":
        return {}
    from jax.experimental.pallas import tpu

    return {"memory_space": tpu.SMEM}


def _options(kernel: Kernel) -> dict[str, Any]:
    if kernel.platform == "tpu":
        from jax.experimental.pallas import tpu

        return {"compiler_params": tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))}
    from jax.experimental.pallas import triton

    return {"compiler_params": triton.CompilerParams(num_warps=WARPS, num_stages=1)}
