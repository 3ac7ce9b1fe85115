"""Names of models on the Hugging Face hub, and what tells them from paths."""

import re
from typing import NamedTuple

PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")  # the hub's rule
RULE = "org/name, or org/name/file.gguf for one GGUF file of it"


class HubName(NamedTuple):
    """A model of the hub, or one file of it."""

    repository: str  # org/name
    file: str | None  # a .gguf file inside it


def is_hub_name(text: str) -> bool:
    """Whether a text has the form of a hub name, so that it is one where no such path exists."""
    parts = text.split("/")
    if any(part in ("", ".", "..", "~") for part in parts) or "\\" in text:
        return False
    return len(parts) > 2 if text.lower().endswith(".gguf") else len(parts) == 2


def parse_hub_name(text: str) -> HubName:
    """The repository and the file that a name stands for.

    Raises:
      ValueError: it breaks the hub's rule.
    """
    if not is_hub_name(text):
        raise ValueError(f"{text!r} is no name of the hub; it must be {RULE}")
    organisation, name, *rest = text.split("/")
    for part in (organisation, name):
        if not PART.fullmatch(part) or "--" in part or ".." in part or part.endswith(".git"):
            raise ValueError(
                f"{text!r} is no name of the hub: {part!r} must be of letters, digits, '-', '_' and '.', at most 96, "
                "begin and end with none of '-' and '.', hold no '--' or '..', and not end in '.git'"
            )
    file = "/".join(rest) or None
    if file is not None and not file.isprintable():
        raise ValueError(f"{text!r} names a file with control characters; no file of a model has such a name")
    return HubName(f"{organisation}/{name}", file)
