"""How many rows of a measurement run at once: by arithmetic on what a row takes and on the memory there is."""

import os
import pathlib

import jax
import jax.numpy as jnp

from msrnn_jax.config import Config
from msrnn_jax.extend import CHUNK
from msrnn_jax.layers import wide
from msrnn_jax.policies import Policy
from msrnn_jax.sizes import state_bytes

USABLE = 0.8  # of what is free: the arithmetic counts arrays, not what is lost between them
MOST_ON_CPU = 4  # more rows are no faster there, and lose the caches
GUESS = 2**31  # bytes free, where nobody says


def automatic_batch(
    config: Config, policy: Policy, slots: int, width: int, rows: int, *, positions: str, fidelity: bool
) -> int:
    """The largest power of two of rows that fits into memory, at most `rows`, and on CPU at most 4."""
    device = jax.local_devices()[0]
    most = max(1, int(USABLE * free_bytes()) // row_bytes(config, policy, slots, width, positions, fidelity))
    if device.platform == "cpu":
        most = min(most, MOST_ON_CPU)
    return min(1 << (most.bit_length() - 1), rows)


def row_bytes(config: Config, policy: Policy, slots: int, width: int, positions: str, fidelity: bool) -> int:
    """What one row takes beside the weights: its state, one chunk's temporaries, and what is kept of its tokens.

    Args:
      slots: of each layer.
      width: tokens of a segment.
    """
    held = state_bytes(config, policy, slots - 1, positions=positions)
    count = width - 1
    chunk = -(-count // -(-count // CHUNK))  # as `read` cuts them
    candidates = slots + chunk
    size, number = wide(config.dtype).itemsize, jnp.dtype(config.dtype).itemsize
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
