"""A judge's reply: parsed strictly from a chat completion, and stored on disk under its request."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import diskcache

from aligner.run.errors import InputError
from aligner.run.terminal import printable


class Candidate(NamedTuple):
    """An alternative for one token, with its natural log-probability."""

    token: str
    logprob: float


class Reply(NamedTuple):
    """A completion: the model that it names, its text, why it ended, and for each token the likeliest candidates.

    `tokens` is None if the endpoint gives no log-probabilities.
    """

    model: str | None
    content: str
    finish: str | None
    tokens: list[tuple[str, list[Candidate]]] | None


class Failure(NamedTuple):
    """Why a request has no reply."""

    reason: str


class Malformed(ValueError):
    """A body that is not a chat completion; the message is one of a few short reasons."""


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read_completion(raw: bytes) -> Reply:
    """The first choice of a chat completion; raises Malformed for any other body."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise Malformed("no JSON") from None
    try:
        choice = found["choices"][0]
        content, finish, model = choice["message"].get("content"), choice.get("finish_reason"), found.get("model")
        rows = (choice.get("logprobs") or {}).get("content") or []
        tokens = [(text(row["token"]), [candidate(each) for each in row.get("top_logprobs") or []]) for row in rows]
    except IndexError:
        raise Malformed("no choices") from None
    except (KeyError, TypeError, AttributeError):
        raise Malformed("another schema") from None
    return Reply(
        printable(model[:100]) if isinstance(model, str) else None,
        "" if content is None else text(content),
        finish if isinstance(finish, str) else None,
        tokens if any(candidates for _, candidates in tokens) else None,
    )


def candidate(row: dict[str, Any]) -> Candidate:
    """A candidate whose log-probability is finite and at most 0; a rounding error above 0 becomes 0."""
    value = row["logprob"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e6 < value < 1e-3:  # false for nan
        raise Malformed("another schema")
    return Candidate(text(row["token"]), min(0.0, float(value)))


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise Malformed("another schema")
    return value


# ---- Storing ---------------------------------------------------------------------------------------------------------


class JSONOnly(diskcache.JSONDisk):
    """Entries as JSON only. JSONDisk writes no pickle, but would load one that a row of the database declares."""

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        if mode not in (diskcache.core.MODE_RAW, diskcache.core.MODE_BINARY):
            raise ValueError("no JSON")
        return super().fetch(mode, filename, value, read)


def open_cache(folder: Path) -> diskcache.Cache:
    """The replies of all runs, in one SQLite file without eviction; writes are atomic."""
    try:
        return diskcache.Cache(str(folder), disk=JSONOnly, eviction_policy="none")
    except sqlite3.DatabaseError as error:
        raise InputError(f"{folder} is damaged ({error}). Delete it, and run the same command again") from None


def canonical(value: Any) -> bytes:
    """JSON whose bytes depend on the value alone."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def request_key(url: str, body: dict, repeat: int) -> str:
    """SHA-256 of everything that a reply depends on: endpoint, body (model, messages, settings) and number of the repeat."""
    return hashlib.sha256(canonical([url, body, repeat])).hexdigest()


def store(cache: diskcache.Cache, key: str, reply: Reply) -> None:
    cache.set(key, [reply, seal(key, reply)])


def stored(cache: diskcache.Cache, key: str) -> Reply | None:
    """The reply of an earlier run; None if there is none or its entry is damaged."""
    try:
        reply, sealed = cache.get(key) or (None, None)
        if reply is None or sealed != seal(key, reply):
            return None
        model, content, finish, tokens = reply
    except (zlib.error, ValueError, TypeError, RecursionError):
        return None
    shaped = tokens and [(token, [Candidate(*each) for each in candidates]) for token, candidates in tokens]
    return Reply(model, content, finish, shaped)


def seal(key: str, reply: Any) -> str:
    """Binds a reply to its request, which reveals a damaged or misplaced entry."""
    return hashlib.sha256(canonical([key, reply])).hexdigest()
