"""The tensors of a Hugging Face folder under the names that a whole model, saved by itself, gives them."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from ..problems import shorten, shown
from ..tensors import Stored

EMBEDDING, UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"
# What stands in names when a model is saved from inside what wraps it, or parts of it: torch.compile, data
# parallelism, FSDP, checkpointed activations.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
INNER = ("embed_tokens", "layers", "norm", "rotary_emb")  # of `model`, which is saved alone without that name
# Rotary frequencies that old versions saved as buffers; the config says the same.
BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # files of peft
MERGE = "merge it into its model first: load both with peft, then merge_and_unload and save_pretrained"


def check_whole(source: str | Path, files: Collection[str]) -> None:
    """Raises if there is an adapter among the files, which is no model by itself, and beside one would not be read."""
    adapters = [name for name in ADAPTERS if name in files]
    if adapters:
        raise ValueError(f"{source} holds a low-rank adapter, {adapters[0]}; {MERGE}")


def restore_names(stored: Mapping[str, Stored], problems: list[str]) -> dict[str, Stored]:
    """The tensors by their plain names, without buffers; two of one name and those of adapters are problems."""
    adapters = [name for name in stored if any(part.startswith("lora_") for part in name.split("."))]
    if adapters:
        problems.append(f"tensor {shown(adapters[0])} is one of {len(adapters)} of a low-rank adapter; {MERGE}")
        return {}
    origins: dict[str, str] = {}
    twice = []
    for name in stored:
        plain = _plain(name)
        if plain in origins:
            twice.append(f"tensors {shown(origins[plain])} and {shown(name)} are both {shown(plain)}")
        origins[plain] = name
    problems += shorten(twice, "such pairs")
    return {plain: stored[name] for plain, name in origins.items() if not BUFFER.fullmatch(plain)}


def _plain(name: str) -> str:
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(["model", *parts] if parts and parts[0] in INNER else parts)
