"""Reads a GGUF file of a LLaMA: metadata, tensors (some quantised), tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np

from msrnn_jax.config import Config

from .gguf_config import read_config
from .gguf_tokenizer import read_tokenizer
from .problems import refuse
from .source import Source
from .tensors import DTYPES, Stored, check, widest

NAMES = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "unembedding": "output.weight",
    "attention_norm": "blk.{layer}.attn_norm.weight",
    "query": "blk.{layer}.attn_q.weight",
    "key": "blk.{layer}.attn_k.weight",
    "value": "blk.{layer}.attn_v.weight",
    "output": "blk.{layer}.attn_output.weight",
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
FREQUENCIES = "rope_freqs.weight"
QUANTISED = ("Q8_0", "Q4_0", "Q4_1")
KINDS = ("F32", "F16", "BF16", *QUANTISED)


def read_gguf(path: Path, dtype: str | None, report: Callable[[str], None], kind: str) -> Source:
    """The checkpoint in a file, in `dtype` or else in its own: float32 if any tensor is quantised.

    The files interleave the two halves of every rotated query and key; here they are put back in order.

    Args:
      kind: what `source.json` calls the source.

    Raises:
      ValueError: the file is unreadable, or anything in it cannot be honoured; all of the latter is listed.
    """
    reader = _open(path)
    try:
        metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a readable GGUF file: its metadata is not UTF-8") from None
    stored = {tensor.name: _stored(tensor) for tensor in reader.tensors}
    problems: list[str] = []
    frequencies = stored.pop(FREQUENCIES, None)
    embedding = stored.get(NAMES["embedding"])
    config = read_config(
        metadata,
        vocab_size=embedding.shape[0] if embedding else None,
        frequencies=frequencies.read(0, frequencies.shape[0]) if frequencies else None,
        problems=problems,
    )
    facts = read_tokenizer(metadata, problems)
    if config is not None:
        config = _add_facts_of_tensors(config, stored)
        problems += check(config, NAMES, stored, KINDS)
        tokens = len(metadata.get("tokenizer.ggml.tokens", []))
        if tokens > config.vocab_size:
            problems.append(f"tokenizer.ggml.tokens holds {tokens} tokens, more than vocab_size ({config.vocab_size})")
    refuse(path, problems)
    assert config is not None  # without problems there is one

    config = config.replace(dtype=dtype or _own_dtype(stored))
    if facts.tokenizer is None:
        report(f"note: {path} holds no tokenizer, so the result takes and gives token ids only, no text")
    return Source(config, NAMES, _in_half_split_order(config, stored), facts, kind, {path.name: path})


def _open(path: Path) -> gguf.GGUFReader:
    try:
        reader = gguf.GGUFReader(path)  # maps the file
    except OSError:
        raise
    except Exception as error:  # on a broken file it fails wherever the nonsense hits: ValueError, IndexError, ...
        raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    if reader.byte_order != "I":
        raise ValueError(f"{path} is written in another byte order than this machine's")
    return reader


def _stored(tensor: gguf.ReaderTensor) -> Stored:
    shape = tuple(int(size) for size in reversed(tensor.shape))

    def read(start: int, stop: int) -> np.ndarray:
        data = tensor.data[start:stop]
        if tensor.tensor_type.name in ("F32", "F16"):
            return data.copy()
        if tensor.tensor_type.name == "BF16":
            return data.view(jnp.bfloat16).copy()
        return gguf.dequantize(data, tensor.tensor_type)

    return Stored(tensor.tensor_type.name, shape, read)


def _add_facts_of_tensors(config: Config, stored: dict[str, Stored]) -> Config:
    """What the metadata leaves to the presence of tensors."""

    def any_of(*fields: str) -> bool:
        return any(NAMES[field].format(layer=0) in stored for field in fields)

    return config.replace(
        tied_embeddings=NAMES["unembedding"] not in stored,
        attention_bias=any_of("query_bias", "key_bias", "value_bias", "output_bias"),
        mlp_bias=any_of("gate_bias", "up_bias", "down_bias"),
    )


def _own_dtype(stored: dict[str, Stored]) -> str:
    if any(tensor.kind in QUANTISED for tensor in stored.values()):
        return "float32"
    return widest({DTYPES[tensor.kind] for tensor in stored.values() if len(tensor.shape) == 2})  # norms are F32 anyway


def _in_half_split_order(config: Config, stored: dict[str, Stored]) -> dict[str, Stored]:
    """The same tensors, queries and keys rotating halves instead of neighbours."""
    ordered = dict(stored)
    for field in ("query", "key", "query_bias", "key_bias"):
        for layer in range(config.num_layers):
            name = NAMES[field].format(layer=layer)
            if name in stored:
                ordered[name] = _unpermuted(stored[name], config.head_dim)
    return ordered


def _unpermuted(tensor: Stored, width: int) -> Stored:
    """Undoes the `permute` of llama.cpp's converter: rows 0, h/2, 1, h/2 + 1, ... of each head go back."""

    def read(start: int, stop: int) -> np.ndarray:
        array = tensor.read(start, stop)
        pairs = array.reshape(-1, width // 2, 2, *array.shape[1:])
        return pairs.swapaxes(1, 2).reshape(array.shape)

    return tensor._replace(read=read, unit=width)
