"""A checkpoint of ours as a Hugging Face folder: config, sharded safetensors, tokenizer."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers

from msrnn_jax.checkpoint.layout import SETTINGS_FILE, TEMPLATE_FILE, TOKENIZER_FILE
from msrnn_jax.checkpoint.load import load_deferred
from msrnn_jax.checkpoint.orbax import LazyArray
from msrnn_jax.checkpoint.tokenizer import read_settings
from msrnn_jax.config import Config
from msrnn_jax.io.folders import FolderKind, atomic_folder, check_and_recover, check_space
from msrnn_jax.io.units import spell_bytes
from msrnn_jax.params import Params, param_axes
from msrnn_jax.text.tokenizer import TEMPLATE_TOKENS, template_tokens, token_settings

from ..folder import Folder, check_apart
from ..problems import tokenizer_errors
from ..progress import Meter, Watch, unseen
from ..tensors import as_stored, name_tree, row_blocks, stored_shape
from .export_config import ARCHITECTURES, write_config
from .reader import NAMES
from .safetensors import Tensor, is_written_here, write_shards
from .tokenizer import without_lengths

SHARD_BYTES = 5 * 10**9
WRITTEN = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|model\.safetensors\.index)\.json|chat_template\.jinja"
    r"|model(-\d{5,}-of-\d{5,})?\.safetensors"
)


class _Weight(NamedTuple):
    """A weight of ours, and what it becomes."""

    leaf: LazyArray
    axes: str
    tensor: Tensor

    def blocks(self, watch: Watch) -> Iterator[np.ndarray]:
        rows = as_stored(self.leaf.read(), self.axes)
        for block in row_blocks(rows.shape, rows.itemsize):
            yield rows[block]
            watch(rows[block].nbytes)


def export(
    source: str | Path,
    destination: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
    meter: Meter = unseen,
) -> Path:
    """Writes a checkpoint of ours as a Hugging Face folder that transformers loads, with the same bits for weights.

    Args:
      source: a checkpoint of ours.
      destination: the folder to write. It appears complete or not at all; missing parents are made.
      shard_bytes: of weights in one file, at most, unless a single tensor has more.
      force: replace an earlier export.
      report: called with lines on what is going on.
      meter: shows how far it has come; `progress.bar` does on a terminal.

    Returns:
      The destination.

    Raises:
      ValueError: the source is no checkpoint of ours or damaged, no model of transformers computes what it does, or
        one of the paths is not usable.
    """
    path = Path(destination)
    check_and_recover(path, EXPORT, force)
    check_apart(Path(source), path)
    config, params = load_deferred(source)
    texts = small_files(config, Path(source))
    weights = _weights(config, params)
    total = sum(weight.tensor.nbytes for weight in weights.values())
    check_space(path, total + sum(map(len, texts.values())))
    report(f"writing {path}: {len(weights)} tensors, {spell_bytes(total)} in {config.dtype}")
    with atomic_folder(path.absolute(), EXPORT, force) as folder, meter("writing", total) as watch:
        tensors = {name: weight.tensor for name, weight in weights.items()}
        write_shards(folder, tensors, shard_bytes, lambda name: weights[name].blocks(watch))
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return path


def _weights(config: Config, params: Params) -> dict[str, _Weight]:
    leaves = zip(
        jax.tree.leaves(name_tree(config, NAMES)),
        jax.tree.leaves(params),
        jax.tree.leaves(param_axes(config)),
        strict=True,
    )
    return {name: _Weight(leaf, axes, Tensor(leaf.dtype, stored_shape(config, axes))) for name, leaf, axes in leaves}


def _is_export(folder: Path) -> bool:
    if not all(WRITTEN.fullmatch(file.name) and file.is_file() for file in folder.iterdir()):
        return False
    return any(is_written_here(file) for file in folder.glob("*.safetensors"))


EXPORT = FolderKind("export of msrnn_jax", _is_export)


def small_files(config: Config, source: Path) -> dict[str, str]:
    """Texts by name: config.json, generation_config.json, and what there is of tokenizer and chat template.

    Raises:
      ValueError: a file of the source is damaged, or no model of transformers computes what the config says.
    """
    folder = Folder(source)
    path = folder.find(SETTINGS_FILE)
    settings = {} if path is None else read_settings(path)
    bos, stops = settings.get("bos_token_id"), settings.get("eos_token_ids") or []
    fields = write_config(config)
    # A key that is left out means the family's own token.
    ends = {"bos_token_id": bos, "eos_token_id": stops[0] if len(stops) == 1 else stops or None, "pad_token_id": None}
    files: dict[str, Any] = {
        "config.json": {"architectures": [ARCHITECTURES[fields["model_type"]]], **fields, **ends},
        "generation_config.json": {"_from_model_config": False, **ends},
    }
    tokenizer, template = folder.text(TOKENIZER_FILE), folder.text(TEMPLATE_FILE)
    if tokenizer is not None:
        with tokenizer_errors(str(source / TOKENIZER_FILE)):
            backend = tokenizers.Tokenizer.from_str(tokenizer)
        tokenizer = without_lengths(tokenizer, backend)  # earlier versions kept them
        files[SETTINGS_FILE] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_length,
            "clean_up_tokenization_spaces": False,
            **dict.fromkeys(TEMPLATE_TOKENS),  # what is left out is taken from some classes of transformers
            **token_settings(template_tokens(backend, settings)),
        }
    texts = {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
    beside = {TOKENIZER_FILE: tokenizer, TEMPLATE_FILE: template}
    return texts | {name: text for name, text in beside.items() if text is not None}
