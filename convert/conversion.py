"""The one function that converts: find out what the source is, read it, write it."""

import contextlib
import importlib.metadata
import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from msrnn_jax.checkpoint.layout import SETTINGS_FILE, SOURCE_FILE, TEMPLATE_FILE, TOKENIZER_FILE
from msrnn_jax.checkpoint.save import CHECKPOINT, save
from msrnn_jax.io.folders import check_and_recover, check_space
from msrnn_jax.io.units import spell_bytes, tree_bytes
from msrnn_jax.params import abstract_params
from msrnn_jax.text.tokenizer import token_settings

from .folder import check_apart, digest
from .problems import refuse, shorten
from .progress import Meter, unseen
from .resolve import Resolved, check_pre, read, resolve
from .smollm2 import NAME
from .source import Source, TokenizerFacts
from .tensors import Findings, deferred
from .verify import check_verifiable
from .verify import verify as compare

DTYPES = ("float32", "bfloat16", "float16")


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    force: bool = False,
    cache: Path | None = None,
    revision: str | None = None,
    pre: str | None = None,
    verify: bool = False,
    report: Callable[[str], None] = lambda line: None,
    meter: Meter = unseen,
) -> Path:
    """Turns a LLaMA-family checkpoint into one that `msrnn_jax.load` reads.

    Args:
      source: a Hugging Face folder, a .gguf file, the name of a model on the Hugging Face hub (`org/name`, or
        `org/name/file.gguf`) where no such path exists, or 'smollm2-135m'; names are downloaded ('./smollm2-135m' is
        a path).
      destination: the folder to write. It appears complete or not at all; missing parents are made.
      dtype: of the weights; the source's own if None, float32 if that is quantised.
      force: replace a checkpoint that is there.
      cache: where downloads are kept; see `msrnn_jax.io.environment.default_cache`, and for the hub its own cache.
      revision: of a model on the hub: a branch, a tag or a commit; main if None.
      pre: how the byte-level tokenizer of a .gguf file cuts texts into words, instead of what the file says in
        `tokenizer.ggml.pre`, which old files lack: 'llama-bpe', 'qwen2' and other names of llama.cpp.
      verify: compare the logits of the result with those of the source in transformers before it appears; needs
        torch, and memory for the whole model.
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
    if pre is not None:
        check_pre(pre)
    path = Path(destination)
    check_and_recover(path, CHECKPOINT, force)
    check_apart(Path(source), path)
    if verify:
        check_verifiable(gguf=source == NAME or str(source).lower().endswith(".gguf"))
    found = resolve(str(source), revision=revision, cache=cache, report=report)
    read_from = read(found, dtype, report, pre)
    size = tree_bytes(abstract_params(read_from.config))
    check_space(path, size)
    report(f"writing {path}: {len(read_from.stored)} tensors, {spell_bytes(size)} in {read_from.config.dtype}")
    _write(str(source), found, read_from, path, force, verify, report, meter)
    return path


def _write(
    name: str,
    found: Resolved,
    source: Source,
    path: Path,
    force: bool,
    verify: bool,
    report: Callable[[str], None],
    meter: Meter,
) -> None:
    findings = Findings()
    files = text_files(
        source.facts,
        kind=found.kind,
        origin=found.origin,
        digests=_digests(source.files, found.digests, meter),
        tensor_types=(tensor.kind for tensor in source.stored.values()),
    )

    def inspect(folder: Path) -> None:
        shown.close()  # all is written
        dtype = source.config.dtype
        refuse(name, [f"tensor {tensor!r} holds values too large for {dtype}" for tensor in findings.overflowed])
        if verify:
            compare(found.path, folder, report=report)

    with contextlib.ExitStack() as shown:
        watch = shown.enter_context(meter("writing", tree_bytes(abstract_params(source.config))))
        params = deferred(source.config, source.names, source.stored, findings, watch)
        save(path, source.config, params, files=files, overwrite=force, inspect=inspect)
    infinite = (f"warning: tensor {tensor!r} holds values that are not finite" for tensor in findings.infinite)
    vanished = (
        f"warning: tensor {tensor!r} holds values that are 0 in {source.config.dtype}" for tensor in findings.vanished
    )
    for line in [*shorten(infinite, "such tensors"), *shorten(vanished, "such tensors")]:
        report(line)


def _digests(files: Mapping[str, Path], known: Mapping[str, str], meter: Meter) -> dict[str, str]:
    with meter("hashing", sum(file.stat().st_size for name, file in files.items() if name not in known)) as watch:
        return {name: known.get(name) or digest(file, watch) for name, file in sorted(files.items())}


def text_files(
    facts: TokenizerFacts,
    *,
    kind: str,
    origin: Mapping[str, str],
    digests: Mapping[str, str],
    tensor_types: Iterable[str],
) -> dict[str, str]:
    """The files by name: the tokenizer's, and `source.json` with what was converted.

    Args:
      kind: which reader it went through.
      origin: where it was fetched from: `repository`, `revision` and `commit` of a hub; else nothing.
      digests: sha256 by file name, relative to the source.
      tensor_types: one for every tensor of the source.
    """
    settings = {
        "bos_token_id": facts.bos_token_id,
        "eos_token_ids": facts.eos_token_ids,
        **token_settings(facts.names),
    }
    source = {
        "kind": kind,
        **origin,
        "files": dict(digests),
        "tensor_types": dict(sorted(Counter(tensor_types).items())),
        "converter": _version(),
    }
    files = {SETTINGS_FILE: _to_json(settings), SOURCE_FILE: _to_json(source)}
    if facts.tokenizer is not None:
        files[TOKENIZER_FILE] = facts.tokenizer
    if facts.chat_template is not None:
        files[TEMPLATE_FILE] = facts.chat_template
    return files


def _to_json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _version() -> str:
    try:
        return f"msrnn_jax {importlib.metadata.version('msrnn_jax')}"
    except importlib.metadata.PackageNotFoundError:
        return "msrnn_jax, from a checkout"
