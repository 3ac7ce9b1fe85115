"""Bytes by arithmetic, of weights, states and work; the memory there is, and how many rows fit into it."""

import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msrnn_jax.config import Config, at_least_float32
from msrnn_jax.io.units import tree_bytes
from msrnn_jax.model.extend import CHUNK
from msrnn_jax.params import Params, is_low_rank
from msrnn_jax.policies import Policy
from msrnn_jax.policies.budgets import largest_budget, rows_for
from msrnn_jax.recurrence.checks import Budget, Slots
from msrnn_jax.recurrence.slots import init_state

USABLE = 0.8  # of what is free: the arithmetic counts arrays, not what is lost between them
MOST_ON_CPU = 4  # more rows are no faster there, and lose the caches
GUESS = 2**31  # bytes free, where nobody says


def automatic_batch(
    config: Config, policy: Policy, slots: Slots, width: int, rows: int, *, positions: str, fidelity: bool
) -> int:
    """The largest power of two of rows that fits into memory, at most `rows`, and on CPU at most 4."""
    device = jax.local_devices()[0]
    most = max(1, int(USABLE * free_bytes()) // row_bytes(config, policy, slots, width, positions, fidelity))
    if device.platform == "cpu":
        most = min(most, MOST_ON_CPU)
    return min(1 << (most.bit_length() - 1), rows)


def row_bytes(config: Config, policy: Policy, slots: Slots, width: int, positions: str, fidelity: bool) -> int:
    """What one row takes beside the weights: its state, one chunk's temporaries, and what is kept of its tokens.

    Args:
      slots: of each layer, one number or one per layer.
      width: tokens of a segment.
    """
    each = [int(count) for count in np.broadcast_to(np.asarray(slots), config.num_layers)]
    rows = rows_for(policy, config.num_kv_heads)
    budgets = [largest_budget(policy, count, rows) for count in each]
    held = state_bytes(config, policy, budgets, slots=each, positions=positions)
    count = width - 1
    chunk = -(-count // -(-count // CHUNK))  # as `scan_chunks` cuts them
    candidates = max(each) + chunk
    size, number = at_least_float32(config.dtype).itemsize, jnp.dtype(config.dtype).itemsize
    # One layer at a time: products, masked logits, probabilities and what a policy makes of them; slots joined with
    # the chunk's keys and values, and the keys turned where places depend on what is held.
    attention = 4 * size * config.num_heads * chunk * candidates
    heads = config.num_kv_heads * candidates * config.head_dim
    attention += 4 * number * heads + (0 if positions == "absolute" else 2 * size * heads)
    middle = 3 * size * chunk * config.mlp_dim
    logits = (6 if fidelity else 2) * size * chunk * config.vocab_size
    kept = count * (16 + (2 * number * config.model_dim if fidelity else 0))
    return 2 * held + max(attention, middle, logits) + kept


def free_bytes() -> int:
    """Memory that is free on the device; the machine's on CPU, or what its container may still take."""
    facts = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in facts:
        return facts["bytes_limit"] - facts.get("bytes_in_use", 0)
    known = [value for value in (_available(), _container()) if value is not None]
    return max(0, min(known)) if known else GUESS


def _available() -> int | None:
    """What Linux says could be taken without swapping; elsewhere the free pages, where they are counted."""
    try:
        for line in pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _container(folder: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> int | None:
    """What is left of a control group's limit, version 2 and 1; None without one."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return int((folder / limit).read_text()) - int((folder / used).read_text())
        except (OSError, ValueError):  # "max": no limit
            continue
    return None


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

    Logits and the residual stream; whatever is most of: one layer's attention over its slots (products, mask,
    probabilities, and as much again for what the policy makes of them), the MLP's two products into its middle, which
    a GPU sums in four parts, and the logits in two; and positions and statistics of all layers once more, since unlike
    keys and values they are not written in place. `experiments.device_memory --check` holds it against compilers.
    """
    state = jax.eval_shape(lambda: init_state(config, policy, budget))
    again = sum(tree_bytes((layer.positions, layer.stats, layer.row_stats)) for layer in state.layers)
    attention = 4 * config.num_heads * max(layer.num_slots for layer in state.layers)
    products = max(attention, 4 * 2 * config.mlp_dim, 2 * config.vocab_size)
    return again + at_least_float32(config.dtype).itemsize * (config.vocab_size + config.model_dim + products)


def largest_batch(memory: int, weights: int, row: int) -> int:
    """How many rows of so many bytes fit beside the weights."""
    return max(0, (memory - weights) // row)


def total_memory() -> tuple[int, str]:
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
