"""Reads a Hugging Face LLaMA folder: config.json, safetensors, tokenizer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..folder import Folder
from ..problems import refuse, shorten
from ..source import Source
from ..tensors import DTYPES, Stored, check, widest
from .config import read_config, read_dtype
from .names import EMBEDDING, UNEMBEDDING, check_whole, restore_names
from .safetensors import INDEX, SINGLE, open_file
from .tokenizer import read_tokenizer

PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
NAMES = {
    "embedding": EMBEDDING,
    "final_norm": "model.norm.weight",
    "unembedding": UNEMBEDDING,
    "attention_norm": "model.layers.{layer}.input_layernorm.weight",
    "query": "model.layers.{layer}.self_attn.q_proj.weight",
    "key": "model.layers.{layer}.self_attn.k_proj.weight",
    "value": "model.layers.{layer}.self_attn.v_proj.weight",
    "output": "model.layers.{layer}.self_attn.o_proj.weight",
    "query_bias": "model.layers.{layer}.self_attn.q_proj.bias",
    "key_bias": "model.layers.{layer}.self_attn.k_proj.bias",
    "value_bias": "model.layers.{layer}.self_attn.v_proj.bias",
    "output_bias": "model.layers.{layer}.self_attn.o_proj.bias",
    "query_norm": "model.layers.{layer}.self_attn.q_norm.weight",
    "key_norm": "model.layers.{layer}.self_attn.k_norm.weight",
    "mlp_norm": "model.layers.{layer}.post_attention_layernorm.weight",
    "gate": "model.layers.{layer}.mlp.gate_proj.weight",
    "up": "model.layers.{layer}.mlp.up_proj.weight",
    "down": "model.layers.{layer}.mlp.down_proj.weight",
    "gate_bias": "model.layers.{layer}.mlp.gate_proj.bias",
    "up_bias": "model.layers.{layer}.mlp.up_proj.bias",
    "down_bias": "model.layers.{layer}.mlp.down_proj.bias",
}


def read_folder(path: Path, dtype: str | None, report: Callable[[str], None]) -> Source:
    """The checkpoint in a folder, in `dtype` or else in its own.

    Queries and keys need no permutation: such files rotate halves, as we do.

    Raises:
      ValueError: a file is missing or unreadable, or anything in it cannot be honoured; all of the latter
        are listed at once.
    """
    folder = Folder(path)
    check_whole(path, [file.name for file in path.iterdir()])
    fields = folder.json("config.json")
    if fields is None:
        ggufs = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"; to convert {ggufs[0]}, name that file itself" if ggufs else ""
        raise ValueError(f"{path} holds no config.json{hint}")
    if "model_dim" in fields:
        raise ValueError(f"{path} is a checkpoint of msrnn_jax already")
    problems: list[str] = []
    config = read_config(fields, problems)
    stated = read_dtype(fields, problems)
    facts = read_tokenizer(folder, fields, problems)
    opened = _open(folder, problems)
    before = len(problems)
    stored = restore_names(opened, problems)
    tied_copy = stored.pop(UNEMBEDDING, None) if config is not None and config.tied_embeddings else None
    if tied_copy is not None:
        stored.setdefault(EMBEDDING, tied_copy)  # or else the only one of the two
    if config is not None and len(problems) == before:
        problems += check(config, NAMES, stored, DTYPES)
    refuse(path, problems)
    assert config is not None  # without problems there is one

    matrices = {DTYPES[tensor.kind] for tensor in stored.values() if len(tensor.shape) == 2}
    own = widest(matrices)
    if dtype is None and stated not in (None, own):
        report(f"note: config.json says {stated}, the tensors are {own}, which is kept; --dtype {stated} converts")
    config = config.replace(dtype=dtype or own)
    if tied_copy is not None and not _equal(tied_copy, stored[EMBEDDING]):
        problems.append(f"{UNEMBEDDING!r} differs from the embedding, yet tie_word_embeddings is true")
    refuse(path, problems)
    if facts.tokenizer is None:
        report(f"note: {path} holds no tokenizer.json, so the result takes and gives token ids only, no text")
    return Source(config, NAMES, stored, facts, folder.used)


def _open(folder: Folder, problems: list[str]) -> dict[str, Stored]:
    single = folder.find(SINGLE)
    if single is not None:
        return open_file(single)
    index = folder.json(INDEX)
    if index is not None:
        return _open_shards(folder, index.get("weight_map"), problems)
    pickles = sorted(file.name for file in folder.path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{folder.path} holds its weights as {pickles[0]}; pickle files can run code and are never read. "
            "Take a safetensors version of the model, or make one where you trust the file: "
            "load it with transformers and save_pretrained it"
        )
    raise ValueError(f"{folder.path} holds neither {SINGLE} nor {INDEX}")


def _open_shards(folder: Folder, weight_map: Any, problems: list[str]) -> dict[str, Stored]:
    if not isinstance(weight_map, Mapping) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{folder.path / INDEX}: weight_map must map tensor names to file names")
    shards: dict[str, dict[str, Stored]] = {}
    for name in sorted(set(weight_map.values())):
        path = folder.find(name)
        if path is None:
            problems.append(f"missing file {name!r}, which {INDEX} names")
        else:
            shards[name] = open_file(path)
    stored = {}
    for tensor, name in weight_map.items():
        if tensor in shards.get(name, {}):
            stored[tensor] = shards[name][tensor]
        elif name in shards:
            problems.append(f"tensor {tensor!r} is not in {name}, where {INDEX} puts it")
    for name, tensors in shards.items():
        problems += [f"tensor {tensor!r} of {name} is not in {INDEX}" for tensor in tensors if tensor not in weight_map]
        others = [tensor for tensor in tensors if tensor in stored and weight_map[tensor] != name]
        twice = (f"tensor {tensor!r} is in {weight_map[tensor]} and in {name}" for tensor in others)
        problems += shorten(twice, "tensors in two files")
    return stored


def _equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors hold the same values, NaN being one."""
    if one.shape != other.shape or not {one.kind, other.kind} <= set(DTYPES):
        return False
    pairs = zip(one.blocks(4), other.blocks(4), strict=True)
    return all(
        np.array_equal(mine.astype(np.float64), yours.astype(np.float64), equal_nan=True)
        for (_, mine), (_, yours) in pairs
    )
