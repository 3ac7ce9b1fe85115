"""Perplexity results as rows that say what they are: shared by the command and the experiments."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from msrnn_jax.checkpoint import fingerprint, load
from msrnn_jax.config import Config
from msrnn_jax.evaluate import segment_texts
from msrnn_jax.params import Params
from msrnn_jax.policies import parse_policy
from msrnn_jax.record import finite, provenance, text_hash
from msrnn_jax.sweep import check_settings, sweep
from msrnn_jax.texts import default_text, read_texts
from msrnn_jax.tokenizer import load_tokenizer


class Inputs(NamedTuple):
    """A model and the segments it reads."""

    config: Config
    params: Params
    segments: np.ndarray  # [B, T] int32, padded on the right
    lengths: np.ndarray  # [B] int32
    text_hash: str

    @property
    def tokens(self) -> int:
        """Predicted tokens: all but the first of every segment."""
        return int((self.lengths - 1).sum())


def read_inputs(
    checkpoint: str, texts: Sequence[str] | None, size: int, most: int = 0, dtype: str | None = None
) -> Inputs:
    """Loads a model and cuts texts into segments of `size` tokens.

    Args:
      texts: paths; None for the default text.
      most: keep the first segments only; 0 keeps all.
    """
    contents = read_texts(texts) if texts else [default_text()]
    tokenizer = load_tokenizer(checkpoint)
    segments, lengths = segment_texts([tokenizer.encode(content) for content in contents], size, most)
    config, params = load(checkpoint, dtype=dtype)
    return Inputs(config, params, segments, lengths, text_hash("\0".join(contents)))


def origin(inputs: Inputs) -> dict[str, Any]:
    """What was measured on what, as JSON values: the same for every row of a run."""
    return {
        "segment": inputs.segments.shape[1],
        "text_sha256": inputs.text_hash,
        "model_sha256": fingerprint(inputs.params),
        "dtype": inputs.config.dtype,
        **provenance(),
    }


def measure(
    inputs: Inputs,
    policies: Sequence[str],
    budgets: Sequence[int],
    *,
    batch: int = 4,
    positions: str = "absolute",
    report: Callable[[str], None] = lambda message: None,
) -> Iterator[dict[str, Any]]:
    """Perplexity of every policy at every budget, one JSON-ready row for each pair.

    A policy that forgets nothing is measured once, with room for a whole segment: budgets do not apply to it.
    """
    full = [int(inputs.lengths.max()) - 1]
    plans = [(policy, list(budgets) if policy.forgets else full) for policy in map(parse_policy, policies)]
    for policy, mine in plans:  # a mistake in the last setting must not cost the work on the first
        check_settings(inputs.config, policy, inputs.lengths, mine, batch=batch, positions=positions)
    for policy, mine in plans:
        total = len(mine) * len(inputs.segments)
        report(f"{policy}: {total} rows")
        results = sweep(
            inputs.config,
            policy,
            inputs.params,
            inputs.segments,
            inputs.lengths,
            mine,
            batch=batch,
            positions=positions,
            report=lambda done, name=str(policy), total=total: report(f"{name}: {done} of {total} rows"),
        )
        for budget, result in zip(mine, results, strict=True):
            bits = result.nll / math.log(2)
            setting = {"policy": str(policy), "budget": budget, "positions": positions}
            yield finite({**setting, **result._asdict(), "bits_per_token": bits})


def decimals(value: float | None, places: int) -> str:
    """A number of a row for reading, `-` where it is none (nan, inf)."""
    return "-" if value is None else f"{value:.{places}f}"
