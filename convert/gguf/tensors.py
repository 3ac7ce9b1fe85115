"""The tensors of a GGUF file: what they are called, and their rows as numbers, dequantised a little at a time."""

import functools
import math

import gguf
import ml_dtypes
import numpy as np

from ..problems import shown
from ..tensors import Stored
from .header import Tensor, unreadable

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
PLAIN = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64}
PIECE = 2**19  # numbers dequantised at once: 2 MB, and some ten times that while it is done


@functools.cache
def readable_kinds() -> tuple[str, ...]:
    """All types whose tensors can be read: plain ones, and those that the installed gguf package can dequantise."""
    return (*PLAIN, *(kind.name for kind in gguf.GGMLQuantizationType if kind.name not in PLAIN and _is_known(kind)))


def _is_known(kind: gguf.GGMLQuantizationType) -> bool:
    _, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        with np.errstate(all="ignore"):
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def to_stored(tensor: Tensor) -> Stored:
    """A tensor of a checked header; its rows are float32 where it is quantised."""
    block, block_size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.kind]]
    width = math.prod(tensor.shape[1:])  # numbers in a row; rows of several are whole blocks

    def read(start: int, stop: int) -> np.ndarray:
        first = start * width // block * block_size
        last = stop * width // block * block_size
        raw = np.fromfile(tensor.path, np.uint8, last - first, offset=tensor.offset + first)
        if len(raw) < last - first:
            raise unreadable(tensor.path, f"it became shorter before the tensor {shown(tensor.name)} was read")
        numbers = raw.view(PLAIN[tensor.kind]) if tensor.kind in PLAIN else _dequantise(raw, tensor.kind)
        return numbers.reshape(stop - start, *tensor.shape[1:])

    return Stored(tensor.kind, tensor.shape, read, unit=block if len(tensor.shape) == 1 else 1)


def _dequantise(raw: np.ndarray, kind: str) -> np.ndarray:
    ggml = gguf.GGMLQuantizationType[kind]
    block, block_size = gguf.GGML_QUANT_SIZES[ggml]
    numbers = np.empty(len(raw) // block_size * block, np.float32)
    blocks = PIECE // block
    for start in range(0, len(raw) // block_size, blocks):
        piece = raw[start * block_size : (start + blocks) * block_size]
        with np.errstate(all="ignore"):  # what is not finite is found by those who read the numbers
            numbers[start * block : (start + blocks) * block] = gguf.dequantize(piece[None], ggml)[0]
    return numbers


def in_half_split_order(tensor: Stored, head_dim: int) -> Stored:
    """The tensor with the rows of each head back in order: files interleave the halves, 0, H/2, 1, H/2 + 1, ...

    It undoes the `permute` of llama.cpp's converter.
    """

    def read(start: int, stop: int) -> np.ndarray:
        rows = tensor.read(start, stop)
        pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])  # [heads, pairs, halves, ...]
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    return tensor._replace(read=read, unit=math.lcm(tensor.unit, head_dim))
