"""Reads GGUF files of the LLaMA family: metadata, tensors (some quantised), tokenizer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msrnn_jax.config import Config

from ..problems import refuse
from ..source import Source
from ..tensors import DTYPES, Stored, check, widest
from .architectures import ARCHITECTURES
from .config import read_config
from .parts import read_model
from .rope import FACTORS, match_factors
from .tensors import PLAIN, in_half_split_order, readable_kinds, to_stored
from .tokenizer import read_tokenizer

NAMES = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "unembedding": "output.weight",
    "attention_norm": "blk.{layer}.attn_norm.weight",
    "query": "blk.{layer}.attn_q.weight",
    "key": "blk.{layer}.attn_k.weight",
    "value": "blk.{layer}.attn_v.weight",
    "output": "blk.{layer}.attn_output.weight",
    "query_norm": "blk.{layer}.attn_q_norm.weight",
    "key_norm": "blk.{layer}.attn_k_norm.weight",
    "query_bias": "blk.{layer}.attn_q.bias",
    "key_bias": "blk.{layer}.attn_k.bias",
    "value_bias": "blk.{layer}.attn_v.bias",
    "output_bias": "blk.{layer}.attn_output.bias",
    "mlp_norm": "blk.{layer}.ffn_norm.weight",
    "gate": "blk.{layer}.ffn_gate.weight",
    "up": "blk.{layer}.ffn_up.weight",
    "down": "blk.{layer}.ffn_down.weight",
    "gate_bias": "blk.{layer}.ffn_gate.bias",
    "up_bias": "blk.{layer}.ffn_up.bias",
    "down_bias": "blk.{layer}.ffn_down.bias",
}


def read_gguf(path: Path, dtype: str | None, report: Callable[[str], None], pre: str | None = None) -> Source:
    """What a file holds, or several that are parts of one model, in `dtype` or else in its own: float32 if quantised.

    Only headers are read, and the factors of the rotary frequencies. Where the file interleaves the two halves
    of every rotated query and key, they are put back in order as they are read.

    Args:
      path: of the file, the first one of several.
      pre: what to take for `tokenizer.ggml.pre`, whatever that says.

    Raises:
      ValueError: a file is unreadable, or anything in it cannot be honoured; all of the latter is listed.
    """
    (metadata, tensors), files = read_model(path)
    stored = {tensor.name: to_stored(tensor) for tensor in tensors}
    problems: list[str] = []
    embedding = stored.get(NAMES["embedding"])
    config = read_config(metadata, embedding.shape[0] if embedding else None, problems)
    facts = read_tokenizer(metadata, problems, pre)
    if config is not None:
        config = _add_facts_of_tensors(config, stored, metadata, problems)
        problems += _check(config, stored, metadata)
    refuse(path, problems)
    assert config is not None  # without problems there is one
    if facts.tokenizer is None:
        report(f"note: {path} holds no tokenizer, so the result takes and gives token ids only, no text")
    config = config.replace(dtype=dtype or _own_dtype(stored))
    if ARCHITECTURES[metadata["general.architecture"]].interleaved:
        stored = _in_half_split_order(config, stored)
    return Source(config, NAMES, stored, facts, files)


def _add_facts_of_tensors(
    config: Config, stored: dict[str, Stored], metadata: Mapping[str, Any], problems: list[str]
) -> Config:
    """What the metadata leave to the presence of tensors; takes the factors of the rotary frequencies out."""

    def any_of(*fields: str) -> bool:
        return any(NAMES[field].format(layer=0) in stored for field in fields)

    if FACTORS in stored and ARCHITECTURES[metadata["general.architecture"]].factors:
        factors = _read_factors(stored.pop(FACTORS), config.head_dim, problems)
        if factors is not None:
            config = config.replace(rope=match_factors(config.rope, config.head_dim, factors, problems))
    return config.replace(
        tied_embeddings=NAMES["unembedding"] not in stored,
        attention_bias=any_of("query_bias", "key_bias", "value_bias"),
        output_bias=any_of("output_bias"),
        mlp_bias=any_of("gate_bias", "up_bias", "down_bias"),
    )


def _read_factors(tensor: Stored, head_dim: int, problems: list[str]) -> np.ndarray | None:
    if tensor.shape != (head_dim // 2,) or tensor.kind not in PLAIN:
        found = f"{tensor.kind} {list(tensor.shape)}"
        problems.append(f"tensor {FACTORS!r} is {found}; it must be [{head_dim // 2}], not quantised")
        return None
    return tensor.read(0, head_dim // 2).astype(np.float64)


def _check(config: Config, stored: Mapping[str, Stored], metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list) else 0
    too_many = f"tokenizer.ggml.tokens holds {count} tokens, more than vocab_size ({config.vocab_size})"
    problems = [too_many] if count > config.vocab_size else []
    if config.num_layers > len(stored):  # a damaged number must not be listed layer by layer
        return [*problems, f"block_count is {config.num_layers}, but there are {len(stored)} tensors in all"]
    return [*check(config, NAMES, stored, readable_kinds()), *problems]


def _own_dtype(stored: Mapping[str, Stored]) -> str:
    if any(tensor.kind not in PLAIN for tensor in stored.values()):
        return "float32"
    return widest({DTYPES[tensor.kind] for tensor in stored.values() if len(tensor.shape) == 2})  # norms are F32 anyway


def _in_half_split_order(config: Config, stored: dict[str, Stored]) -> dict[str, Stored]:
    """The same tensors, queries and keys rotating halves instead of neighbours."""
    rotated = {
        NAMES[field].format(layer=layer)
        for field in ("query", "key", "query_bias", "key_bias")
        for layer in range(config.num_layers)
    }
    return {
        name: in_half_split_order(tensor, config.head_dim) if name in rotated else tensor
        for name, tensor in stored.items()
    }
