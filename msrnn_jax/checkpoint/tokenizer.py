"""The tokenizer of a checkpoint, from the text files beside its weights."""

import json
import os
import pathlib
from typing import Any

from msrnn_jax.checkpoint.layout import SETTINGS_FILE, TEMPLATE_FILE, TOKENIZER_FILE, existing, read_config
from msrnn_jax.text.tokenizer import OTHER_TOKENS, TEMPLATE_TOKENS, Tokenizer, template_tokens


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads the tokenizer of a checkpoint.

    Raises:
      ValueError: where the checkpoint or its tokenizer is missing or damaged.
    """
    import tokenizers  # a quarter of a second, and only text needs it

    folder = existing(path)
    if not (folder / TOKENIZER_FILE).is_file():
        raise ValueError(f"checkpoint {str(path)!r} has no {TOKENIZER_FILE}; it was converted without a tokenizer")
    try:
        backend = tokenizers.Tokenizer.from_str(_read(folder / TOKENIZER_FILE))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises plain Exception, and panics that are not even that
        raise ValueError(f"{str(folder / TOKENIZER_FILE)!r} cannot be used: {error}") from error
    settings = {"bos_token_id": None, "eos_token_ids": []}
    if (folder / SETTINGS_FILE).is_file():
        settings |= read_settings(folder / SETTINGS_FILE)
    template = _read(folder / TEMPLATE_FILE) if (folder / TEMPLATE_FILE).is_file() else None
    return Tokenizer(
        backend,
        bos=settings["bos_token_id"],
        stop=settings["eos_token_ids"],
        template=template,
        names=template_tokens(backend, settings),
        vocab_size=read_config(path).vocab_size,
    )


def read_settings(path: pathlib.Path) -> dict[str, Any]:
    """A checkpoint's tokenizer_config.json: `bos_token_id`, a number or None, `eos_token_ids`, and template tokens.

    Raises:
      ValueError: where the file is damaged.
    """
    try:
        settings = json.loads(_read(path))
        numbers = [settings.get("bos_token_id"), *(settings.get("eos_token_ids") or [])]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be used: {error}") from error
    wrong = [number for number in numbers[1:] + [numbers[0] or 0] if type(number) is not int or not 0 <= number < 2**31]
    if wrong:
        raise ValueError(f"{str(path)!r} cannot be used: {wrong[0]!r} is no token number")
    others = settings.get(OTHER_TOKENS, {})
    if not isinstance(others, dict):
        raise ValueError(f"{str(path)!r} cannot be used: {OTHER_TOKENS} is {others!r}; it must hold texts by name")
    for name, token in {**{name: settings.get(name) for name in TEMPLATE_TOKENS}, **others}.items():
        if not isinstance(token, str | None):
            raise ValueError(f"{str(path)!r} cannot be used: {name} is {token!r}; it must be text or null")
    return settings


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} cannot be used: it is not UTF-8") from error
