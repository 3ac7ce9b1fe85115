"""A small Hugging Face hub on loopback: what huggingface_hub asks for, with faults on demand."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".bin")  # kept apart from git, on another host
REVISION = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BLOB = re.compile(r"/blob/([0-9a-f]{64})")


class Request(NamedTuple):
    """What was asked for."""

    method: str
    path: str
    file: str | None  # of a repository
    headers: dict[str, str]


class Repository:
    """Files by name, at one commit after another."""

    def __init__(self, files: dict[str, bytes], *, token: str | None = None, gated: bool = False):
        self.token = token  # that may read it; everybody if None
        self.gated = gated  # listed for all, but with files for nobody
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.commit("main", files)

    def commit(self, ref: str, files: dict[str, bytes]) -> str:
        text = "".join(f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in sorted(files.items()))
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name] = dict(files)
        self.refs[ref] = name
        return name


Fault = Callable[["_Handler", bytes], bool]  # answers in place of the hub and returns True, or leaves it to it


class LoopbackHub:
    """The server's state; tests change it, and read what it was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, list[Fault]] = {}  # by "METHOD file", each for one request
        self.endpoint = self.storage = ""

    def asked(self, method: str) -> list[str]:
        """The repository files that were asked for, in order."""
        return [request.file for request in self.requests if request.method == method and request.file]

    def fault(self, what: str, *faults: Fault) -> None:
        self.faults.setdefault(what, []).extend(faults)


@contextlib.contextmanager
def serve() -> Iterator[LoopbackHub]:
    """A hub, and a second host for its large files, while the block runs."""
    hub = LoopbackHub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)]
    for server in servers:
        server.daemon_threads = True
        server.hub = hub  # pyright: ignore[reportAttributeAccessIssue]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{servers[0].server_port}"
    hub.storage = f"http://localhost:{servers[1].server_port}"
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def status(code: int, *, error: str | None = None, message: str = "so it is", **headers: str) -> Fault:
    """A fault: an answer that refuses."""

    def answer(handler: "_Handler", content: bytes) -> bool:
        del content
        extra = {"X-Error-Code": error} if error else {}
        handler.answer(code, b"", {**extra, "X-Error-Message": message, **headers})
        return True

    return answer


def cut(after: int) -> Fault:
    """A fault: the connection closes after some bytes of the content."""

    def answer(handler: "_Handler", content: bytes) -> bool:
        handler.send_content(content, stop=after)
        handler.close_connection = True
        return True

    return answer


def other(content: bytes) -> Fault:
    """A fault: something else is sent."""

    def answer(handler: "_Handler", right: bytes) -> bool:
        del right
        handler.answer(200, content, {})
        return True

    return answer


def stall(event: threading.Event, after: int | None = None) -> Fault:
    """A fault: some bytes come, or not even the answer's head, and no more until the event."""

    def answer(handler: "_Handler", content: bytes) -> bool:
        if after is not None:
            handler.send_content(content, stop=after)
        event.wait(60)
        handler.close_connection = True
        return True

    return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub  # pyright: ignore[reportAttributeAccessIssue]

    def answer(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def send_content(self, content: bytes, stop: int | None = None, headers: dict[str, str] | None = None) -> None:
        """The content, or the part of it that was asked for; with `stop`, not all of what was promised."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in {"Content-Length": str(len(content) - start), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:][:stop])
            self.wfile.flush()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        revision, resolve = REVISION.fullmatch(urlsplit(self.path).path), RESOLVE.fullmatch(urlsplit(self.path).path)
        blob = BLOB.fullmatch(path)
        file = unquote(resolve[3]) if resolve else None
        if blob:
            file = self._named(blob[1])
        self.hub.requests.append(Request(self.command, self.path, None if blob else file, dict(self.headers)))
        content = self._content(file, resolve, blob)
        faults = self.hub.faults.get(f"{self.command} {file or 'listing'}", [])
        if faults and not (resolve and self.command == "GET" and str(file).endswith(LARGE)):
            if faults.pop(0)(self, content or b""):
                return
        if blob and content is not None:
            return self.send_content(content)
        found = revision or resolve
        if not found:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        repository = self.hub.repositories.get(found[1])
        if repository is None or repository.token not in (None, self._token()):
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        name = unquote(found[2])
        commit = repository.refs.get(name, name)
        if commit not in repository.commits:
            message = {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {name}"}
            return self.answer(404, b"", message)
        if revision:
            return self.answer(200, json.dumps(listing(found[1], repository, commit)).encode(), {})
        if repository.gated:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        assert file is not None
        if content is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_blob(content)}"'}
        if file.endswith(LARGE):
            large = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{large}"', "X-Linked-Size": str(len(content))}
            return self.answer(302, b"", {**headers, "Location": f"{self.hub.storage}/blob/{large}"})
        return self.send_content(content, headers=headers)

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _content(self, file: str | None, resolve: re.Match | None, blob: re.Match | None) -> bytes | None:
        for name, repository in self.hub.repositories.items():
            for commit, files in repository.commits.items():
                if resolve and name == resolve[1]:
                    asked = unquote(resolve[2])
                    if repository.refs.get(asked, asked) == commit and file in files:
                        return files[file]
                if blob:
                    for content in files.values():
                        if hashlib.sha256(content).hexdigest() == blob[1]:
                            return content
        return None

    def _named(self, sha256: str) -> str | None:
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                for name, content in files.items():
                    if hashlib.sha256(content).hexdigest() == sha256:
                        return name
        return None


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def listing(name: str, repository: Repository, commit: str) -> dict[str, Any]:
    """What the hub says of a commit."""
    siblings = []
    for file, content in sorted(repository.commits[commit].items()):
        entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": _git_blob(content)}
        if file.endswith(LARGE):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        siblings.append(entry)
    gated = "manual" if repository.gated else False
    return {"id": name, "modelId": name, "sha": commit, "private": False, "gated": gated, "siblings": siblings}
