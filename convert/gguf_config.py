"""The metadata of a GGUF LLaMA, every `llama.*` key of it accounted for."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from msrnn_jax.config import Config, Rope
from msrnn_jax.rotary import inverse_frequencies

from .problems import is_count

COUNTS = {
    "llama.block_count": "num_layers",
    "llama.context_length": "max_length",
    "llama.embedding_length": "model_dim",
    "llama.feed_forward_length": "mlp_dim",
    "llama.attention.head_count": "num_heads",
}
EPSILON = "llama.attention.layer_norm_rms_epsilon"
OTHERS = (
    "llama.vocab_size",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
)

# Keys that would change what the model computes; here are the values that do not. The first is named in errors.
FIXED: dict[str, tuple[Any, ...]] = {
    "general.architecture": ("llama",),
    "general.type": ("model",),
    "split.count": (1, 0),  # files that hold a part of the tensors only
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
    "llama.attention.causal": (True,),
    "llama.rope.scale_linear": (1.0,),
    "llama.rope.scaling.attn_factor": (1.0,),
    "llama.tensor_data_layout": ("Meta AI original pth",),  # a note on where the file came from
}

# Read by YaRN alone, which is refused.
IGNORED = ("llama.rope.scaling.original_context_length", "llama.rope.scaling.finetuned")
KNOWN = {*COUNTS, EPSILON, *OTHERS, *FIXED, *IGNORED}

# Llama 3.1 and 3.2: the scalings whose factors files carry as a tensor instead of settings.
LLAMA3 = [Rope(kind="llama3", factor=factor) for factor in (8.0, 32.0)]


def read_config(
    metadata: Mapping[str, Any], vocab_size: int | None, frequencies: np.ndarray | None, problems: list[str]
) -> Config | None:
    """Our config, in float32 for now; None if the sizes are too broken to make one.

    Everything that cannot be honoured is added to `problems`.

    Args:
      vocab_size: rows of the embedding, for files that do not state it.
      frequencies: [H/2], the tensor `rope_freqs.weight`, if there is one.
    """
    for key, accepted in FIXED.items():
        if metadata.get(key, accepted[0]) not in accepted:
            problems.append(f"{key} {metadata[key]!r} (must be {accepted[0]!r})")
    problems += [
        f"unknown key {key!r} = {value!r}"
        for key, value in metadata.items()
        if key.startswith("llama.") and key not in KNOWN
    ]
    problems += [f"missing key {key!r}" for key in (*COUNTS, EPSILON) if key not in metadata]
    rope = _read_rope(metadata, problems)

    heads, width = metadata.get("llama.attention.head_count"), metadata.get("llama.embedding_length")
    usual = width // heads if is_count(heads) and is_count(width) and width % heads == 0 else None
    head_dim = metadata.get("llama.attention.key_length", usual)
    counts = {
        **{key: metadata.get(key) for key in COUNTS},
        "llama.vocab_size": metadata.get("llama.vocab_size", vocab_size),
        "llama.attention.head_count_kv": metadata.get("llama.attention.head_count_kv", heads),
        "llama.attention.key_length": head_dim,
    }
    wrong = [
        f"{key} is {value!r}; it must be a positive integer"
        for key, value in counts.items()
        if value is not None and not is_count(value)
    ]
    if head_dim is None and is_count(heads) and is_count(width):
        wrong.append(f"llama.embedding_length {width} is no multiple of llama.attention.head_count {heads}")
    if head_dim is not None:
        wrong += [
            f"{key} {metadata[key]!r} (must be {head_dim}, the width of a head)"
            for key in ("llama.attention.value_length", "llama.rope.dimension_count")
            if metadata.get(key, head_dim) != head_dim
        ]
    epsilon = metadata.get(EPSILON)
    if epsilon is not None and not (isinstance(epsilon, float) and 0 < epsilon < math.inf):
        wrong.append(f"{EPSILON} is {epsilon!r}; it must be a positive number")
    problems += wrong
    if wrong or epsilon is None or head_dim is None or None in counts.values():
        return None
    try:
        return Config(
            **{COUNTS[key]: counts[key] for key in COUNTS},
            vocab_size=counts["llama.vocab_size"],
            num_kv_heads=counts["llama.attention.head_count_kv"],
            head_dim=head_dim,
            norm_eps=_shortest(epsilon),
            rope=rope if frequencies is None else _match_frequencies(rope, head_dim, frequencies, problems),
        )
    except ValueError as error:
        problems.append(str(error))
        return None


def _read_rope(metadata: Mapping[str, Any], problems: list[str]) -> Rope:
    factor = metadata.get("llama.rope.scaling.factor")
    scaling = metadata.get("llama.rope.scaling.type", "none" if factor is None else "linear")  # as in llama.cpp
    if scaling not in ("none", "linear"):
        problems.append(f"llama.rope.scaling.type {scaling!r} (must be one of none, linear)")
    values: dict[str, Any] = {"theta": _shortest(metadata.get("llama.rope.freq_base", 10000.0))}
    if scaling == "linear":
        if factor is None:
            problems.append("missing key 'llama.rope.scaling.factor'")
        else:
            values |= {"kind": "linear", "factor": _shortest(factor)}
    try:
        return Rope(**values)
    except ValueError as error:
        problems.append(f"llama.rope: {error}")
        return Rope()


def _match_frequencies(rope: Rope, head_dim: int, frequencies: np.ndarray, problems: list[str]) -> Rope:
    """The rope whose frequencies are `rope`'s divided by these factors."""
    if rope.kind == "default" and frequencies.shape == (head_dim // 2,):
        if (frequencies == 1).all():
            return rope
        for known in LLAMA3:
            scaled = Rope(**{**known.to_dict(), "theta": rope.theta})
            factors = inverse_frequencies(rope, head_dim) / inverse_frequencies(scaled, head_dim)
            # The file's factors are float32 results of the same formula, in another order of operations.
            if np.allclose(frequencies, factors, rtol=1e-4, atol=0):
                return scaled
    problems.append(
        "tensor 'rope_freqs.weight' is neither the scaling of Llama 3.1 (factor 8) nor that of 3.2 (factor 32)"
    )
    return rope


def _shortest(value: Any) -> Any:
    """The shortest decimal that is this float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
