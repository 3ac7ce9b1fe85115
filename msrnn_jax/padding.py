"""Rows of tokens of any length as one array."""

from collections.abc import Sequence

import numpy as np


def pad(rows: Sequence[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows as `generate` and measurements take them: [B, T] int32, zeros on the right, and lengths [B] int32."""
    lengths = np.asarray([len(row) for row in rows], np.int32)
    padded = np.zeros((len(rows), int(lengths.max())), np.int32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded, lengths
