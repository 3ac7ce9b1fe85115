"""The program that renders chat templates: jinja2 in its sandbox, request by request, within limits.

It is run by chat_template.py, in a process of its own, and imports nothing of this package.
"""

import datetime
import functools
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ModuleNotFoundError:  # Windows, where chat_template.py alone ends what does not end
    resource = None

MEMORY = 2**30  # bytes a template may take, beside eight times the size of its request
LONGEST = 2**24  # characters it may make, beside eight for every character of its request
LONGEST_ERROR = 500  # characters


def main() -> None:
    """Answers every line of the standard input, a JSON object, by one line: `text` or `error`."""
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit("RLIMIT_CPU", round(time.process_time()) + request["seconds"])
        _limit("RLIMIT_AS", MEMORY + 8 * len(line))
        answer = json.dumps(_answer(request, LONGEST + 8 * len(line)))
        _limit("RLIMIT_AS", None)  # the next request may be large
        print(answer, flush=True)


def _limit(name: str, most: int | None) -> None:
    if resource is not None:
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = hard if most is None else most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, hard))


def _answer(request: Mapping[str, Any], longest: int) -> dict[str, str]:
    try:
        text = _compile(request["template"], request["date"]).render(request["variables"])
    except _Refusal as error:
        return _error(str(error))
    except MemoryError:
        return _error(f"it needs more than {MEMORY // 2**20} MiB of memory")
    except Exception as error:  # in any way: it is somebody's program
        return _error(f"{type(error).__name__}: {error}")
    if len(text) > longest:
        return _error(f"it makes a text of {len(text)} characters; it may make {longest} of these messages")
    return {"text": text}


def _error(line: str) -> dict[str, str]:
    line = " ".join(line.split())
    return {"error": line if len(line) <= LONGEST_ERROR else line[:LONGEST_ERROR] + "..."}


@functools.lru_cache(maxsize=8)
def _compile(template: str, date: str | None) -> jinja2.Template:
    """As transformers does it, `date` apart."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format: _write_now(date, format)
    return environment.from_string(template)


class _Refusal(jinja2.TemplateError):
    """What a template says of messages that it does not take."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words, and here is those words."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_words"), [], [], body).set_lineno(line)  # with a scope of its own

    def _words(self, caller: Any) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own, it does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> None:
    raise _Refusal(str(message))


def _write_now(date: str | None, text: str) -> str:
    now = datetime.datetime.now() if date is None else datetime.datetime.fromisoformat(date)
    return now.strftime(text)


if __name__ == "__main__":
    main()
