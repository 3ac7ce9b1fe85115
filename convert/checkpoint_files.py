"""The small text files that stand beside the weights in a checkpoint of ours."""

import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from msrnn_jax.tokenizer import token_settings


class TokenizerFacts(NamedTuple):
    """What a source says about its tokenizer."""

    tokenizer: str | None  # JSON of the `tokenizers` library
    bos_token_id: int | None
    eos_token_ids: list[int]  # all that end a text
    names: Mapping[str, str]  # what chat templates write for `bos_token`, `unk_token` and the like
    chat_template: str | None


def text_files(
    facts: TokenizerFacts,
    *,
    kind: str,
    origin: Mapping[str, str],
    digests: Mapping[str, str],
    tensor_types: Iterable[str],
) -> dict[str, str]:
    """The files by name: the tokenizer's, and `source.json` with what was converted.

    Args:
      kind: which reader it went through.
      origin: where it was fetched from: `repository`, `revision` and `commit` of a hub; else nothing.
      digests: sha256 by file name, relative to the source.
      tensor_types: one for every tensor of the source.
    """
    settings = {
        "bos_token_id": facts.bos_token_id,
        "eos_token_ids": facts.eos_token_ids,
        **token_settings(facts.names),
    }
    source = {
        "kind": kind,
        **origin,
        "files": dict(digests),
        "tensor_types": dict(sorted(Counter(tensor_types).items())),
        "converter": _version(),
    }
    files = {"tokenizer_config.json": _to_json(settings), "source.json": _to_json(source)}
    if facts.tokenizer is not None:
        files["tokenizer.json"] = facts.tokenizer
    if facts.chat_template is not None:
        files["chat_template.jinja"] = facts.chat_template
    return files


def _to_json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _version() -> str:
    try:
        return f"msrnn_jax {importlib.metadata.version('msrnn_jax')}"
    except importlib.metadata.PackageNotFoundError:
        return "msrnn_jax, from a checkout"
