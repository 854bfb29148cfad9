"""Chat completions from an OpenAI-compatible endpoint: several at once, with bounded retries, each reply kept on disk.

    endpoint = Endpoint("http://localhost:8000/v1", key=None, timeout=60)
    for name, outcome in endpoint.ask_all({name: body}, parallel=4):
        ...                                             # a Reply, or a Failure that says why there is none

The `openai` client retries what fails for the moment (408, 409, 429, 5xx, a timeout, a broken connection) after a growing pause,
or after the server's Retry-After of up to two minutes. A wrong endpoint (no connection, a refused key, an unknown address)
raises InputError at once.

The key travels in one header to one host. Redirects are not followed, the environment's proxies, ~/.netrc and OPENAI_* variables
are ignored, and a key leaves this machine over TLS only. A reply that repeats the key is malformed and never written down.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import threading
import time
from collections.abc import Generator, Mapping
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

from aligner.judging.replies import Failure, Malformed, Reply, canonical, keep, read_completion
from aligner.run.errors import InputError
from aligner.run.terminal import bar, printable

if TYPE_CHECKING:
    import openai
    from diskcache import Cache

TRIES = 5
MOST_BYTES = 2**20  # of one reply
SENT = ("Host", "Content-Type", "Content-Length", "Accept", "User-Agent")  # the other headers of a request are dropped
READ = ("Retry-After", "Location")  # the headers of a reply that anything depends on
RETRIED = {408, 409, 429}  # by openai, as are all from 500 on
WRONG = {401, 403, 404, 405}  # for one request as for all
LEGIBLE_KEY = re.compile(r"[A-Za-z0-9._~+/=:-]+")
STREAK = 10  # failures, one after the other, that end the run
SHORTEST_SECRET = 8  # characters; servers that want no key are often given EMPTY or x, which any text may hold


# ---- Asking ------------------------------------------------------------------------------------------------------------


class Transport(httpx2.HTTPTransport):
    """One exchange: sends the headers of SENT and the key, and reads at most MOST_BYTES within `timeout` seconds.

    openai would also send headers about this machine, and any that environment variables ask for.
    """

    def __init__(self, key: str | None, timeout: float) -> None:
        super().__init__(trust_env=False)
        self._authorization = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout
        self.answered = False
        self.stopped: InputError | None = None  # raised in place of every further request

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.stopped:
            raise self.stopped
        deadline = time.monotonic() + self._timeout
        request.headers = httpx2.Headers(self._authorization | chosen(request.headers, SENT) | {"Accept-Encoding": "identity"})
        try:
            with contextlib.closing(super().handle_request(request)) as response:
                raw = read_body(response.stream, deadline)
                return httpx2.Response(response.status_code, headers=chosen(response.headers, READ), content=raw)
        except (httpx2.ConnectError, UnicodeError) as error:  # UnicodeError: a host name that cannot be looked up
            if self.answered:
                raise
            told = f"no connection to {request.url.host} ({printable(str(error))[:200]}). Is the address right?"
            raise InputError(f"{told} Is the server running? Start it, and run the same command again") from None


def chosen(headers: httpx2.Headers, names: tuple[str, ...]) -> dict[str, str]:
    return {name: headers[name] for name in names if name in headers}


def read_body(chunks: Any, deadline: float) -> bytes:
    raw = bytearray()
    for chunk in chunks:
        raw += chunk
        if len(raw) > MOST_BYTES:
            raise Malformed("a reply that is too large")
        if time.monotonic() > deadline:
            raise httpx2.ReadTimeout("the reply took too long")
    return bytes(raw)


class Endpoint:
    """Where completions come from. `url` is the part before /chat/completions; `timeout` is in seconds, for one try."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self.url = checked_url(url)
        key = checked_key(key, self.url)
        self._secret = key if key and len(key) >= SHORTEST_SECRET else None
        self._transport = Transport(key, timeout)
        self._client = client(self.url, self._transport, timeout)
        self._lock = threading.Lock()
        self._failures = 0  # one after the other

    def ask_all(self, bodies: Mapping[str, dict], parallel: int) -> Generator[tuple[str, Reply | Failure], None, None]:
        """(name, outcome) of every request, in the order in which they come; at most `parallel` are under way at once.

        When the caller closes the iterator (contextlib.closing) no further request is sent. The pool's workers are daemons: no
        exit waits for one of them.
        """
        with ThreadPool(max(1, min(parallel, len(bodies)))) as pool:
            try:
                yield from pool.imap_unordered(self._ask, bodies.items())
            except BaseException:
                self._transport.stopped = InputError("the run has ended")
                raise

    def _ask(self, item: tuple[str, dict]) -> tuple[str, Reply | Failure]:
        name, body = item
        try:
            outcome = self._outcome(body)
            self._count(outcome)
            return name, outcome
        except InputError as error:
            self._transport.stopped = error
            raise

    def _count(self, outcome: Reply | Failure) -> None:
        """Raises InputError at STREAK failures in a row: here, since the workers run ahead of whoever reads the outcomes."""
        with self._lock:
            self._failures = self._failures + 1 if isinstance(outcome, Failure) else 0
            if isinstance(outcome, Failure) and self._failures >= STREAK:
                raise InputError(
                    f"{STREAK} requests one after the other had no reply from {self.url}, the last for this reason: "
                    f"{outcome.reason}. What was answered is kept; mend the endpoint, and run the same command to go on"
                )

    def _outcome(self, body: dict) -> Reply | Failure:
        import openai

        try:
            response = self._client.post("/chat/completions", cast_to=httpx2.Response, content=canonical(body))
            reply = read_completion(response.content)
        except Malformed as malformed:
            return Failure(str(malformed))
        except openai.APITimeoutError:
            return Failure("timeout")
        except openai.APIConnectionError:
            return Failure("a broken connection")
        except openai.APIStatusError as error:
            return self._refused(error)
        if self._secret and self._secret in json.dumps(reply, ensure_ascii=False):
            return Failure("it repeats the key")
        self._transport.answered = True
        return reply

    def _refused(self, error: openai.APIStatusError) -> Failure:
        status = error.status_code
        passing = status in RETRIED or status >= 500
        if passing or (status >= 400 and status not in WRONG and self._transport.answered):
            return Failure(f"HTTP {status}")
        raise InputError(self._advice(status, error)) from None

    def _advice(self, status: int, error: openai.APIStatusError) -> str:
        body = error.body.get("message") if isinstance(error.body, dict) else error.body
        said = f"{self.url} answers HTTP {status}" + (f" ({self._told(str(body))})" if body else "")
        if status in (401, 403):
            return f"{said}. Put a key that it accepts into an environment variable, and name it: --key-variable NAME"
        if status in (404, 405):
            return f"{said}. Look at --endpoint (it mostly ends in /v1) and at the model's name, --judge"
        if 300 <= status < 400:
            target = self._told(error.response.headers.get("Location", "nowhere"))[:200]
            return f"{said}: it redirects to {target}, which is not followed. Give the final address as --endpoint"
        return f"{said}. If it does not know log-probabilities: --no-logprobs"

    def _told(self, text: str) -> str:
        """A server's words as a message may show them: short, harmless to a terminal, without the key."""
        shown = text.replace(self._secret, "[key]") if self._secret else text
        return printable(" ".join(shown.split()))[:300]


