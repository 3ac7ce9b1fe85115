"""The small files of a Hugging Face folder, from those of a checkpoint of ours."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from msrnn_jax.config import Config
from msrnn_jax.tokenizer import (
    SETTINGS_FILE,
    TEMPLATE_FILE,
    TEMPLATE_TOKENS,
    TOKENIZER_FILE,
    read_settings,
    template_tokens,
    token_settings,
)

from .export_config import ARCHITECTURES, write_config
from .folder import Folder
from .huggingface_tokenizer import without_lengths
from .problems import tokenizer_errors


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
        files["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_length,
            "clean_up_tokenization_spaces": False,
            **dict.fromkeys(TEMPLATE_TOKENS),  # what is left out is taken from some classes of transformers
            **token_settings(template_tokens(backend, settings)),
        }
    texts = {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
    beside = {TOKENIZER_FILE: tokenizer, TEMPLATE_FILE: template}
    return texts | {name: text for name, text in beside.items() if text is not None}
