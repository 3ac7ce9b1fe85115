"""Rows of JSON that hold data: how a bad one is refused, by where it is, what it has and what it must have."""

import json
from typing import Any

KINDS = {dict: "an object", list: "an array", str: "text", bool: "true or false", int: "a whole number"}


def parse_json(text: str, where: str) -> Any:
    """The value that a piece of JSON says.

    Raises:
      ValueError: for what is none, for an object with a name twice, of which others would take the last, and for half
        of a surrogate pair, which is no character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if "\\u" in text:  # halves come from escapes only: UTF-8 has none
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except _Twice as error:
        raise ValueError(f"{where} has {error}") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds {error.object[error.start]!r}, half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None


class _Twice(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"the field {max(names, key=names.count)!r} twice in one object")
    return found


def field(row: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of a field.

    Raises:
      ValueError: where the row is no object, has no such field, or one of another kind.
    """
    check_kind(row, dict, where)
    if name not in row:
        raise ValueError(f"{where} has no field {name!r}; its fields are {field_names(row)}")
    check_kind(row[name], kind, f"{where}: field {name!r}")
    return row[name]


def field_names(row: dict[str, Any]) -> str:
    """The first fields of a row, for messages."""
    return ", ".join(map(repr, list(row)[:8])) or "none"


def check_kind(value: Any, kind: type | tuple[type, ...], where: str) -> None:
    """Refuses a value of another kind."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(KINDS[one] for one in kinds)
        raise ValueError(f"{where} is {_brief(value)}; it must be {wanted}")


def text_field(row: Any, name: str, where: str) -> str:
    """The text of a field, which must have some.

    Raises:
      ValueError: as `field`, and for a text that is empty.
    """
    return check_filled(field(row, name, str, where), f"{where}: field {name!r}")


def check_filled(value: str, where: str) -> str:
    """The same text, if there is any."""
    if not value.strip():
        raise ValueError(f"{where} is empty; it must be text")
    return value


def _brief(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{KINDS[type(value)]} of {len(value)}"
    spelled = repr(value)
    return spelled if len(spelled) <= 40 else f"{spelled[:40]}..."
