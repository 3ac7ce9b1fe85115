"""Many steps at once, exactly: the recurrence at the speed of a parallel forward pass."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from msrnn_jax.config import Config
from msrnn_jax.model.llama import advance, unembed
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.checks import Count, check_int, check_reading
from msrnn_jax.recurrence.indexing import expand_like
from msrnn_jax.state import MultiState

CHUNK = 128  # tokens that go through a layer together

Head = Callable[[Array, Any], Any]  # logits [C, V] and what goes with each token, leaves [C, ...], to leaves [C, ...]

# The same before the unembedding: config, params, x [C, D] and what goes with each token. Hashable, for `jit`.
ChunkHead = Callable[[Config, Params, Array, Any], Any]


@dataclasses.dataclass(frozen=True)
class Unembedded:
    """A reader that shows a head the logits; equal where its head is."""

    head: Head

    def __call__(self, config: Config, params: Params, x: Float[Array, "C D"], extras: Any) -> Any:
        return self.head(unembed(config, params, x), extras)


def logits_of(logits: Float[Array, "C V"], tokens: Int[Array, " C"]) -> Float[Array, "C V"]:
    """The head that keeps all logits."""
    del tokens
    return logits


def extend(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    tokens: Int[Array, " T"] | np.ndarray | Sequence[int],
    *,
    length: Count | Int[Array, ""] | None = None,
    chunk: Count = CHUNK,
    head: Head = logits_of,
) -> tuple[MultiState, Any]:
    """Reads many tokens: what `step` over each of them returns, with every weight read once per chunk.

    Tokens are coupled only inside a layer, through which slots are held. So a chunk goes through each layer's
    products with weights, keys and values together, and only the masks and statistics are stepped through.
    Memory is that of one chunk beside the state, whatever T; `jax.grad` computes each chunk again. Where a token
    makes the model overflow or return NaN, so do those before it in its chunk. In layers with a sliding window a token
    that no later query can see is freed, as in `step`; so a policy that forgets nothing needs W - 1 slots there.

    Args:
      tokens: padded on the right; padding writes nothing and advances nothing.
      length: how many of the tokens are real, from 1; by default all.
      chunk: the most tokens taken at once, static; a matter of speed and memory only.
      head: what is kept of a chunk's logits [C, V] and its tokens [C]: a function to arrays [C, ...]. By default
        all logits. Outside `jit`, give the same function object again to avoid another compilation.

    Returns:
      The state after the last real token, and what the head made of every token, [T, ...], 0 at padding.

    Raises:
      ValueError: for no tokens, tokens outside the vocabulary, a length outside 1 .. T, a state made for
        another config or policy, a full state that would outgrow its budget.
    """
    tokens, length = check_reading(config, policy, params, state, tokens, length)
    if not callable(head) or type(head).__hash__ is None:
        raise ValueError(f"head is {head!r}; it must be a hashable function of logits [C, V] and tokens [C]")
    chunk = check_int("chunk", chunk, 1)
    reader = Unembedded(head)
    state, _, kept = scan_chunks(config, policy, params, state, tokens, tokens, length, chunk=chunk, reader=reader)
    return state, kept


@partial(jax.jit, static_argnames=("chunk", "reader", "forgetting"))  # outside jit, a scan compiles at every call
def scan_chunks(
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    tokens: Int[Array, " T"],
    extras: Any,
    length: Int[Array, ""] | None,
    *,
    chunk: int = CHUNK,
    reader: ChunkHead | None = None,
    forgetting: bool = True,
) -> tuple[MultiState, Float[Array, " D"], Any]:
    """`extend` without its checks.

    Args:
      extras: what the reader is given with the residual stream, leaves [T, ...].
      reader: what is kept of a chunk's residual stream [C, D] after the last layer; None keeps nothing.
      forgetting: False leaves slots held beyond the budget, and there must be room for them.

    Returns:
      The state, the residual stream of the last real token, and what the reader kept.
    """
    count = tokens.shape[0]
    number = -(-count // chunk)
    size = -(-count // number)  # equal chunks, so that few rows are padding
    padding = number * size - count
    if length is not None:
        length = jnp.minimum(length, count)  # a traced one may lie outside
    elif padding:
        length = jnp.full((), count, jnp.int32)

    def cut(leaf: Array) -> Array:
        leaf = jnp.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1))
        return leaf.reshape(number, size, *leaf.shape[1:])

    def one(carry: tuple[MultiState, Array], item: tuple) -> tuple[tuple[MultiState, Array], Any]:
        state, last = carry
        tokens, extras, start = item
        index = jnp.arange(size, dtype=jnp.int32)
        real = None if length is None else start + index < length
        state, x = advance(config, policy, params, state, tokens, real=real, forgetting=forgetting)
        last = x[-1] if real is None else jnp.where(real[0], x[jnp.maximum(real.sum() - 1, 0)], last)
        return (state, last), None if reader is None else _keep(reader(config, params, x, extras), size, real)

    starts = jnp.arange(number, dtype=jnp.int32) * size
    nothing = jnp.zeros_like(params.embedding[0])
    chunks = (cut(tokens), jax.tree.map(cut, extras), starts)
    (state, last), kept = lax.scan(jax.checkpoint(one, prevent_cse=False), (state, nothing), chunks)
    kept = jax.tree.map(lambda leaf: leaf.reshape(number * size, *leaf.shape[2:])[:count], kept)
    return state, last, kept


def _keep(kept: Any, size: int, real: Array | None) -> Any:
    for leaf in jax.tree.leaves(kept):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != size:
            raise ValueError(
                f"head returned an array of shape {jnp.shape(leaf)}; its first axis must be {size}, the chunk"
            )
    if real is None:
        return kept
    return jax.tree.map(lambda leaf: jnp.where(expand_like(real, leaf), leaf, jnp.zeros_like(leaf)), kept)
