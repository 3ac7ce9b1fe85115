"""Asking a language model behind an OpenAI-compatible endpoint, which may be slow, busy or not there."""

import dataclasses
import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError, TimeoutError

from msrnn_jax.recurrence.checks import check_int

KEY = "OPENAI_API_KEY"  # the variable that clients of such endpoints read
BUSY = (408, 409, 429, *range(500, 600))  # answers that may be others a little later
BACKOFF = 1.0  # seconds; doubled at every try
DAY = 86_400  # seconds
PATIENCE = 60.0  # seconds between two tries, at most
LONGEST = 2**24  # bytes of an answer


@dataclasses.dataclass(frozen=True)
class Judge:
    """A model that is asked; its key is in none of this, so that it is written nowhere.

    Attributes:
      url: of the endpoint, to which /chat/completions is added.
      model: its name there.
      key_env: the variable that holds the key; None: `KEY`, which may be missing.
      timeout: seconds to wait for a whole answer, or for the next piece of one.
      tries: of one question, at most.
    """

    url: str
    model: str
    key_env: str | None = None
    timeout: float = 60.0
    tries: int = 5

    def __post_init__(self):
        try:
            parts = urlsplit(self.url)
            host = (parts.hostname or "").encode("idna")  # refuses labels that no host can have
            known = parts.scheme in ("http", "https") and host and parts.port != 0 and not re.search(r"\s", self.url)
        except ValueError:
            known = False
        if not known:
            raise ValueError(f"judge is {self.url!r}; it must be an address such as https://api.openai.com/v1")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("judge has more than an address in it; its key belongs into a variable, see judge_key_env")
        if not self.model:
            raise ValueError("judge_model is empty; it must be the name of a model")
        if not 0 < self.timeout <= DAY:
            raise ValueError(f"judge_timeout is {self.timeout}; it must be a number of seconds above 0, {DAY} at most")
        check_int("judge_tries", self.tries, 1)


def key_of(judge: Judge) -> str | None:
    """The key that the environment holds; None where it holds none and none was named.

    Raises:
      ValueError: where the variable that was named is not set, or holds what can be no key.
    """
    name = KEY if judge.key_env is None else judge.key_env
    key = os.environ.get(name, "").strip()
    if not key and judge.key_env is not None:
        raise ValueError(f"judge_key_env is {name!r}, but this variable is not set")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"the variable {name} holds characters that can be in no key")
    return key or None


def ask(judge: Judge, text: str) -> str:
    """What the model answers to a message, at temperature 0; nothing where it says nothing.

    Asks again, after longer and longer waits, while the endpoint is busy or cannot be reached.

    Raises:
      ValueError: where no answer can be had.
    """
    key = key_of(judge)
    question = {"model": judge.model, "temperature": 0, "messages": [{"role": "user", "content": text}]}
    with requests.Session() as session:
        for left in range(judge.tries - 1, -1, -1):
            try:
                answer = _post(session, judge, question, key)
            except (requests.RequestException, HTTPError) as error:
                if not left:
                    raise ValueError(f"judge {judge.url!r} cannot be asked: {_reason(error, judge)}") from None
                answer = None
            if answer is not None and (answer.status not in BUSY or not left):
                break
            _wait(judge.tries - 1 - left, None if answer is None else answer.retry_after)
    assert answer is not None
    if answer.status != 200:
        raise ValueError(f"judge {judge.url!r} {_refusal(answer, judge, key)}")
    try:
        content = json.loads(answer.body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        content = answer
    if not isinstance(content, str | None):
        raise ValueError(f"judge {judge.url!r} answers with what is no chat completion: {_excerpt(answer, key)}")
    return content or ""


class _Answer(NamedTuple):
    status: int
    reason: str
    retry_after: str | None
    body: bytes


def _post(session: requests.Session, judge: Judge, question: Mapping[str, Any], key: str | None) -> _Answer:
    """One request; an answer that is not whole in time, or has no end, counts as none."""

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if key is not None:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    address, end = judge.url.rstrip("/") + "/chat/completions", time.monotonic() + judge.timeout
    given: dict[str, Any] = {"auth": sign, "timeout": judge.timeout, "allow_redirects": False, "stream": True}
    with session.post(address, json=question, **given) as response:
        body = b""
        for piece in response.iter_content(None):
            body += piece
            if time.monotonic() > end:
                raise requests.Timeout
            if len(body) > LONGEST:
                raise requests.RequestException(f"its answer has more than {LONGEST:,} bytes")
        return _Answer(response.status_code, response.reason or "", response.headers.get("Retry-After"), body)


def _wait(tried: int, told: str | None) -> None:
    """Before the next try: as long as the endpoint says, but for a minute at most, else twice as long every time."""
    seconds = float(told) if told and told.strip().isdecimal() else BACKOFF * 2**tried
    time.sleep(min(seconds, PATIENCE))


def _reason(error: Exception, judge: Judge) -> str:
    """The cause in words, out of the layers of exceptions around it."""
    cause = error.args[0] if error.args else error
    cause = getattr(cause, "reason", None) or cause
    if isinstance(error, requests.Timeout) or (isinstance(cause, TimeoutError) and not _is_refused(cause)):
        return f"no answer within {judge.timeout:g} seconds, tries: {judge.tries}"
    words = str(cause).rsplit(": ", 1)[-1] if isinstance(cause, HTTPError) else str(cause)
    return f"{' '.join(words.split())[:200] or type(cause).__name__}, tries: {judge.tries}"


def _is_refused(cause: Exception) -> bool:
    return "Errno" in str(cause)  # a connection that was never made counts as a timeout in urllib3


def _refusal(answer: _Answer, judge: Judge, key: str | None) -> str:
    status = f"{answer.status} {answer.reason}".strip()
    if answer.status in (401, 403):  # what it says of a key may hold parts of it
        name = judge.key_env or KEY
        return f"refuses {f'the key in {name}' if key else f'to answer without a key, and {name} is not set'}: {status}"
    tries = f", tries: {judge.tries}" if answer.status in BUSY else ""
    return f"answers {status}{tries}: {_excerpt(answer, key)}"


def _excerpt(answer: _Answer, key: str | None) -> str:
    try:
        words = json.loads(answer.body)["error"]["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        words = answer.body.decode("utf-8", "replace")
    words = " ".join(str(words).split())
    return (words.replace(key, "***") if key else words)[:200] or "nothing"
