"""Reads GGUF files of the LLaMA family: metadata, tensors (some quantised), tokenizer."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ..problems import refuse
from ..source import Source
from ..tensors import DTYPES, Stored, check, widest
from .architectures import ARCHITECTURES
from .config import read_config
from .parts import read_joined
from .rope import FACTORS
from .tensors import NAMES, PLAIN, in_half_split_order, readable_kinds, to_stored
from .tokenizer import read_tokenizer

ROTATED = (".attn_q.weight", ".attn_k.weight", ".attn_q.bias", ".attn_k.bias")


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
    metadata, tensors, files = read_joined(path)
    stored = {name: to_stored(tensor) for name, tensor in tensors.items()}
    problems: list[str] = []
    config = read_config(metadata, stored, problems)
    facts = read_tokenizer(metadata, problems, pre)
    if config is not None:
        if ARCHITECTURES[metadata["general.architecture"]].factors:
            stored.pop(FACTORS, None)  # the config has them
        problems += check(config, NAMES, stored, readable_kinds())
        tokens = metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, list) and len(tokens) > config.vocab_size:
            problems.append(
                f"tokenizer.ggml.tokens holds {len(tokens)} tokens, more than vocab_size ({config.vocab_size})"
            )
    refuse(path, problems)
    assert config is not None  # without problems there is one
    if facts.tokenizer is None:
        report(f"note: {path} holds no tokenizer, so the result takes and gives token ids only, no text")
    if ARCHITECTURES[metadata["general.architecture"]].interleaved:
        rotated = {name for name in stored if name.endswith(ROTATED)}
        stored |= {name: in_half_split_order(stored[name], config.head_dim) for name in rotated}
    return Source(config.replace(dtype=dtype or _own_dtype(stored)), NAMES, stored, facts, files)


def _own_dtype(stored: Mapping[str, Stored]) -> str:
    if any(tensor.kind not in PLAIN for tensor in stored.values()):
        return "float32"
    return widest({DTYPES[tensor.kind] for tensor in stored.values() if len(tensor.shape) == 2})  # norms are F32 anyway
