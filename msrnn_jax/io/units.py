"""Bytes: read, spelled and counted."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

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
