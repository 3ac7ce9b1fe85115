"""The files of a checkpoint folder: found, read and hashed, none outside it ever opened."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .problems import cut
from .progress import Watch


def digest(path: Path, watch: Watch = lambda count: None) -> str:
    """The sha256 of a file, in hexadecimal.

    Args:
      watch: called with the bytes read since the last call.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            found.update(block)
            watch(len(block))
    return found.hexdigest()


def parse_object(text: str, name: str) -> dict[str, Any]:
    """The JSON object in a text; `name` is the file that errors speak of."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from None
    if type(value) is not dict:
        raise ValueError(f"{name} holds a JSON {type(value).__name__}; it must be an object")
    return value


class Folder:
    """A checkpoint folder; it remembers which of its files were asked for."""

    def __init__(self, path: Path):
        self.path = path
        self.used: dict[str, Path] = {}  # by name

    def find(self, name: str) -> Path | None:
        """The path of a file, or None if there is none of that name.

        Raises:
          ValueError: the name is not a plain file name, or a link leads out of the folder. Links into
            the `blobs` of a Hugging Face cache, the model's or those that models share, are followed, because
            its folders are made of them.
        """
        if name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
            raise ValueError(f"{cut(repr(name))} is not a plain file name inside {self.path}")
        path = self.path / name
        try:
            path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{cut(str(path))} cannot be read: {error.strerror}") from None
        if not path.exists():
            raise ValueError(f"{path} is a link to a file that does not exist")
        if not path.is_file():
            raise ValueError(f"{path} is not a file")
        if not self._holds(path.resolve()):
            raise ValueError(f"{path} is a link that leads out of the folder, to {path.resolve()}")
        self.used[name] = path
        return path

    def text(self, name: str) -> str | None:
        """The content of a text file, or None if there is no such file."""
        path = self.find(name)
        if path is None:
            return None
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in a file, or None if there is no such file."""
        text = self.text(name)
        return None if text is None else parse_object(text, str(self.path / name))

    def _holds(self, target: Path) -> bool:
        root = self.path.resolve()
        if target.is_relative_to(root):
            return True
        model = root.parent.parent  # where the folder is CACHE/models--ORG--NAME/snapshots/COMMIT
        cached = root.parent.name == "snapshots"
        shared = cached and model.name.startswith("models--") and target.is_relative_to(model.parent / "blobs")
        return shared or (cached and target.is_relative_to(model / "blobs"))


def check_apart(source: Path, destination: Path) -> None:
    """Refuses a source that is the destination, or lies in it."""
    if not source.exists():
        return
    theirs, ours = (Path(os.path.realpath(path)) for path in (source, destination))
    if theirs == ours:
        raise ValueError(f"the source and the destination are the same: {source}")
    if theirs.is_relative_to(ours):
        raise ValueError(f"the source {source} lies inside the destination {destination}, which would be replaced")
