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
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage], of httpx or httpx2, as the version of the hub's package has it
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from msrnn_jax.io.errors import first_line, typed_line


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


def is_unreachable(error: Exception) -> bool:
    """Whether the hub may be there at another time, so that the cache is worth a look."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, HTTPError | OfflineModeIsEnabled)


@contextlib.contextmanager
def hub_errors(place: Place) -> Iterator[None]:
    """Turns whatever fetching raises into a `ValueError` of one line that shows no token."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        if type(error) in (ValueError, MemoryError) and not _hides_another(error):
            raise  # ours; theirs are of classes of their own
        raise ValueError(explain(error, place)) from error
    except Exception as error:  # what a server that is no hub makes the library do cannot be foreseen
        raise ValueError(explain(error, place)) from error


def explain(error: Exception, place: Place) -> str:
    """The line for an error."""
    if (isinstance(error, LocalEntryNotFoundError) or _hides_another(error)) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return plain(_explain(error, place))


def _hides_another(error: Exception) -> bool:
    """Whether it is huggingface_hub's word that a second download failed, of which only the cause says why."""
    return type(error) is ValueError and str(error).startswith("Force download failed")


def _explain(error: Exception, place: Place) -> str:
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, place)
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"{place.endpoint} did not answer in JSON, so it is no hub; HF_ENDPOINT must be the address of one"
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return (
            f"{place.repository} (revision {place.revision!r}) is not in {place.cache}, and HF_HUB_OFFLINE forbids to "
            f"ask {place.endpoint} for it"
        )
    if isinstance(error, HTTPError):
        sort = "did not answer in time" if "Timeout" in type(error).__name__ else "cannot be reached"
        return f"{place.endpoint} {sort}: {first_line(error)}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {place.cache} is full; what was fetched whole stays there for the next time"
    cut = re.match(r"Consistency check failed: file should be of size (\d+) but has size (\d+) \((.*)\)", str(error))
    if cut:
        return f"{place.endpoint} sent {cut[2]} bytes of {cut[3]}; it must send {cut[1]}; run the command again"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"{place.repository} cannot be fetched from {place.endpoint}: {typed_line(error)}"


def _explain_answer(error: HfHubHTTPError, place: Place) -> str:
    """The line for an answer that is a refusal."""
    code = error.response.status_code
    page = f"{place.endpoint}/{place.repository}"
    if isinstance(error, GatedRepoError):
        return f"{place.repository} is gated: ask for access on {page}, then set HF_TOKEN to a token of that account"
    if isinstance(error, RevisionNotFoundError):
        return f"{place.repository} has no revision {place.revision!r}"
    if isinstance(error, EntryNotFoundError):
        return f"{place.repository} has no such file: {error.response.url.path}"
    if code == 401 and "Invalid credentials" in str(error.response.headers.get("X-Error-Message", "")):
        return f"{place.endpoint} does not accept the token in HF_TOKEN (or that of `hf auth login`)"
    if code in (401, 404):
        who = (
            "the token has no access to it"
            if get_token()
            else "it is private: set HF_TOKEN to a token that may read it"
        )
        return f"{place.endpoint} has no model {place.repository}, or {who}"
    if code == 403:
        return f"{place.endpoint} forbids this token to read {place.repository}: {_reason(error)}"
    if code == 429:
        return f"{place.endpoint} is asked too often from here; wait some minutes, or set HF_TOKEN"
    later = "; try again later" if code >= 500 else ""
    return f"{place.endpoint} answered {code} for {error.response.url.path}: {_reason(error)}{later}"


def _reason(error: HfHubHTTPError) -> str:
    message = error.server_message or error.response.reason_phrase or "it gave no reason"
    return (message.strip().splitlines() or ["it gave no reason"])[0][:200]


def check_token() -> None:
    """Refuses a token that cannot be sent.

    Raises:
      ValueError: it holds what no HTTP header can.
    """
    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):
        raise ValueError("HF_TOKEN (or the token of `hf auth login`) must be of ASCII letters, digits and signs")


def plain(text: str) -> str:
    """What a server or a library says, without the token, passwords in addresses, and control characters."""
    token = get_token()
    text = text.replace(token, "***") if token else text
    text = re.sub(r"(?<=://)[^/\s]*@", "", text)
    return "".join(letter if letter.isprintable() else " " for letter in text)
