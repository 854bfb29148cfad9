"""Chat completions of an OpenAI-compatible endpoint: asked for in parallel, a bounded number of times, and kept on disk.

    endpoint = Endpoint("http://localhost:8000/v1", key=None, timeout=60)
    for name, outcome in endpoint.ask_all({name: body}, parallel=4):
        ...                                             # a Reply, or a Failure that says why there is none

A request that fails for the moment (429, 5xx, a timeout, a broken connection) is sent again, later each time; an endpoint that is
wrong as such (no connection, a refused key, an unknown address) ends everything at once with an InputError.

The key travels in one header to one host: no redirect is followed, ~/.netrc is not read, without TLS it goes nowhere but to this
machine, and a reply that repeats it counts as malformed, so that it is never written down.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import os
import queue
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3

from aligner.run.errors import InputError
from aligner.run.terminal import printable

TRIES = 5
FIRST_PAUSE = 1.0  # seconds before the second try; twice as long before each further one, …
LONGEST_PAUSE = 60.0  # … but no longer than this, whatever the server's Retry-After says
MOST_BYTES = 2**20  # of one reply
CHUNK = 2**16
TRANSIENT = {408, 425, 429}  # and all from 500 on
WRONG = {401, 403, 404, 405}  # for one request as for all
LEGIBLE_KEY = re.compile(r"[A-Za-z0-9._~+/=:-]+")
SHORTEST_SECRET = 8  # characters; servers that want no key are often given EMPTY or x, which any text may hold


class Candidate(NamedTuple):
    """One of the tokens that could have stood at a place, with its natural log-probability."""

    token: str
    logprob: float


class Reply(NamedTuple):
    """A completion: the model that says it gave it, its text, why it ended, and for each token the likeliest candidates there.

    `tokens` is None where the endpoint gives no log-probabilities.
    """

    model: str | None
    content: str
    finish: str | None
    tokens: list[tuple[str, list[Candidate]]] | None


class Failure(NamedTuple):
    """Why a request has no reply; `again` if another try may help, at the earliest in `wait` seconds."""

    reason: str
    again: bool = False
    wait: float = 0.0


class Malformed(ValueError):
    """A body that is no chat completion; the message is a short reason, of which there are few."""


# ---- Asking ------------------------------------------------------------------------------------------------------------


class Endpoint:
    """Where completions come from. `url` is the part before /chat/completions; `timeout` is in seconds, for one try."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self.url = checked_url(url)
        self._key = checked_key(key, self.url)
        self._timeout = timeout
        self._secret = self._key if self._key and len(self._key) >= SHORTEST_SECRET else None
        self._answered = False
        self._local = threading.local()

    def ask_all(self, bodies: Mapping[str, dict], parallel: int) -> Iterator[tuple[str, Reply | Failure]]:
        """(name, outcome) of every request, in the order in which they come; at most `parallel` are under way at once.

        When the caller closes the iterator (contextlib.closing) no further request is sent. Workers are daemons: no exit waits
        for one of them.
        """
        waiting: queue.SimpleQueue = queue.SimpleQueue()
        done: queue.SimpleQueue = queue.SimpleQueue()
        for item in bodies.items():
            waiting.put(item)
        stopped = threading.Event()
        for _ in range(min(parallel, len(bodies))):
            threading.Thread(target=self._work, args=(waiting, done, stopped), daemon=True, name="asks the endpoint").start()
        try:
            for _ in bodies:
                name, outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield name, outcome
        finally:
            stopped.set()

    def _work(self, waiting: queue.SimpleQueue, done: queue.SimpleQueue, stopped: threading.Event) -> None:
        while not stopped.is_set():
            try:
                name, body = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((name, self._ask(body, stopped)))
            except BaseException as error:  # raised again where the results are read
                stopped.set()
                done.put((name, error))

    def _ask(self, body: dict, stopped: threading.Event) -> Reply | Failure:
        for number in range(1, TRIES + 1):
            outcome = self._try(body)
            if isinstance(outcome, Reply):
                self._answered = True
                return outcome
            if not outcome.again or number == TRIES or stopped.wait(max(outcome.wait, pause(number))):
                return outcome
        raise AssertionError("the last try returns")

    def _try(self, body: dict) -> Reply | Failure:
        try:
            status, headers, raw = self._send(body)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            return Failure("timeout", again=True)
        except (requests.exceptions.SSLError, requests.exceptions.ProxyError) as error:
            raise InputError(f"no safe connection to {self.url}: {self._told(str(error))}. Is the address right?") from None
        except (requests.ConnectionError, urllib3.exceptions.HTTPError) as error:
            return self._unconnected(error)
        except requests.RequestException as error:
            raise InputError(f"{self.url} cannot be asked: {self._told(str(error))}. Is the address right?") from None
        except Malformed as malformed:
            return Failure(str(malformed))
        if status != 200:
            return self._refused(status, headers, raw)
        try:
            reply = read_completion(raw)
        except Malformed as malformed:
            return Failure(str(malformed))
        if self._secret and self._secret in json.dumps(reply, ensure_ascii=False):
            return Failure("it repeats the key")
        return reply

    def _send(self, body: dict) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of one exchange; the body is read as it comes, up to its limit and to the deadline."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        deadline = time.monotonic() + self._timeout
        with self._local.session.post(
            f"{self.url}/chat/completions",
            data=canonical(body),
            headers={"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"},
            auth=self._authorise,
            timeout=self._timeout,
            allow_redirects=False,
            stream=True,
        ) as response:
            raw = bytearray()
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                raw += chunk
                if len(raw) > MOST_BYTES:
                    raise Malformed("a reply that is too large")
                if time.monotonic() > deadline:
                    raise requests.Timeout
            return response.status_code, response.headers, bytes(raw)

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Stands where requests would else look into ~/.netrc."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _unconnected(self, error: Exception) -> Failure:
        """A connection that never came about is wrong as such; one that broke may be had again."""
        cause = getattr(error.args[0], "reason", None) if error.args else None
        if isinstance(cause, urllib3.exceptions.NewConnectionError) and not self._answered:
            raise InputError(f"no connection to {self.url}. Is the server running? Start it, and run the same command again")
        return Failure("a broken connection", again=True)

    def _refused(self, status: int, headers: Mapping[str, str], raw: bytes) -> Failure:
        if status in TRANSIENT or status >= 500:
            return Failure(f"HTTP {status}", again=True, wait=retry_after(headers.get("Retry-After")))
        if status in WRONG or status < 400 or not self._answered:
            raise InputError(self._advice(status, headers, self._told(server_message(raw))))
        return Failure(f"HTTP {status}")

    def _advice(self, status: int, headers: Mapping[str, str], message: str) -> str:
        said = f"{self.url} answers HTTP {status}" + (f" ({message})" if message else "")
        if status in (401, 403):
            return f"{said}. Put a key that it accepts into an environment variable, and name it: --key-variable NAME"
        if status in (404, 405):
            return f"{said}. Look at --endpoint (it mostly ends in /v1) and at the model's name, --judge"
        if 300 <= status < 400:
            target = printable(headers.get("Location", "nowhere"))[:200]
            return f"{said}: it redirects to {self._told(target)}, which is not followed. Give the final address as --endpoint"
        return f"{said}. If it does not know log-probabilities: --no-logprobs"

    def _told(self, text: str) -> str:
        """A server's words as a message may show them: short, harmless to a terminal, without the key."""
        shown = text.replace(self._secret, "[key]") if self._secret else text
        return printable(" ".join(shown.split()))[:300]


