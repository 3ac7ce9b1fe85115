"""What can go wrong on the way to the Hugging Face hub, in one line each."""

import contextlib
import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from msrnn_jax.io.errors import typed_line


class Place(NamedTuple):
    """What is fetched, from where, to where."""

    repository: str
    revision: str  # as asked for
    address: str  # the hub's, maybe with a password
    cache: Path

    @property
    def endpoint(self) -> str:
        """The hub's address as it may be shown."""
        return plain(self.address)


@contextlib.contextmanager
def hub_errors(place: Place) -> Iterator[None]:
    """Turns whatever fetching raises into a `ValueError` of one line that shows no token."""
    try:
        yield
    except Exception as error:  # what a server that is no hub makes the library do cannot be foreseen
        if type(error) is ValueError and not _hides_another(error):
            raise  # ours; theirs are of classes of their own
        raise ValueError(explain(error, place)) from error


def explain(error: Exception, place: Place) -> str:
    """The line for an error."""
    if _hides_another(error) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return plain(_explain(error, place))


def _hides_another(error: Exception) -> bool:
    """Whether it is huggingface_hub's word that a download failed, of which only the cause says why."""
    return isinstance(error, LocalEntryNotFoundError) or str(error).startswith("Force download failed")


def _explain(error: Exception, place: Place) -> str:
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, place)
    if isinstance(error, json.JSONDecodeError):
        return f"{place.endpoint} did not answer in JSON, so it is no hub; HF_ENDPOINT must be the address of one"
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE forbids to ask {place.endpoint} for {place.repository} (revision {place.revision!r})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {place.cache} is full; what was fetched whole stays there for the next time"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"{place.repository} cannot be fetched from {place.endpoint}: {typed_line(error)}"


def _explain_answer(error: HfHubHTTPError, place: Place) -> str:
    """The line for an answer that is a refusal."""
    code, said = error.response.status_code, error.server_message or error.response.reason_phrase or ""
    if isinstance(error, GatedRepoError):
        page = f"{place.endpoint}/{place.repository}"
        return f"{place.repository} is gated: ask for access on {page}, then set HF_TOKEN to a token of that account"
    if isinstance(error, RevisionNotFoundError):
        return f"{place.repository} has no revision {place.revision!r}"
    if code == 401 and "Invalid credentials" in said:
        return f"{place.endpoint} does not accept the token in HF_TOKEN (or that of `hf auth login`)"
    if code in (401, 404):
        private = "it is private: set HF_TOKEN to a token that may read it"
        who = "the token has no access to it" if get_token() else private
        return f"{place.endpoint} has no model {place.repository}, or {who}"
    later = "; try again later" if code == 429 or code >= 500 else ""
    return f"{place.endpoint} answered {code} for {error.response.url.path}: {said[:200]}{later}"


def plain(text: str) -> str:
    """What a server or a library says, without the token, passwords in addresses, and control characters."""
    token = get_token()
    text = text.replace(token, "***") if token else text
    text = re.sub(r"(?<=://)[^/\s]*@", "", text)
    return "".join(letter if letter.isprintable() else " " for letter in text)
