"""What a hub's answers must keep to before huggingface_hub uses them: names that stay in the cache, bodies that end."""

import contextlib
import importlib
import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http

TEXTS = 2**26  # bytes of an answer, or a file, that is read into memory, at most
COMMIT = re.compile(r"[0-9a-f]{40}")
TAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's hash of a small file, the sha256 of a large one
PACKED = re.compile("gzip|deflate|br|zstd", re.IGNORECASE)  # what HTTP clients unpack
TAGS = ("X-Linked-ETag", "ETag")


class Guard:
    """Hooks of an HTTP client that check every answer; huggingface_hub makes paths of some headers.

    To ask for the headers first would not do: nothing makes a hub answer the same a second time.
    """

    def __init__(self, endpoint: str):
        self.endpoint = endpoint  # as errors show it
        self.expected: tuple[str, int | None] | None = None  # the file that is being fetched, and its bytes if known

    @contextlib.contextmanager
    def expecting(self, name: str, size: int | None) -> Iterator[None]:
        """Lets a file be no longer than the hub's listing says; while none is expected, all answers are texts."""
        self.expected = (name, size)
        try:
            yield
        finally:
            self.expected = None

    def ask(self, request: Any) -> None:
        """Forbids compression, since a short answer could then be an endless one."""
        request.headers["Accept-Encoding"] = "identity"

    def check(self, response: Any) -> None:
        """Refuses an answer, or limits what is read of it.

        Raises:
          ValueError: a header that becomes a path is no hash, or the body came compressed.
        """
        commit = response.headers.get("X-Repo-Commit")
        if commit is not None and not COMMIT.fullmatch(commit):
            raise ValueError(
                f"{self.endpoint} sent {commit[:80]!r} as a commit (X-Repo-Commit); it must be a hash of git"
            )
        if response.request.method == "HEAD":
            if response.status_code < 400:
                self._check_tags(response)
            return
        packed = response.headers.get("Content-Encoding", "")
        if PACKED.search(packed):
            raise ValueError(f"{self.endpoint} sent an answer in the encoding {packed[:80]!r}, which was not asked for")
        name, limit = "what must be a short text", TEXTS
        if self.expected is not None and response.status_code in (200, 206):
            name, limit = self.expected
        if limit is not None:
            start = re.fullmatch(r"bytes=(\d+)-", response.request.headers.get("Range", ""))
            left = limit - int(start[1]) if start and response.status_code == 206 else limit
            response.stream = _limited(response, left, f"{self.endpoint} sent more than {limit} bytes of {name}")

    def _check_tags(self, response: Any) -> None:
        name = next((name for name in TAGS if name in response.headers), None)
        if name is None:
            return
        tag = response.headers[name]
        if TAG.fullmatch(tag.lstrip("W/").strip('"')):  # as huggingface_hub does before it makes a path of it
            return
        if name == "ETag" and response.has_redirect_location:
            del response.headers[name]  # the tag of a redirection's own text
            return
        raise ValueError(
            f"{self.endpoint} sent {tag[:80]!r} as the tag of a file ({name}); it must be a sha1 or a sha256"
        )


@contextlib.contextmanager
def guarded(guard: Guard) -> Iterator[None]:
    """Puts the guard into huggingface_hub's HTTP clients; it makes new ones when a connection fails."""
    make = _http._GLOBAL_CLIENT_FACTORY  # pyright: ignore[reportPrivateUsage]; a program may have set its own

    def make_guarded() -> Any:
        client = make()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], guard.ask],
            "response": [guard.check, *hooks["response"]],
        }
        return client

    set_client_factory(make_guarded)
    try:
        yield
    finally:
        set_client_factory(make)


def _limited(response: Any, limit: int, message: str) -> Any:
    """The body of an answer, which must end in time."""
    httpx = importlib.import_module(
        type(response).__module__.partition(".")[0]
    )  # httpx or httpx2, as the hub's package
    stream = response.stream

    class Limited(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            left = limit
            for block in stream:
                left -= len(block)
                if left < 0:
                    raise ValueError(message)
                yield block

        def close(self) -> None:
            stream.close()

    return Limited()
