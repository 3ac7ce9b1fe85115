"""Fetches a model from the Hugging Face hub: the needed files only, all of one commit, checked and cached."""

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from msrnn_jax.io.errors import first_line
from msrnn_jax.io.units import spell_bytes

from ..folder import digest, parse_object
from ..huggingface.safetensors import INDEX, SINGLE
from .errors import Place, check_token, explain, hub_errors, is_unreachable, plain
from .files import (
    CONFIG,
    SMALL,
    TOKENIZER,
    TOKENIZER_MODEL,
    Entry,
    Listing,
    check_convertible,
    gguf_files,
    shards,
    small_files,
)
from .guard import COMMIT, TEXTS, Guard, guarded
from .name import parse_hub_name

TIMEOUT = 10.0  # seconds without a word from the hub
WAITS = (1.0, 3.0)  # seconds before the second and the third try of what failed on the hub's side
SPARE = 2**20  # bytes that stay free on the disk
PUBLIC = "https://huggingface.co"  # where no other hub is named

Result = TypeVar("Result")
Report = Callable[[str], None]


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
    report: Report,
    check: Callable[[Path], None] = lambda folder: None,
) -> Fetched:
    """The files of a model that a conversion reads, downloaded unless they are in the cache.

    These are config.json, the tokenizer's files, and weights in safetensors; never pickles or code. The hub is the one
    of HF_ENDPOINT, a token that of HF_TOKEN or of `hf auth login`, as huggingface_hub finds them. Where the hub cannot
    be reached, or HF_HUB_OFFLINE is set, what the cache holds of the revision is used.

    A connection that breaks is taken up where it broke; after a run that failed, the next one fetches the files again
    that were not whole.

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
    folder = Path(constants.HF_HUB_CACHE) if cache is None else cache / "huggingface"
    address = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT or PUBLIC).rstrip("/")
    place = Place(wanted.repository, revision or constants.DEFAULT_REVISION, address, folder)
    guard = Guard(place.endpoint)
    with hub_errors(place), _messages_to(report), guarded(guard):
        listing = _list(place, wanted.file or CONFIG, report)
        if wanted.file is not None:
            names = gguf_files(wanted.file, listing, place.repository)
            path = _get_large(place, guard, listing, names, report)[0]
            _remember_revision(place, guard, listing, names[0])
        else:
            path, names = _fetch_folder(place, guard, listing, report, check)
    digests = {Path(name).name: sha256 for name in names if (sha256 := listing.files[name].sha256)}
    return Fetched(path, place.repository, place.revision, listing.commit, digests)


def _fetch_folder(
    place: Place, guard: Guard, listing: Listing, report: Report, check: Callable[[Path], None]
) -> tuple[Path, list[str]]:
    check_convertible(place.repository, listing, f"{place.endpoint}/{place.repository}")
    names = small_files(listing)
    for name in names:
        if (size := listing.files[name].size or 0) > TEXTS:
            raise ValueError(
                f"{place.repository}: {name} is of {spell_bytes(size)}; at most {spell_bytes(TEXTS)} are read"
            )
    report(f"{place.repository} at {listing.commit}: {', '.join(names)}")
    folder = _get(place, guard, listing, names[0], report).parent
    _remember_revision(place, guard, listing, names[0])
    for name in names[1:]:
        _get(place, guard, listing, name, report)
    _remember_what_is_absent(folder, listing, report)
    check(folder)
    weights = [SINGLE]
    if SINGLE not in listing.files:
        index = parse_object(
            (folder / INDEX).read_text(encoding="utf-8", errors="replace"), f"{place.repository}/{INDEX}"
        )
        weights = shards(index, listing, place.repository)
    _get_large(place, guard, listing, weights, report)
    return folder, [*names, *weights]


def _list(place: Place, first: str, report: Report) -> Listing:
    """The files of the revision's commit: as the hub says or, where it cannot be asked, as far as the cache has them.

    Args:
      first: a file that is needed in any case.
    """
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES:
        return _list_cache(place, first)
    check_token()
    api = HfApi(endpoint=place.address)
    try:
        info = _patiently(
            lambda: api.model_info(place.repository, revision=place.revision, files_metadata=True, timeout=TIMEOUT)
        )
    except Exception as error:
        if not is_unreachable(error):
            raise
        try:
            listing = _list_cache(place, first)
        except LocalEntryNotFoundError:
            raise error from None
        report(f"note: {explain(error, place)}; taking what the cache holds")
        return listing
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise ValueError(f"{place.endpoint} does not say which commit {place.revision!r} of {place.repository} is")
    entries = {
        file.rfilename: Entry(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in info.siblings or []
        if file.rfilename.isprintable()
    }
    return Listing(info.sha, entries, offline=False)


def _list_cache(place: Place, first: str) -> Listing:
    path = Path(
        hf_hub_download(place.repository, first, revision=place.revision, cache_dir=place.cache, local_files_only=True)
    )
    folder = path.parents[first.count("/")]
    files = {file.relative_to(folder).as_posix(): _cached_entry(file) for file in folder.rglob("*") if file.is_file()}
    return Listing(folder.name, files, offline=True)


def _cached_entry(path: Path) -> Entry:
    """The cache's files are links to blobs that are called by their hashes."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return Entry(None, name if len(name) == 64 else None, name if len(name) == 40 else None)


