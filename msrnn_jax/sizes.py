"""Bytes by arithmetic: of weights, of a row's state, of what a step needs besides, and how many rows fit."""

import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp

from msrnn_jax.checks import Budget
from msrnn_jax.config import Config
from msrnn_jax.layers import wide
from msrnn_jax.params import Params, is_low_rank
from msrnn_jax.policies import Policy
from msrnn_jax.slots import init_state

GIB = 2**30
UNITS = {"": 1, "B": 1}
UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)}


def parse_bytes(name: str, text: str) -> int:
    """Reads a size such as 24GiB, 1.5 GB, 512MiB or 1000000 (bytes); large and small letters are the same.

    Args:
      name: what is being read, for the error.

    Raises:
      ValueError: for what is no number with one of these units, or less than one byte.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text, re.ASCII)
    if match is None or match[2].upper() not in UNITS:
        raise ValueError(f"{name} is {text!r}; it must be a number of bytes, or one with a unit such as 24GiB or 512MB")
    size = float(match[1]) * UNITS[match[2].upper()]
    if not 1 <= size < math.inf:
        raise ValueError(f"{name} is {text!r}; it must be at least one byte, and finite")
    return int(size)


def spell_bytes(count: int | float) -> str:
    """Bytes in the largest binary unit of which there is at least one, with three digits: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB" if abs(count) < 999.5 else f"{count:,.0f} TiB"


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, in a tree."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def part_sizes(params: Params) -> dict[str, int]:
    """How many numbers every part of the weights has; weights may be shapes alone.

    Returns:
      Counts by the names embedding, attention, mlp, norms and unembedding (0 where it is the embedding), and adapters
      where there are any.
    """
    parts: dict[str, int] = {name: 0 for name in ("embedding", "attention", "mlp", "norms", "unembedding")}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_low_rank):
        if is_low_rank(leaf):
            parts["adapters"] = parts.get("adapters", 0) + leaf.adapter.down.size + leaf.adapter.up.size
        parts[_part_of(path[-1].name)] += math.prod(leaf.shape)
    return parts


def _part_of(name: str) -> str:
    if name in ("embedding", "unembedding"):
        return name
    if name.endswith("norm"):
        return "norms"
    return "mlp" if name.removesuffix("_bias") in ("gate", "up", "down") else "attention"


def state_bytes(config: Config, policy: Policy, budget: Budget, **settings: Any) -> int:
    """Bytes of one multi-state, never made; `settings` are those of `init_state`."""
    return tree_bytes(jax.eval_shape(lambda: init_state(config, policy, budget, **settings)))


def working_bytes(config: Config, policy: Policy, budget: Budget) -> int:
    """What a step needs for one row beside its state, at most.

    Logits and the residual stream; for one layer at a time either the row's attention over its slots (products,
    mask, probabilities, and as much again for what the policy makes of them) or the MLP's middle; and positions
    and statistics of all layers once more, since unlike keys and values they are not written in place.
    """
    state = jax.eval_shape(lambda: init_state(config, policy, budget))
    again = sum(tree_bytes((layer.positions, layer.stats)) for layer in state.layers)
    attention = 4 * config.num_heads * max(layer.num_slots for layer in state.layers)
    middle = 3 * config.mlp_dim
    return again + wide(config.dtype).itemsize * (config.vocab_size + config.model_dim + max(attention, middle))


def largest_batch(memory: int, weights: int, row: int) -> int:
    """How many rows of so many bytes fit beside the weights."""
    return max(0, (memory - weights) // row)


def memory_here() -> tuple[int, str]:
    """Bytes that arrays of the default device may take, and whose they are.

    Raises:
      ValueError: where neither the device nor the operating system tells.
    """
    device = jax.local_devices()[0]
    facts = device.memory_stats() or {}
    if "bytes_limit" in facts:
        return int(facts["bytes_limit"]), f"{device.platform} {device.device_kind}, what JAX may take of it"
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine's RAM"
    except (AttributeError, ValueError, OSError):
        raise ValueError("the memory of this machine is unknown; give --memory, such as --memory 24GiB") from None
