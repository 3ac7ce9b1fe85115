"""A traced text as one HTML page that needs nothing else: no network, no other file."""

import html
import importlib.resources
import json
import os
import pathlib
import re
from typing import Any

from msrnn_jax.io.atomic import write_text
from msrnn_jax.text.display import visible

TEMPLATE = "page.html"


def survival_page(record: dict[str, Any], name: str) -> str:
    """The page of a record, as `trace_prompt` makes it.

    Args:
      name: of the model, for the heading.
    """
    template = importlib.resources.files("msrnn_jax.tracing").joinpath(TEMPLATE).read_text(encoding="utf-8")
    shown = {**record, "shown": [visible(text) for text in record["texts"]]}
    values = {"name": html.escape(visible(name)), "record": _embedded(shown)}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def write_page(path: str | os.PathLike[str], record: dict[str, Any], name: str) -> None:
    """Writes the page of a record atomically."""
    write_text(pathlib.Path(path), survival_page(record, name))


def _embedded(record: dict[str, Any]) -> str:
    """JSON that stays inside its script element whatever the texts are, in ASCII."""
    text = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
