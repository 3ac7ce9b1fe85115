"""Low-rank adapters (LoRA, arXiv:2106.09685) beside the weights of a model: made, put on, taken off, merged."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from msrnn_jax.config import Config, at_least_float32
from msrnn_jax.params import MATRICES, Adapter, LowRank, Params, abstract_params, is_low_rank, without_adapters
from msrnn_jax.recurrence.checks import check_dtype, check_int, check_params

Adapters = tuple[dict[str, Adapter], ...]  # of every layer, by the name of the weight


def init_adapters(
    config: Config, rank: int, key: Array, *, weights: Sequence[str] = MATRICES, dtype: str | None = None
) -> Adapters:
    """New adapters for every layer, which change nothing yet.

    `down` is normal with deviation 1 / sqrt(fan-in), `up` is 0. There is no factor alpha / rank: what it would scale is
    the learning rate of `down` and the size of its first values.

    Args:
      rank: R of all adapters, from 1.
      weights: the names of the matrices that get one, among query, key, value, output, gate, up and down.
      dtype: by default the config's.

    Raises:
      ValueError: for a rank below 1, and for a name that is no matrix of a layer.
    """
    check_int("rank", rank, 1)
    for name in weights:
        if name not in MATRICES:
            raise ValueError(f"weight {name!r} takes no adapter; it must be one of {', '.join(MATRICES)}")
    kind = check_dtype(config.dtype if dtype is None else dtype)
    layers = abstract_params(config).layers
    names = list(dict.fromkeys(weights))
    keys = iter(jax.random.split(key, max(1, len(layers) * len(names))))

    def one(fan_in: int, fan_out: int) -> Adapter:
        down = jax.random.normal(next(keys), (fan_in, rank), jnp.float32) * fan_in**-0.5
        return Adapter(down.astype(kind), jnp.zeros((rank, fan_out), kind))

    return tuple({name: one(*getattr(layer, name).shape) for name in names} for layer in layers)


def attach_adapters(config: Config, params: Params, adapters: Adapters) -> Params:
    """The model with adapters put on: wherever params are taken, these are too, with the same weights, not copied.

    Raises:
      ValueError: where adapters do not fit the weights, or one is on already.
    """
    if len(adapters) != len(params.layers):
        raise ValueError(f"adapters are for {len(adapters)} layers; the model has {len(params.layers)}")
    layers = []
    for index, (layer, own) in enumerate(zip(params.layers, adapters, strict=True)):
        unknown = [name for name in own if name not in MATRICES]
        if unknown:
            raise ValueError(f"weight {unknown[0]!r} takes no adapter; it must be one of {', '.join(MATRICES)}")
        on = [name for name in own if isinstance(getattr(layer, name), LowRank)]
        if on:
            raise ValueError(f"layer {index}: {on[0]} has an adapter already; merge it or take it off")
        layers.append(layer.replace(**{name: LowRank(getattr(layer, name), one) for name, one in own.items()}))
    params = params.replace(layers=tuple(layers))
    check_params(config, params)
    return params


def detach_adapters(params: Params) -> tuple[Params, Adapters]:
    """The model as it is without its adapters, and these: what `attach_adapters` puts together."""
    found = tuple(
        {name: leaf.adapter for name, leaf in vars(layer).items() if isinstance(leaf, LowRank)}
        for layer in params.layers
    )
    return without_adapters(params), found


def merge_adapters(params: Params) -> Params:
    """The model with its adapters added into the weights, in at least float32, in the weights' own dtype."""
    multiply = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    return jax.tree.map(
        lambda leaf: merge_weight(leaf, multiply) if is_low_rank(leaf) else leaf, params, is_leaf=is_low_rank
    )


def merge_weight(leaf: LowRank, multiply: Callable[[Any, Any], Any]) -> Any:
    """A weight with its adapter added, by the `matmul` of JAX, or of numpy for arrays of that."""
    kind = at_least_float32(leaf.weight.dtype)
    down, up = leaf.adapter.down.astype(kind), leaf.adapter.up.astype(kind)
    return (leaf.weight.astype(kind) + multiply(down, up)).astype(leaf.weight.dtype)
