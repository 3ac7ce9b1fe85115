"""What the name of a source means: a folder, a file, a model on the hub, or the one that comes as a wheel."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from msrnn_jax.io.environment import default_cache

from .folder import Folder
from .hub.name import is_hub_name
from .problems import refuse
from .smollm2 import NAME, SMOLLM2, fetch
from .source import Source

SOURCES = f"a Hugging Face LLaMA folder, a .gguf file, the name of a model on the hub (org/name), or {NAME!r}"


class Resolved(NamedTuple):
    """Where a source lies."""

    path: Path  # a folder or a .gguf file
    kind: str  # what `source.json` calls it: its format, or the name of the wheel
    origin: Mapping[str, str] = {}  # where it was fetched from
    digests: Mapping[str, str] = {}  # sha256 by file name, of the files of which it is known already


def resolve(name: str, *, revision: str | None, cache: Path | None, report: Callable[[str], None]) -> Resolved:
    """The place of a source, fetched first where it is a name: what exists is a path.

    Raises:
      ValueError: there is no such thing, or it cannot be fetched.
    """
    hub = name != NAME and not Path(name).exists() and is_hub_name(name)
    if revision is not None and not hub:
        raise ValueError(f"revision is {revision!r}, but {name} is no model on the hub")
    if name == NAME:
        return Resolved(fetch(SMOLLM2, default_cache() if cache is None else cache, report), NAME)
    if hub:
        return _fetch_from_hub(name, revision, cache, report)
    path = Path(name)
    if not path.exists():
        raise ValueError(f"{path} does not exist; the source must be {SOURCES}")
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".gguf"):
        raise ValueError(f"{path} is a file, and not a .gguf one; the source must be {SOURCES}")
    return Resolved(path, "huggingface" if path.is_dir() else "gguf")


def check_pre(pre: str) -> None:
    """Raises unless this is a name of a way to cut texts into words."""
    with extra():
        from .pre_tokenizers import WORDS
    if pre not in WORDS:
        raise ValueError(f"pre is {pre!r}; it must be one of {', '.join(WORDS)}")


def read(found: Resolved, dtype: str | None, report: Callable[[str], None], pre: str | None = None) -> Source:
    """The source through its reader."""
    with extra():
        if found.path.is_dir():
            if pre is not None:
                raise ValueError(f"pre is {pre!r}, but {found.path} is no .gguf file")
            from .huggingface.reader import read_folder

            return read_folder(found.path, dtype, report)
        from .gguf.reader import read_gguf

        return read_gguf(found.path, dtype, report, pre)


@contextlib.contextmanager
def extra() -> Iterator[None]:
    """Says which extra brings the packages that only conversion needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the package {error.name!r} is missing; the extra 'convert' brings it (pip install '.[convert]')"
        ) from error


def _fetch_from_hub(name: str, revision: str | None, cache: Path | None, report: Callable[[str], None]) -> Resolved:
    with extra():
        from .hub.fetch import fetch as fetch_model
        from .huggingface.config import read_config
        from .huggingface.tokenizer import read_tokenizer

    held = False  # by the hub, so that the name is no mistyped path

    def check(folder: Path) -> None:
        """Refuses what small files show not to be convertible, before the weights are fetched."""
        nonlocal held
        held = True
        problems: list[str] = []
        files = Folder(folder)
        fields = files.json("config.json") or {}
        read_config(fields, problems)
        read_tokenizer(files, fields, problems)
        refuse(name, problems)

    try:
        got = fetch_model(name, revision=revision, cache=cache, report=report, check=check)
    except ValueError as error:
        if held:
            raise
        raise ValueError(f"there is no path {name} here, so it was looked for on the hub: {error}") from error
    origin = {"repository": got.repository, "revision": got.revision, "commit": got.commit}
    return Resolved(got.path, "huggingface" if got.path.is_dir() else "gguf", origin, got.digests)
