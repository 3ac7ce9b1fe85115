"""Fetches a model from the Hugging Face hub: the needed files only, all of one commit, checked and cached."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from msrnn_jax.io.folders import check_space
from msrnn_jax.io.units import spell_bytes

from ..folder import digest, parse_object
from ..huggingface.safetensors import INDEX, SINGLE
from .errors import Place, explain, hub_errors
from .files import CONFIG, Entry, Listing, check_convertible, gguf_files, shards, small_files
from .name import parse_hub_name

TIMEOUT = 10.0  # seconds without a word from the hub
COMMIT = re.compile(r"[0-9a-f]{40}")


class Fetched(NamedTuple):
    """A model of the hub on this machine."""

    path: Path  # a folder, or the GGUF file that was named, of several parts the first
    repository: str
    revision: str  # as asked for, main if nothing was
    commit: str  # of every file
    digests: Mapping[str, str]  # sha256 by file name, of the files whose content was compared with it


def fetch(
    name: str,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    report: Callable[[str], None],
    check: Callable[[Path], None] = lambda folder: None,
) -> Fetched:
    """The files of a model that a conversion reads, downloaded unless they are in the cache.

    These are config.json, the tokenizer's files, and weights in safetensors; never pickles or code. The hub is the one
    of HF_ENDPOINT, a token that of HF_TOKEN or of `hf auth login`, as huggingface_hub finds them. Where the hub cannot
    be reached, or HF_HUB_OFFLINE is set, what the cache holds of the revision is used.

    Args:
      name: `org/name`, or `org/name/file.gguf` for one GGUF file, which alone is then fetched, or with the other parts
        of the model if it is one of several.
      revision: a branch, a tag or a commit; main if None.
      cache: where files are kept, in `huggingface` under it; huggingface_hub's own cache if None.
      report: called with lines on what is going on.
      check: called with the folder when all but the weights are in it; what it raises ends the download there.

    Raises:
      ValueError: the name is none, the hub cannot be reached and the cache does not hold the model, it refuses, the
        repository holds nothing that can be converted, the disk is full, or a file came damaged.
    """
    wanted = parse_hub_name(name)
    place = Place(
        wanted.repository,
        revision or constants.DEFAULT_REVISION,
        (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/"),
        Path(constants.HF_HUB_CACHE) if cache is None else cache / "huggingface",
    )
    with hub_errors(place):
        listing = _list(place, wanted.file or CONFIG, report)
        if wanted.file is not None:
            names = gguf_files(wanted.file, listing, place.repository)
            path = _get_large(place, listing, names, report)[0]
        else:
            check_convertible(place.repository, listing, f"{place.endpoint}/{place.repository}")
            names = small_files(listing)
            report(f"{place.repository} at {listing.commit}: {', '.join(names)}")
            path = [_get(place, listing, name, report) for name in names][0].parent
            check(path)
            weights = _weights(path, listing, place.repository)
            _get_large(place, listing, weights, report)
            names += weights
        if not listing.offline and place.revision != listing.commit:
            _download(place, listing, names[0], revision=place.revision)  # the cache notes which commit that is
    digests = {Path(name).name: known for name in names if (known := listing.files[name].hash) and len(known) == 64}
    return Fetched(path, place.repository, place.revision, listing.commit, digests)


def _list(place: Place, first: str, report: Callable[[str], None]) -> Listing:
    """The files of the revision's commit: as the hub says or, where it cannot be asked, as far as the cache has them.

    Args:
      first: a file that is needed in any case.
    """
    api = HfApi(endpoint=place.address)
    try:
        info = api.model_info(place.repository, revision=place.revision, files_metadata=True, timeout=TIMEOUT)
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        try:
            listing = _list_cache(place, first)
        except LocalEntryNotFoundError:
            raise ValueError(f"{explain(error, place)}; {place.cache} does not hold it") from error
        report(f"note: {explain(error, place)}; taking what the cache holds")
        return listing
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):  # a folder is called by it
        raise ValueError(f"{place.endpoint} does not say which commit {place.revision!r} of {place.repository} is")
    entries = {
        file.rfilename: Entry(file.size, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in info.siblings or []
        if file.rfilename.isprintable()
    }
    return Listing(info.sha, entries, offline=False)


def _list_cache(place: Place, first: str) -> Listing:
    path = Path(
        hf_hub_download(place.repository, first, revision=place.revision, cache_dir=place.cache, local_files_only=True)
    )
    folder = path.parents[first.count("/")]
    files = {
        # The cache's files are links to blobs that are called by their hashes.
        file.relative_to(folder).as_posix(): Entry(None, file.readlink().name if file.is_symlink() else None)
        for file in folder.rglob("*")
        if file.is_file()
    }
    return Listing(folder.name, files, offline=True)


def _weights(folder: Path, listing: Listing, repository: str) -> list[str]:
    if SINGLE in listing.files:
        return [SINGLE]
    text = (folder / INDEX).read_text(encoding="utf-8", errors="replace")
    return shards(parse_object(text, f"{repository}/{INDEX}"), listing, repository)


def _get_large(place: Place, listing: Listing, names: list[str], report: Callable[[str], None]) -> list[Path]:
    """Fetches files after a look at the free space."""
    blobs = place.cache / f"models--{place.repository.replace('/', '--')}" / "blobs"
    files = {name: listing.files[name] for name in names}
    missing = {
        name: file.size or 0
        for name, file in files.items()
        if not (listing.offline or (file.hash and (blobs / file.hash).exists()))
    }
    check_space(place.cache, sum(missing.values()))
    paths = []
    for number, name in enumerate(names, start=1):
        if name in missing:
            report(f"downloading {name} ({spell_bytes(missing[name])}, {number} of {len(names)})")
        paths.append(_get(place, listing, name, report))
    return paths


def _get(place: Place, listing: Listing, name: str, report: Callable[[str], None]) -> Path:
    """A file of the commit, its content checked; one that is damaged is fetched once more."""
    path = _download(place, listing, name, revision=listing.commit)
    if _is_intact(path, listing.files[name]):
        return path
    if listing.offline:
        raise ValueError(f"{path} is damaged: its content has another hash than its name says; delete it")
    report(f"note: {name} is damaged; fetching it again")
    path = _download(place, listing, name, revision=listing.commit, force=True)
    if not _is_intact(path, listing.files[name]):
        raise ValueError(f"{place.repository}: {name}, as downloaded, has another hash than {place.endpoint} says")
    return path


def _download(place: Place, listing: Listing, name: str, *, revision: str, force: bool = False) -> Path:
    return Path(
        hf_hub_download(
            place.repository,
            name,
            revision=revision,
            cache_dir=place.cache,
            endpoint=place.address,
            force_download=force,
            local_files_only=listing.offline,
        )
    )


def _is_intact(path: Path, entry: Entry) -> bool:
    """Whether a file is what the hub says: by its sha256 if it is large, by git's own hash if it is small."""
    if entry.hash is not None and len(entry.hash) == 64:
        return digest(path) == entry.hash
    if entry.hash is not None and len(entry.hash) == 40:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == entry.hash
    return entry.size in (None, path.stat().st_size)
