"""Which files of a repository on the hub a conversion needs; nothing is fetched here."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..gguf.parts import NAME as PART
from ..huggingface.names import check_whole
from ..huggingface.reader import PICKLES
from ..huggingface.safetensors import INDEX, SINGLE
from ..problems import shorten, shown

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_MODEL = "tokenizer.model"  # read only where there is no tokenizer.json
SMALL = (
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
SHARD = re.compile(r"[\w .+-]+\.safetensors")


class Entry(NamedTuple):
    """A file of a repository, as far as it is known before it is fetched."""

    size: int | None  # bytes
    hash: str | None  # the sha256 of a large file; of a small one git's own, the sha1 of a header and the content


class Listing(NamedTuple):
    """The files of one commit; of the cache's part of it where the hub is not asked."""

    commit: str
    files: Mapping[str, Entry]
    offline: bool


def small_files(listing: Listing) -> list[str]:
    """Everything but the weights: config.json first, and the index of the shards if there is one."""
    names = [name for name in SMALL if name in listing.files]
    if TOKENIZER not in listing.files and TOKENIZER_MODEL in listing.files:
        names.append(TOKENIZER_MODEL)
    if SINGLE not in listing.files and INDEX in listing.files:
        names.append(INDEX)
    return names


def check_convertible(repository: str, listing: Listing, page: str) -> None:
    """Refuses a repository without a config or without weights in safetensors.

    Args:
      page: the repository's address on the hub.
    """
    files = listing.files
    check_whole(repository, files)
    weights = SINGLE in files or INDEX in files
    lacking = CONFIG if CONFIG not in files else f"{SINGLE} or {INDEX}"
    if CONFIG in files and weights:
        return
    ggufs = sorted(f"{repository}/{name}" for name in files if name.lower().endswith(".gguf"))
    if ggufs and not weights:
        raise ValueError(
            f"{repository} holds GGUF files; name the one to convert: {', '.join(shorten(ggufs, 'GGUF files'))}"
        )
    pickles = sorted(name for name in files if name.endswith(PICKLES))
    if pickles and not weights:
        raise ValueError(
            f"{repository} holds its weights as {pickles[0]}; pickle files can run code and are never read: take a "
            f"revision with safetensors (often the hub's own conversion, refs/pr/N, listed on {page}/discussions) "
            "or ask its authors for one"
        )
    where = f"the cache of {repository}" if listing.offline else repository
    raise ValueError(f"{where} holds no {lacking}, so there is no model that can be converted")


def gguf_files(file: str, listing: Listing, repository: str) -> list[str]:
    """The GGUF file that was named or, where it is a part of a model, all parts, the first one first.

    Raises:
      ValueError: the repository lacks one of them.
    """
    if file not in listing.files:
        ggufs = sorted(name for name in listing.files if name.lower().endswith(".gguf"))
        raise ValueError(f"{repository} holds no {file}; its GGUF files are: {', '.join(ggufs) or 'none'}")
    part = PART.fullmatch(file)
    count = int(part["count"]) if part else 0
    if part is None or count == 0:
        return [file]
    names = [f"{part['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    return _listed(names, f"of the {count} parts of a model", listing, repository)


def shards(index: Mapping[str, Any], listing: Listing, repository: str) -> list[str]:
    """The files that an index names.

    Raises:
      ValueError: the index names no plain safetensors files, or others than the repository has.
    """
    weight_map = index.get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, Mapping) else []
    wrong = [shown(name) for name in names if not (isinstance(name, str) and SHARD.fullmatch(name))]
    if wrong or not names:
        raise ValueError(f"{repository}/{INDEX} names {(wrong or ['no file'])[0]}; it must name .safetensors files")
    return _listed(sorted(set(names)), f"named by {INDEX}", listing, repository)


def _listed(names: list[str], what: str, listing: Listing, repository: str) -> list[str]:
    """The names, if the repository has files of all of them."""
    missing = [name for name in names if name not in listing.files]
    if missing:
        where = "in the cache" if listing.offline else f"at {listing.commit}"
        raise ValueError(f"{repository}: {', '.join(shorten(missing, 'files'))} ({what}) is not {where}")
    return names
