"""The rotary settings of a GGUF file, from its metadata and from its factors."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from msrnn_jax.config import Rope
from msrnn_jax.recurrence.rotary import inverse_frequencies

from ..problems import shown
from ..tensors import Stored
from .architectures import Architecture
from .metadata import number, shortest
from .tensors import PLAIN

FACTORS = "rope_freqs.weight"
KEYS = (
    "rope.freq_base",
    "rope.scale_linear",  # an old name of the next but one
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",  # a note
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
)
SCALINGS = ("none", "linear", "yarn")


def read_rope(metadata: Mapping[str, Any], name: str, architecture: Architecture, problems: list[str]) -> Rope:
    """The rotary settings that the metadata state; what cannot be honoured is added to `problems`.

    Args:
      name: of the architecture, the prefix of its keys.
    """
    stated = next(
        (key for end in ("rope.scaling.factor", "rope.scale_linear") if (key := f"{name}.{end}") in metadata), None
    )
    factor = 1.0
    if stated is not None and metadata[stated] != 0:  # as in llama.cpp, 0 is no scaling
        factor = number(metadata, stated, 1.0, problems)
    scaling = metadata.get(f"{name}.rope.scaling.type", "none" if stated is None else "linear")
    if scaling not in SCALINGS:
        problems.append(f"{name}.rope.scaling.type {shown(scaling)} (must be one of {', '.join(SCALINGS)})")
    values: dict[str, Any] = {"theta": number(metadata, f"{name}.rope.freq_base", 10000.0, problems)}
    if scaling in ("linear", "yarn") and stated is None:
        problems.append(f"missing key '{name}.rope.scaling.factor'")
    elif scaling == "linear" and factor != 1:
        values |= {"kind": "linear", "factor": factor}
    elif scaling == "yarn":
        values |= {"kind": "yarn", "factor": factor, **_read_yarn(metadata, name, architecture, factor, problems)}
    try:
        return Rope(**values)
    except ValueError as error:
        problems.append(f"{name}.rope: {error}")
        return Rope()


def _read_yarn(
    metadata: Mapping[str, Any], name: str, architecture: Architecture, factor: float, problems: list[str]
) -> dict[str, Any]:
    """The settings of YaRN, by our names.

    The converter writes transformers' `attention_factor` as `yarn_attn_factor`. Where it is not given, the factor
    is the usual one, divided by that of `yarn_log_multiplier` (transformers' `mscale_all_dim`) where that counts.
    """
    length = f"{name}.rope.scaling.original_context_length"
    original = metadata.get(length, metadata.get(f"{name}.context_length"))
    if type(original) is not int or original < 1:
        problems.append(f"{length} is {shown(original)}; it must be a positive integer")
        original = 1
    attention, multiplier = f"{name}.rope.scaling.yarn_attn_factor", f"{name}.rope.scaling.yarn_log_multiplier"
    values: dict[str, Any] = {
        "original_length": original,
        "beta_fast": number(metadata, f"{name}.rope.scaling.yarn_beta_fast", 32.0, problems),
        "beta_slow": number(metadata, f"{name}.rope.scaling.yarn_beta_slow", 1.0, problems),
    }
    if attention in metadata:
        values["attention_factor"] = number(metadata, attention, 1.0, problems)
    if metadata.get(multiplier, 0) != 0:
        all_dims = number(metadata, multiplier, 1.0, problems)
        if not architecture.log_multiplier:
            problems.append(f"{multiplier} {shown(metadata[multiplier])} (must be 0 in a {name} file)")
        elif attention in metadata:
            problems.append(f"{attention} and {multiplier} cannot both be honoured")
        elif factor > 1:
            values["attention_factor"] = (0.1 * math.log(factor) + 1) / (0.1 * all_dims * math.log(factor) + 1)
    return values


def match_factors(rope: Rope, head_dim: int, tensor: Stored, problems: list[str]) -> Rope:
    """The rope whose frequencies are `rope`'s divided by these factors: Llama 3's scaling, stored as its effect.

    Args:
      tensor: [H/2], `rope_freqs.weight`.
    """
    if tensor.shape != (head_dim // 2,) or tensor.kind not in PLAIN:
        found = f"{tensor.kind} {list(tensor.shape)}"
        problems.append(f"tensor {FACTORS!r} is {found}; it must be [{head_dim // 2}], not quantised")
        return rope
    factors = tensor.read(0, head_dim // 2).astype(np.float64)
    if rope.kind != "default":
        problems.append(f"tensor {FACTORS!r} comes with scaling of type {rope.kind!r}; only one of them can be")
        return rope
    if (factors == 1).all():
        return rope
    largest = float(factors.max())
    if 1 < largest < math.inf:
        # Llama 3.1 has 8, 3.2 has 32; the rest is the same in both, and not in the file.
        scaled = Rope(theta=rope.theta, kind="llama3", factor=shortest(largest), original_length=8192)
        wanted = inverse_frequencies(rope, head_dim) / inverse_frequencies(scaled, head_dim)
        # The file's factors are float32 results of the same formula, in another order of operations.
        if np.allclose(factors, wanted, rtol=1e-4, atol=0):
            return scaled
    problems.append(f"tensor {FACTORS!r} is not the scaling of Llama 3 (low 1, high 4, original length 8192)")
    return rope
