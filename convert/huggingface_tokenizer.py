"""The tokenizer of a Hugging Face checkpoint: its file, its stop tokens, its chat template."""

from collections.abc import Mapping
from typing import Any

import tokenizers

from .checkpoint_files import TokenizerFacts
from .folder import Folder
from .problems import tokenizer_errors


def read_tokenizer(folder: Folder, config: Mapping[str, Any], problems: list[str]) -> TokenizerFacts:
    """Collects the tokenizer's facts from the files that may hold them.

    The BOS is that of generation_config.json, else tokenizer_config.json, else config.json. Texts end at
    every EOS of generation_config.json (of config.json where that says nothing, as in transformers) and
    at the tokenizer's own, which is the one chat templates write.

    Args:
      config: the content of config.json.
    """
    text = folder.text("tokenizer.json")
    tokenizer = None
    if text is not None:
        try:
            tokenizer = _parse_tokenizer(text)
        except ValueError as error:
            problems.append(str(error))
    generation = folder.json("generation_config.json") or {}
    settings = folder.json("tokenizer_config.json") or {}

    def ids(key: str) -> list[list[int]]:
        return [
            _ids(generation, "generation_config.json", f"{key}_token_id", config, problems),
            _named_id(settings.get(f"{key}_token"), tokenizer),
            _ids(config, "config.json", f"{key}_token_id", config, problems),
        ]

    bos = [found[0] for found in ids("bos") if found]
    generated, own, model = ids("eos")
    return TokenizerFacts(
        tokenizer=text,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=list(dict.fromkeys((generated or model) + own)),
        chat_template=_read_chat_template(folder, settings, problems),
    )


def _parse_tokenizer(text: str) -> tokenizers.Tokenizer:
    with tokenizer_errors("tokenizer.json"):
        return tokenizers.Tokenizer.from_str(text)


def _ids(fields: Mapping[str, Any], file: str, key: str, config: Mapping[str, Any], problems: list[str]) -> list[int]:
    stated = fields.get(key)
    values = [] if stated is None else stated if isinstance(stated, list) else [stated]
    vocab_size = config.get("vocab_size")
    limit = vocab_size if type(vocab_size) is int else None
    good = [value for value in values if type(value) is int and 0 <= value and (limit is None or value < limit)]
    if len(good) < len(values):
        rule = "token ids" if limit is None else f"token ids below vocab_size ({limit})"
        problems.append(f"{file}: {key} is {stated!r}; it must hold {rule}")
    return good


def _named_id(token: Any, tokenizer: tokenizers.Tokenizer | None) -> list[int]:
    content = token.get("content") if isinstance(token, Mapping) else token
    found = tokenizer.token_to_id(content) if tokenizer is not None and isinstance(content, str) else None
    return [] if found is None else [found]


def _read_chat_template(folder: Folder, settings: Mapping[str, Any], problems: list[str]) -> str | None:
    text = folder.text("chat_template.jinja")
    if text is not None:
        return text
    template = (folder.json("chat_template.json") or {}).get("chat_template", settings.get("chat_template"))
    if isinstance(template, list):  # of named ones
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        problems.append(f"chat_template is a JSON {type(template).__name__}; it must be text")
        return None
    return template
