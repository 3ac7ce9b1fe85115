"""The weights of a LLaMA as a pytree, and the one table of their axes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from msrnn_jax.config import Config
from msrnn_jax.io.shapes import spell_node

MATRICES = ("query", "key", "value", "output", "gate", "up", "down")  # of a layer; they take an adapter


class Adapter(struct.PyTreeNode):
    """What a low-rank adapter adds to a weight [I, O]: the product of `down` and `up`. It has no bias and no scale."""

    down: Array  # [I, R]
    up: Array  # [R, O]

    def __repr__(self) -> str:
        return spell_node(self)


class LowRank(struct.PyTreeNode):
    """A weight with a low-rank adapter (LoRA, arXiv:2106.09685) beside it, which `layers.project` adds.

    It stands in the place of a matrix of a decoder layer; see `attach_adapters`.
    """

    weight: Array  # [I, O]
    adapter: Adapter

    def __repr__(self) -> str:
        return spell_node(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.weight.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Of the weight."""
        return self.weight.dtype


def is_low_rank(leaf: Any) -> bool:
    """Whether a node of params is a weight with an adapter; for `jax.tree.map(..., is_leaf=is_low_rank)`."""
    return isinstance(leaf, LowRank)


def without_adapters(params: Any) -> Any:
    """The same tree with weights alone where there were `LowRank` ones."""
    return jax.tree.map(lambda leaf: leaf.weight if is_low_rank(leaf) else leaf, params, is_leaf=is_low_rank)


class LayerParams(struct.PyTreeNode):
    """One decoder layer. A bias, or a norm of queries and keys, is None where the config has none.

    A matrix may be a `LowRank` one. Heads and their width are one axis: a TPU stores the last two axes in tiles, and
    multiplies a matrix as it is stored, but a copy of what has three axes.
    """

    attention_norm: Array  # [D]
    query: Array  # [D, N * H]
    key: Array  # [D, K * H]
    value: Array  # [D, K * H]
    output: Array  # [N * H, D]
    mlp_norm: Array  # [D]
    gate: Array  # [D, F]
    up: Array  # [D, F]
    down: Array  # [F, D]
    query_bias: Array | None = None  # [N * H]
    key_bias: Array | None = None  # [K * H]
    value_bias: Array | None = None  # [K * H]
    output_bias: Array | None = None  # [D]
    query_norm: Array | None = None  # [H]
    key_norm: Array | None = None  # [H]
    gate_bias: Array | None = None  # [F]
    up_bias: Array | None = None  # [F]
    down_bias: Array | None = None  # [D]

    def __repr__(self) -> str:
        return spell_node(self)


class Params(struct.PyTreeNode):
    """All weights. `unembedding` is None where it is tied to the embedding."""

    embedding: Array  # [V, D]
    layers: tuple[LayerParams, ...]
    final_norm: Array  # [D]
    unembedding: Array | None = None  # [D, V]

    def __repr__(self) -> str:
        return spell_node(self)


def param_axes(config: Config) -> Params:
    """The axes of every weight, as a tree of strings shaped like the params: "D NH" is [D, N * H].

    Shapes, initial values, checkpoints and sharding names are all read off this tree.
    """
    attention, mlp, norm = config.attention_bias, config.mlp_bias, config.qk_norm
    layer: Any = LayerParams(  # strings stand where arrays will
        **{
            "attention_norm": "D",
            "query": "D NH",
            "key": "D KH",
            "value": "D KH",
            "output": "NH D",
            "mlp_norm": "D",
            "gate": "D F",
            "up": "D F",
            "down": "F D",
            "query_bias": "NH" if attention else None,
            "key_bias": "KH" if attention else None,
            "value_bias": "KH" if attention else None,
            "output_bias": "D" if config.output_bias else None,
            "query_norm": "H" if norm else None,
            "key_norm": "H" if norm else None,
            "gate_bias": "F" if mlp else None,
            "up_bias": "F" if mlp else None,
            "down_bias": "D" if mlp else None,
        }  # pyright: ignore[reportArgumentType]
    )
    tree: dict[str, Any] = {
        "embedding": "V D",
        "layers": (layer,) * config.num_layers,
        "final_norm": "D",
        "unembedding": None if config.tied_embeddings else "D V",
    }
    return Params(**tree)


def axis_lengths(config: Config) -> dict[str, int]:
    """How long each lettered axis is."""
    return {
        "V": config.vocab_size,
        "D": config.model_dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "F": config.mlp_dim,
    }


def shape_of(config: Config, axes: str) -> tuple[int, ...]:
    """The shape of a weight, by its axes as `param_axes` says them."""
    length = axis_lengths(config)
    return tuple(math.prod(length[letter] for letter in axis) for axis in axes.split())


def shapes_by_head(config: Config, params: Params) -> Params:
    """What `params` are in files and fingerprints: a tree of shapes in which heads and their width are two axes."""
    length = axis_lengths(config)

    def shape(axes: str, leaf: Any) -> Any:
        sides = [tuple(length[letter] for letter in axis) for axis in axes.split()]
        whole = sum(sides, ())
        if not is_low_rank(leaf):
            return whole
        rank = leaf.adapter.down.shape[-1:]
        return LowRank(whole, Adapter((*sides[0], *rank), (*rank, *sides[1])))  # pyright: ignore[reportArgumentType]

    return jax.tree.map(shape, param_axes(config), params)


def abstract_params(config: Config) -> Params:
    """Shapes and dtypes of all weights, without any memory behind them."""
    dtype = jnp.dtype(config.dtype)
    return jax.tree.map(lambda axes: jax.ShapeDtypeStruct(shape_of(config, axes), dtype), param_axes(config))


def init_params(config: Config, key: Array) -> Params:
    """Random weights: ones for the norms, zeros for biases, else normal with deviation 1 / sqrt(fan-in)."""
    dtype = jnp.dtype(config.dtype)
    paths, tree = jax.tree_util.tree_flatten_with_path(param_axes(config))
    keys = jax.random.split(key, len(paths))
    leaves = []
    for (path, axes), leaf_key in zip(paths, keys, strict=True):
        shape = shape_of(config, axes)
        name = path[-1].name
        if name.endswith("norm"):
            leaves.append(jnp.ones(shape, dtype))
        elif name.endswith("bias"):
            leaves.append(jnp.zeros(shape, dtype))
        else:
            scale = 1.0 if name == "embedding" else shape[0] ** -0.5
            leaves.append((scale * jax.random.normal(leaf_key, shape, jnp.float32)).astype(dtype))
    return jax.tree.unflatten(tree, leaves)
