"""The BOS and EOS that chat templates write: the tokenizer's own, as transformers takes them from a folder's files."""

from collections.abc import Mapping
from typing import Any

from msrnn_jax.tokenizer import TEMPLATE_TOKENS

from .folder import Folder

ENDOFTEXT = "<|endoftext|>"
# What classes of transformers 5 write where no file says; any other class writes nothing.
OF_CLASSES = {
    "LlamaTokenizer": ("<s>", "</s>"),
    "CodeLlamaTokenizer": ("<s>", "</s>"),
    "Qwen2Tokenizer": (None, ENDOFTEXT),
    "GPT2Tokenizer": (ENDOFTEXT, ENDOFTEXT),
}


def read_template_tokens(
    folder: Folder, settings: Mapping[str, Any], defaults: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Texts by `bos_token` and `eos_token`; None where a template has no such name.

    As in transformers 5, special_tokens_map.json overrules tokenizer_config.json, unless that lists its tokens itself.

    Args:
      settings: the content of tokenizer_config.json.
      defaults: what is written where no file says, under the same keys.
    """
    special = {} if "added_tokens_decoder" in settings else folder.json("special_tokens_map.json") or {}
    stated = {**dict.fromkeys(TEMPLATE_TOKENS), **defaults, **settings, **special}
    return {key: content_of(stated[key]) for key in TEMPLATE_TOKENS}


def content_of(token: Any) -> str | None:
    """The text of a token as the files spell it: text, or an object that holds it."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def class_tokens(settings: Mapping[str, Any], config: Mapping[str, Any], tokenizer: str) -> dict[str, str | None]:
    """What the class that transformers would take writes where no file says.

    Args:
      settings: the content of tokenizer_config.json.
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
    return dict(zip(TEMPLATE_TOKENS, OF_CLASSES.get(name or "", (None, None)), strict=True))
