"""Chat completions from an OpenAI-compatible endpoint: in parallel, with bounded retries, each reply stored on disk.

    endpoint = Endpoint("http://localhost:8000/v1", key=None, timeout=60)
    for name, outcome in endpoint.ask_all({name: body}, parallel=4):
        ...                                             # a Reply, or a Failure that says why there is none

The `openai` client retries temporary failures (408, 409, 429, 5xx, a timeout, a broken connection) after a growing pause, or
after the server's Retry-After of up to two minutes. A wrong endpoint (no connection, a refused key, an unknown address) raises
InputError at once.

The key is sent in one header to one host, and leaves this machine over TLS only. Redirects are not followed. The environment's
proxies, ~/.netrc and OPENAI_* variables are ignored. A reply that repeats the key counts as malformed and is never stored.
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

from aligner.judging.replies import Failure, Malformed, Reply, canonical, read_completion, store
from aligner.run.errors import InputError
from aligner.run.terminal import bar, printable

if TYPE_CHECKING:
    import openai
    from diskcache import Cache

TRIES = 5
MOST_BYTES = 2**20  # of one reply
SENT = ("Host", "Content-Type", "Content-Length", "Accept", "User-Agent")  # request headers; all others are dropped
READ = ("Retry-After", "Location")  # reply headers; all others are dropped
RETRIED = {408, 409, 429}  # by openai, which also retries 500 and above
WRONG = {401, 403, 404, 405}  # every request would fail
LEGIBLE_KEY = re.compile(r"[A-Za-z0-9._~+/=:-]+")
STREAK = 10  # consecutive failures that end the run
SHORTEST_SECRET = 8  # characters; placeholder keys such as EMPTY or x may occur in any text


# ---- Asking ------------------------------------------------------------------------------------------------------------


class Transport(httpx2.HTTPTransport):
    """One exchange: it sends the headers of SENT and the key, and reads at most MOST_BYTES within `timeout` seconds.

    Without it, openai would also send headers that describe this machine or come from environment variables.
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
        request.headers = httpx2.Headers(self._authorization | only(request.headers, SENT) | {"Accept-Encoding": "identity"})
        try:
            with contextlib.closing(super().handle_request(request)) as response:
                raw = read_body(response.stream, deadline)
                return httpx2.Response(response.status_code, headers=only(response.headers, READ), content=raw)
        except (httpx2.ConnectError, UnicodeError) as error:  # UnicodeError: a host name that cannot be looked up
            if self.answered:
                raise
            reason = f"no connection to {request.url.host} ({printable(str(error))[:200]}). Is the address right?"
            raise InputError(f"{reason} Is the server running? Start it, and run the same command again") from None


def only(headers: httpx2.Headers, names: tuple[str, ...]) -> dict[str, str]:
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
    """A source of completions. `url` is the part before /chat/completions; `timeout` is in seconds, for one try."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self.url = checked_url(url)
        key = checked_key(key, self.url)
        self._secret = key if key and len(key) >= SHORTEST_SECRET else None
        self._transport = Transport(key, timeout)
        self._client = client(self.url, self._transport, timeout)
        self._lock = threading.Lock()
        self._failures = 0  # consecutive

    def ask_all(self, bodies: Mapping[str, dict], parallel: int) -> Generator[tuple[str, Reply | Failure], None, None]:
        """Yields (name, outcome) of each request in the order of arrival; at most `parallel` run at once.

        Once the caller closes the iterator (contextlib.closing), no further request is sent. The pool's workers are daemons, so
        the process can exit without them.
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
        """Raises InputError after STREAK consecutive failures; the workers do it, since they run ahead of the caller."""
        with self._lock:
            self._failures = self._failures + 1 if isinstance(outcome, Failure) else 0
            if isinstance(outcome, Failure) and self._failures >= STREAK:
                raise InputError(
                    f"{STREAK} consecutive requests had no reply from {self.url}, the last for this reason: {outcome.reason}. "
                    "All replies so far are stored; repair the endpoint, and run the same command to continue"
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
        temporary = status in RETRIED or status >= 500
        if temporary or (status >= 400 and status not in WRONG and self._transport.answered):
            return Failure(f"HTTP {status}")
        raise InputError(self._advice(status, error)) from None

    def _advice(self, status: int, error: openai.APIStatusError) -> str:
        body = error.body.get("message") if isinstance(error.body, dict) else error.body
        answer = f"{self.url} answers HTTP {status}" + (f" ({self._harmless(str(body))})" if body else "")
        if status in (401, 403):
            return f"{answer}. Put a valid key into an environment variable, and name that: --key-variable NAME"
        if status in (404, 405):
            return f"{answer}. Check --endpoint (it usually ends in /v1) and the model's name, --judge"
        if 300 <= status < 400:
            target = self._harmless(error.response.headers.get("Location", "nowhere"))[:200]
            return f"{answer}: it redirects to {target}, which is not followed. Give the final address as --endpoint"
        return f"{answer}. If it does not know log-probabilities: --no-logprobs"

    def _harmless(self, text: str) -> str:
        """A server's message, shortened, without the key and without control characters."""
        shown = text.replace(self._secret, "[key]") if self._secret else text
        return printable(" ".join(shown.split()))[:300]


def ask_missing(endpoint: Endpoint, bodies: Mapping[str, dict], parallel: int, cache: Cache) -> dict[str, Reply | Failure]:
    """The outcome of each request; replies are stored as they arrive."""
    outcomes: dict[str, Reply | Failure] = {}
    asking = endpoint.ask_all(bodies, parallel)
    with contextlib.closing(asking), bar("judge", len(bodies), "reply") as progress:
        for key, outcome in asking:
            outcomes[key] = outcome
            if isinstance(outcome, Reply):
                store(cache, key, outcome)
            progress.update()
    return outcomes


def client(url: str, transport: Transport, timeout: float) -> openai.OpenAI:
    """A client that follows no redirect and reads no proxy, key or address from the environment."""
    import openai  # here, because the import takes half a second

    http = httpx2.Client(transport=transport, follow_redirects=False, trust_env=False)
    unused = "the transport adds the key"
    return openai.OpenAI(base_url=url, api_key=unused, http_client=http, timeout=timeout, max_retries=TRIES - 1)


def checked_url(url: str) -> str:
    """The address without a trailing slash. A user, query or fragment is refused: people put keys there, and logs show them."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        whole = whole and parts.hostname == httpx2.URL(url).raw_host.decode()  # the client uses this very host
    except (ValueError, httpx2.InvalidURL):
        whole = False
    if not whole or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError("--endpoint must be an address such as http://localhost:8000/v1 or https://api.example.com/v1")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise InputError("--endpoint must have no user, password, query or fragment; name a key by --key-variable NAME")
    return url.rstrip("/")


def key_of(variable: str | None) -> str | None:
    """The key in the named environment variable."""
    if variable and not os.environ.get(variable):
        raise InputError(f"the environment variable {printable(variable)} holds no key. Set it, or leave --key-variable out")
    return os.environ[variable] if variable else None


def checked_key(key: str | None, url: str) -> str | None:
    """The key, if a header can hold it and the connection is safe; messages never show it."""
    if key is None:
        return None
    if not LEGIBLE_KEY.fullmatch(key):
        raise InputError("the key has characters that no key has (a space or a line end?); check the environment variable")
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_this_machine(parts.hostname or ""):
        raise InputError(f"a key is not sent to {parts.hostname} without TLS, where others could read it. Use https, or no key")
    return key


def is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
