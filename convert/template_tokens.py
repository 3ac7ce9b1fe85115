"""The special tokens that chat templates write: those that transformers finds in the files of a folder."""

from collections.abc import Mapping
from typing import Any

from msrnn_jax.tokenizer import OTHER_TOKENS, TEMPLATE_TOKENS

from .folder import Folder

ENDOFTEXT = "<|endoftext|>"
LLAMA: dict[str, str | None] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# What classes of transformers 5 write where no file says; any other class writes nothing.
OF_CLASSES: dict[str, dict[str, str | None]] = {
    "LlamaTokenizer": LLAMA,
    "CodeLlamaTokenizer": LLAMA
    | {f"{name}_token": f"▁<{text}>" for name, text in (("prefix", "PRE"), ("middle", "MID"), ("suffix", "SUF"))}
    | {"eot_token": "▁<EOT>", "fill_token": "<FILL_ME>"},
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), ENDOFTEXT),
    "GPT2Tokenizer": {**dict.fromkeys(("bos_token", "eos_token", "unk_token"), ENDOFTEXT), "pad_token": None},
}


def read_settings(folder: Folder) -> dict[str, Any]:
    """What tokenizer_config.json and special_tokens_map.json say of the tokenizer.

    Only here are they ranked. As in transformers, the map overrules, unless tokenizer_config.json lists its tokens
    itself (`added_tokens_decoder`): then the map does not count.
    """
    settings = folder.json("tokenizer_config.json") or {}
    special = {} if "added_tokens_decoder" in settings else folder.json("special_tokens_map.json") or {}
    return {**settings, **special}


def read_template_tokens(settings: Mapping[str, Any], defaults: Mapping[str, str | None]) -> dict[str, str]:
    """Texts by `bos_token`, `unk_token` and the like; without the names that a template does not have.

    Args:
      settings: as `read_settings` has them.
      defaults: what is written where they do not say, under the same keys.
    """
    others = settings.get(OTHER_TOKENS)
    stated = {**defaults, **settings}
    named = {key: value for key, value in stated.items() if key in TEMPLATE_TOKENS or key.endswith("_token")}
    texts = {key: content_of(value) for key, value in {**named, **(others if isinstance(others, dict) else {})}.items()}
    return {key: text for key, text in texts.items() if text is not None}


def content_of(token: Any) -> str | None:
    """The text of a token as the files spell it: text, or an object that holds it."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def class_tokens(settings: Mapping[str, Any], config: Mapping[str, Any], tokenizer: str) -> dict[str, str | None]:
    """What the class that transformers would take writes where no file says.

    Args:
      settings: as `read_settings` has them.
      config: the content of config.json.
      tokenizer: the content of tokenizer.json.
    """
    family = config.get("model_type")
    name = settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = name.removesuffix("Fast") if isinstance(name, str) else None
    if family == "qwen2" or (family == "qwen3" and name is None):
        name = "Qwen2Tokenizer"
    # LLaMA's class is not taken where the tokenizer is not of its kind, nor any of these for Mistral.
    if family == "mistral" or (name == "LlamaTokenizer" and '"ByteLevel"' in tokenizer):
        name = None
    return OF_CLASSES.get(name or "", {})
