"""Running averages over streams: how the loss grows with the length of what was read."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from experiments.common.estimates import by, ratio
from msrnn_jax.evaluation.summary import perplexity_from
from msrnn_jax.io.journal import Line
from msrnn_jax.text.display import decimals

SHOWN = 6  # lengths in a table


def summarise(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row for every policy and way to rotate keys.

    Returns:
      `lengths`, tokens read, at the end of every block; `perplexity`, the running average up to there: the exponential
      of the mean loss of all tokens so far, over all books; `nll` and its standard error over books, `stderr` (nan for
      one book).
    """
    return [_row(policy, positions, mine) for (policy, positions), mine in by(lines, "policy", "positions").items()]


def running(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Sums of losses up to the end of every block, and the tokens these are of."""
    nats = np.asarray([math.nan if value is None else value for value in line["nats"]], np.float64)
    return nats.cumsum(), np.cumsum(line["tokens"])


def _row(policy: str, positions: str, lines: Sequence[Line]) -> dict[str, Any]:
    sums, counts = zip(*map(running, lines), strict=True)
    means = [ratio(*column) for column in zip(np.stack(sums, axis=1), np.stack(counts, axis=1), strict=True)]
    return {
        "policy": policy,
        "positions": positions,
        "budget": lines[0]["setting"]["budget"],
        "books": len(lines),
        "lengths": counts[0].tolist(),
        "perplexity": [perplexity_from(mean.value) for mean in means],
        "nll": [mean.value for mean in means],
        "stderr": [mean.stderr for mean in means],
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The running averages at some lengths, each twice the one before, and at the end."""
    lengths = rows[0]["lengths"]
    last = len(lengths) - 1
    places = sorted({last, *(max(0, (last + 1) // 2**power - 1) for power in range(1, SHOWN))})
    made = Table("policy", "positions", "books", title=f"running perplexity, budget {rows[0]['budget']}, after tokens")
    for place in places:
        made.add_column(f"{lengths[place]:,}", justify="right", no_wrap=True)
    for row in rows:
        cells = [decimals(row["perplexity"][place], 2) for place in places]
        made.add_row(row["policy"], row["positions"], str(row["books"]), *cells)
    return made