def pause(number: int) -> float:
    """Seconds after try number 1, 2, …: FIRST_PAUSE doubled each time, of which up to half is left to chance."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (number - 1)) * random.uniform(0.5, 1)


def retry_after(value: str | None) -> float:
    """The seconds that a Retry-After header asks for (a number or a date), at most LONGEST_PAUSE; 0 where it says nothing."""
    try:
        return min(LONGEST_PAUSE, urllib3.Retry().parse_retry_after(value)) if value else 0.0
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return 0.0


def checked_url(url: str) -> str:
    """An address without a trailing slash; refused with a user, a query or a fragment, where people put keys that get logged."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        whole = False
    if not whole or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError("--endpoint must be an address such as http://localhost:8000/v1 or https://api.example.com/v1")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise InputError("--endpoint must hold no user, password, query or fragment; give a key by --key-variable NAME")
    return url.rstrip("/")


def checked_key(key: str | None, url: str) -> str | None:
    """The key, of characters that fit a header as they are; it is never shown."""
    if key is None:
        return None
    if not LEGIBLE_KEY.fullmatch(key):
        raise InputError("the key holds characters that no key has (a space or a line end?); look at the environment variable")
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_this_machine(parts.hostname):
        raise InputError(f"a key is not sent to {parts.hostname} without TLS, where others could read it. Use https, or no key")
    return key


