"""Names of models on the Hugging Face hub, and what tells them from paths."""

from typing import NamedTuple

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
    """The repository and the file that a name stands for; huggingface_hub checks the letters.

    Raises:
      ValueError: it has not the form of one.
    """
    if not is_hub_name(text):
        raise ValueError(f"{text!r} is not a name on the hub; it must be {RULE}")
    organisation, name, *rest = text.split("/")
    return HubName(f"{organisation}/{name}", "/".join(rest) or None)
