"""The record of one passage as text in a result line, for the pictures of what every layer keeps."""

import base64
import zlib
from typing import Any

import numpy as np
from jaxtyping import Int

from msrnn_jax.io.journal import Line


def pack(freed: Int[np.ndarray, "L #K T"]) -> dict[str, Any]:
    """`map`, base64 of zlib of little-endian int32, and its `shape`: layers, rows, tokens."""
    content = zlib.compress(np.ascontiguousarray(freed, "<i4").tobytes(), 9)
    return {"map": base64.b64encode(content).decode("ascii"), "shape": list(freed.shape)}


def unpack(line: Line) -> Int[np.ndarray, "L #K T"]:
    """The step after which every token was freed, as `lifetimes.follow` says: token p is held after step t
    exactly if p <= t < freed[p]."""
    content = zlib.decompress(base64.b64decode(line["map"]))
    return np.frombuffer(content, "<i4").reshape(line["shape"])


def fits(line: Line) -> bool:
    """Whether the record is one, of its shape."""
    try:
        return unpack(line).ndim == 3
    except (ValueError, TypeError, zlib.error):
        return False