def ask_missing(endpoint: Endpoint, bodies: Mapping[str, dict], parallel: int, cache: Cache) -> dict[str, Reply | Failure]:
    """The outcome of every request; replies are kept as they come."""
    outcomes: dict[str, Reply | Failure] = {}
    asking = endpoint.ask_all(bodies, parallel)
    with contextlib.closing(asking), bar("judge", len(bodies), "reply") as progress:
        for key, outcome in asking:
            outcomes[key] = outcome
            if isinstance(outcome, Reply):
                keep(cache, key, outcome)
            progress.update()
    return outcomes


def client(url: str, transport: Transport, timeout: float) -> openai.OpenAI:
    """A client that follows no redirect and reads no proxy, key or address from the environment."""
    import openai  # here, because the import costs half a second

    http = httpx2.Client(transport=transport, follow_redirects=False, trust_env=False)
    unused = "the transport adds the key"
    return openai.OpenAI(base_url=url, api_key=unused, http_client=http, timeout=timeout, max_retries=TRIES - 1)


def checked_url(url: str) -> str:
    """An address without a trailing slash; refused with a user, a query or a fragment, where people put keys that get logged."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        whole = whole and parts.hostname == httpx2.URL(url).raw_host.decode()  # it asks the host that is checked here
    except (ValueError, httpx2.InvalidURL):
        whole = False
    if not whole or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError("--endpoint must be an address such as http://localhost:8000/v1 or https://api.example.com/v1")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise InputError("--endpoint must hold no user, password, query or fragment; give a key by --key-variable NAME")
    return url.rstrip("/")


def key_of(variable: str | None) -> str | None:
    """The key that the named environment variable holds."""
    if variable and not os.environ.get(variable):
        raise InputError(f"the environment variable {printable(variable)} holds no key. Set it, or leave --key-variable out")
    return os.environ[variable] if variable else None


def checked_key(key: str | None, url: str) -> str | None:
    """The key, of characters that fit a header as they are; it is never shown."""
    if key is None:
        return None
    if not LEGIBLE_KEY.fullmatch(key):
        raise InputError("the key holds characters that no key has (a space or a line end?); look at the environment variable")
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_this_machine(parts.hostname or ""):
        raise InputError(f"a key is not sent to {parts.hostname} without TLS, where others could read it. Use https, or no key")
    return key


def is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