def is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---- Reading -----------------------------------------------------------------------------------------------------------


def read_completion(raw: bytes) -> Reply:
    """The first choice of a chat completion; Malformed says what it is instead."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise Malformed("no JSON") from None
    choices = of_type(found, dict).get("choices")
    if not of_type(choices, list):
        raise Malformed("no choices")
    choice = of_type(choices[0], dict)
    content = of_type(choice.get("message"), dict).get("content")
    finish, model = choice.get("finish_reason"), found.get("model")
    return Reply(
        printable(model[:100]) if isinstance(model, str) else None,
        "" if content is None else of_type(content, str),
        finish if isinstance(finish, str) else None,
        read_tokens(choice.get("logprobs")),
    )


def read_tokens(logprobs: Any) -> list[tuple[str, list[Candidate]]] | None:
    """Each token of the answer with its candidates; None where the endpoint gives none."""
    content = None if logprobs is None else of_type(logprobs, dict).get("content")
    rows = [of_type(row, dict) for row in of_type([] if content is None else content, list)]
    tokens = [(of_type(row.get("token"), str), read_candidates(row.get("top_logprobs"))) for row in rows]
    return tokens if any(candidates for _, candidates in tokens) else None


def read_candidates(top: Any) -> list[Candidate]:
    rows = [of_type(row, dict) for row in of_type([] if top is None else top, list)]
    return [Candidate(of_type(row.get("token"), str), log_probability(row.get("logprob"))) for row in rows]


def log_probability(value: Any) -> float:
    """Finite and not above 0; what rounding puts a little above 0 is 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e6 < value < 1e-3 or math.isnan(value):
        raise Malformed("another schema")
    return min(0.0, float(value))


def of_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise Malformed("another schema")
    return value


def server_message(raw: bytes) -> str:
    """What an error page of the usual schema says, or nothing."""
    try:
        error = json.loads(raw)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


# ---- Keeping -----------------------------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """JSON whose bytes depend on the value alone."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def request_key(url: str, body: dict, repeat: int) -> str:
    """SHA-256 of all that a reply depends on: the endpoint, the body (model, messages, settings), and which repeat it is."""
    return hashlib.sha256(canonical([url, body, repeat])).hexdigest()


def keep(folder: Path, key: str, reply: Reply) -> None:
    """Writes a reply in one step: a process that is killed leaves a whole entry or none."""
    path = folder / key[:2] / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_bytes(canonical({"reply": reply, "sha256": seal(key, reply)}) + b"\n")
    os.replace(unfinished, path)


def kept(folder: Path, key: str) -> Reply | None:
    """The reply of an earlier run; None where there is none, or its entry is damaged."""
    try:
        entry = json.loads((folder / key[:2] / f"{key}.json").read_bytes())
        model, content, finish, tokens = entry["reply"]
        if entry["sha256"] != seal(key, entry["reply"]):
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    shaped = tokens and [(token, [Candidate(*each) for each in candidates]) for token, candidates in tokens]
    return Reply(model, content, finish, shaped)


def seal(key: str, reply: Any) -> str:
    """Binds a reply to its request, so that a damaged or misplaced entry is seen."""
    return hashlib.sha256(canonical([key, reply])).hexdigest()
