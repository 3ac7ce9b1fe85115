"""Files that are written whole or not at all."""

import errno
import json
import os
import pathlib
import secrets
import tempfile
from typing import Any


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON atomically: the file is the old one or the new one, never a part of it.

    Numbers that JSON does not have (nan, inf) become null, so that any program can read the file.
    """
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text in UTF-8 atomically; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file atomically, the folders above it made where they are missing."""
    path = pathlib.Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".writing.{secrets.token_hex(8)}"
    try:
        with open(temporary, "xb") as file:  # the umask says who may read it, as of any new file
            file.write(content)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk says no name
        raise


def check_writable(name: str, path: str | os.PathLike[str]) -> None:
    """Refuses, before any work, a path that `write_text` could not write after it.

    Raises:
      ValueError: for a folder, and for a file in what is no folder or lets nothing be written.
    """
    place = pathlib.Path(os.path.realpath(path))  # a link stays, and what it leads to is written
    try:
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if place.exists() and not place.is_file():  # to replace a device would destroy it
            raise OSError(errno.EINVAL, "It is no regular file")
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        try_folder(folder_above(place))
    except OSError as error:
        raise ValueError(f"{name} is {str(path)!r}, which cannot be written: {error.strerror}") from None


def folder_above(path: pathlib.Path) -> pathlib.Path:
    """The nearest thing above a path that is there, in which what is missing on the way would be made."""
    path = path.absolute()
    return next((parent for parent in path.parents if os.path.lexists(parent)), path)


def try_folder(folder: pathlib.Path) -> None:
    """Makes a file and drops it again: permissions alone do not say that one can be made.

    Raises:
      OSError: where none can.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def finite(value: Any) -> Any:
    """The same value with nan and inf as None, tuples as lists."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
