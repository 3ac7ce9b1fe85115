"""Chat templates: jinja2 in its sandbox, with what templates on the Hugging Face hub expect beside it."""

import datetime
import json
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


def render(template: str, variables: Mapping[str, Any], date: datetime.datetime | None = None) -> str:
    """The text that a template makes.

    As in transformers there are `{% break %}` and `{% continue %}`, `{% generation %}` blocks (which mark an
    assistant's words, and here are those words), a `tojson` that does not escape for HTML, `strftime_now(format)` and
    `raise_exception(message)`.

    Args:
      date: what `strftime_now` takes for now; None: the clock.

    Raises:
      ValueError: the template refuses, or fails in any way: it is somebody's program.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda text: (date or datetime.datetime.now()).strftime(text)
    try:
        return environment.from_string(template).render(**variables)
    except _Refusal as error:
        raise ValueError(f"chat template: {error}") from None
    except Exception as error:
        raise ValueError(f"chat template: {type(error).__name__}: {error}") from error


class _Refusal(jinja2.TemplateError):
    """What a template says of messages that it does not take."""


class _Generation(Extension):
    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, "indent": indent, **options})


def _refuse(message: Any) -> None:
    raise _Refusal(" ".join(str(message).split()))