def _get_large(place: Place, guard: Guard, listing: Listing, names: list[str], report: Report) -> list[Path]:
    """Fetches files after a look at the free space."""
    missing = {name: listing.files[name].size or 0 for name in names if not _is_cached(place, listing, name)}
    if missing:
        place.cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place.cache).free
        if sum(missing.values()) + SPARE > free:
            raise ValueError(
                f"{place.repository} needs {spell_bytes(sum(missing.values()))} more in {place.cache}, where "
                f"{spell_bytes(free)} are free; make room, or choose another place (--cache)"
            )
    paths = []
    for number, name in enumerate(names, start=1):
        if name in missing:
            report(f"downloading {name} ({spell_bytes(missing[name])}, {number} of {len(names)})")
        paths.append(_get(place, guard, listing, name, report))
    return paths


def _is_cached(place: Place, listing: Listing, name: str) -> bool:
    folder = place.cache / f"models--{place.repository.replace('/', '--')}"
    blob = listing.files[name].sha256 or listing.files[name].blob
    return (folder / "snapshots" / listing.commit / name).exists() or bool(blob and (folder / "blobs" / blob).exists())


def _get(place: Place, guard: Guard, listing: Listing, name: str, report: Report) -> Path:
    """A file of the commit, its content checked; one that is damaged is fetched once more."""
    for again in (False, True):
        path = _download(place, guard, listing, name, revision=listing.commit, force=again)
        if path.parents[name.count("/")].name != listing.commit:
            raise ValueError(f"{place.endpoint} sent {name} of another commit than {listing.commit}")
        if _is_intact(path, listing.files[name]):
            return path
        if listing.offline:
            raise ValueError(f"{path} is damaged: its content has another hash than its name says; delete it")
        if not again:
            report(f"note: {name} is damaged; fetching it again")
    if path.resolve().is_relative_to(place.cache.resolve()):
        for file in (path.resolve(), path):
            file.unlink(missing_ok=True)
    raise ValueError(
        f"{place.repository}: {name}, as downloaded, has another hash than {place.endpoint} says; it was deleted"
    )


def _download(place: Place, guard: Guard, listing: Listing, name: str, *, revision: str, force: bool = False) -> Path:
    size = listing.files[name].size
    if size is not None and revision != listing.commit:  # which may be another by now
        size = max(size, TEXTS)
    with guard.expecting(name, size):
        return Path(
            _patiently(
                lambda: hf_hub_download(
                    place.repository,
                    name,
                    revision=revision,
                    cache_dir=place.cache,
                    endpoint=place.address,
                    etag_timeout=TIMEOUT,
                    force_download=force,
                    local_files_only=listing.offline,
                )
            )
        )


def _is_intact(path: Path, entry: Entry) -> bool:
    if entry.size is not None and path.stat().st_size != entry.size:
        return False
    if entry.sha256 is not None:
        return digest(path) == entry.sha256
    if entry.blob is not None:
        start = b"blob %d\0" % path.stat().st_size
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.sha1(start)).hexdigest() == entry.blob
    return True


def _remember_revision(place: Place, guard: Guard, listing: Listing, file: str) -> None:
    """Makes the cache note the revision's commit, for the day when the hub cannot be asked."""
    if not listing.offline and place.revision != listing.commit:
        _download(place, guard, listing, file, revision=place.revision)


def _remember_what_is_absent(folder: Path, listing: Listing, report: Report) -> None:
    """Marks the optional files that the repository lacks, the way huggingface_hub's cache does.

    Without the marks nobody could tell, offline, a file that does not exist from one that was never fetched.
    """
    optional = [*SMALL, TOKENIZER_MODEL] if TOKENIZER not in listing.files else SMALL
    absent = [name for name in optional if name not in listing.files]
    marks = folder.parent.parent / ".no_exist" / listing.commit
    if not listing.offline:
        with contextlib.suppress(OSError):  # a cache that cannot be written to
            marks.mkdir(parents=True, exist_ok=True)
            for name in absent:
                (marks / name).touch()
        return
    unknown = [name for name in absent if not (marks / name).exists()]
    if unknown:
        report(f"note: the cache does not hold {', '.join(unknown)}; where the hub does, the result would be another")


def _patiently(call: Callable[[], Result]) -> Result:
    """Calls again where the hub fails on its own side, a few times."""
    for wait in WAITS:
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
        time.sleep(wait)
    return call()


@contextlib.contextmanager
def _messages_to(report: Report) -> Iterator[None]:
    """Passes huggingface_hub's warnings on as lines. Its progress bars it draws on terminals only."""
    logger = logging.getLogger("huggingface_hub")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Lines(report)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class _Lines(logging.Handler):
    """Reports the first line of every warning."""

    def __init__(self, report: Report):
        super().__init__(logging.WARNING)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        self.report(plain(f"note: {first_line(Exception(record.getMessage()))}"))
