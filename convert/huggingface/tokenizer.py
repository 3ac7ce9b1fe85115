"""The tokenizer of a Hugging Face checkpoint: its file, its stop tokens, its chat template."""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from msrnn_jax.text.tokenizer import OTHER_TOKENS, TEMPLATE_TOKENS

from ..folder import Folder
from ..problems import tokenizer_errors
from ..source import TokenizerFacts
from .sentencepiece import NAME as MODEL_NAME
from .sentencepiece import read_tokenizer_model

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


def read_tokenizer(folder: Folder, config: Mapping[str, Any], problems: list[str]) -> TokenizerFacts:
    """Collects the tokenizer's facts from the files that may hold them.

    The BOS is that of generation_config.json, else tokenizer_config.json, else config.json. Texts end at
    every EOS of generation_config.json (of config.json where that says nothing, as in transformers) and
    at the tokenizer's own, which is the one chat templates write (see `read_template_tokens`). Without a
    tokenizer.json, one is made of a SentencePiece tokenizer.model. A tokenizer.json says itself what is put
    before and after a text: as in transformers 5, `add_bos_token` and `add_eos_token` of
    tokenizer_config.json do not count beside it. What it carries from its training, a length that texts are cut or
    padded to, is left out.

    Args:
      config: the content of config.json.
    """
    generation = folder.json("generation_config.json") or {}
    settings = read_settings(folder)
    text, of_model = folder.text("tokenizer.json"), {}
    if text is None:
        text, of_model = _read_tokenizer_model(folder, settings, config, problems)
    defaults, tokenizer = {**class_tokens(settings, config, text or ""), **of_model}, None
    if text is not None:
        try:
            tokenizer = _parse_tokenizer(text)
        except ValueError as error:
            problems.append(str(error))
        else:
            defaults = {**_padding_token(tokenizer), **defaults}
            text = without_lengths(text, tokenizer)
    written = read_template_tokens(settings, defaults)

    def ids(key: str) -> list[list[int]]:
        return [
            _ids(generation, "generation_config.json", f"{key}_token_id", config, problems),
            _named_id({**written, **of_model}.get(f"{key}_token"), tokenizer),
            _ids(config, "config.json", f"{key}_token_id", config, problems),
        ]

    bos = [found[0] for found in ids("bos") if found]
    generated, own, model = ids("eos")
    return TokenizerFacts(
        tokenizer=text,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=list(dict.fromkeys((generated or model) + own)),
        names=written,
        chat_template=_read_chat_template(folder, settings, problems),
    )


def _read_tokenizer_model(
    folder: Folder, settings: Mapping[str, Any], config: Mapping[str, Any], problems: list[str]
) -> tuple[str | None, Mapping[str, str]]:
    """The tokenizer.json that a tokenizer.model stands for, and its names of BOS and EOS."""
    path = folder.find(MODEL_NAME)
    if path is None:
        return None, {}
    added = folder.json("added_tokens.json") or {}
    vocab_size = config.get("vocab_size")
    limit = vocab_size if type(vocab_size) is int else None
    made = read_tokenizer_model(path, settings, added, limit, problems)
    return (None, {}) if made is None else (made.text, made.names)


def _parse_tokenizer(text: str) -> tokenizers.Tokenizer:
    with tokenizer_errors("tokenizer.json"):
        return tokenizers.Tokenizer.from_str(text)


def without_lengths(text: str, tokenizer: tokenizers.Tokenizer) -> str:
    """A tokenizer.json that neither cuts nor pads texts, which transformers does not let it do either.

    Args:
      text: the file.
      tokenizer: what it holds.
    """
    if tokenizer.truncation is None and tokenizer.padding is None:
        return text
    return json.dumps({**json.loads(text), "truncation": None, "padding": None}, ensure_ascii=False, indent=2)


def _padding_token(tokenizer: tokenizers.Tokenizer) -> dict[str, str]:
    """What transformers takes for the token where it stands nowhere else."""
    return {} if tokenizer.padding is None else {"pad_token": tokenizer.padding["pad_token"]}


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


def _named_id(token: str | None, tokenizer: tokenizers.Tokenizer | None) -> list[int]:
    found = tokenizer.token_to_id(token) if tokenizer is not None and token is not None else None
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
