"""Warnings about rows that are kept: damaged characters, secrets, and keys that nothing reads."""

from __future__ import annotations

import re
from itertools import islice

from aligner.data.fields import MAX_KEYS_LOOKED_AT, nearest_key, plain_key
from aligner.data.lines import Problem
from aligner.run.terminal import SHOWN_CHARACTERS, shown

BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
DAMAGED_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")  # line and page breaks are not among them
# UTF-8 that was decoded as Latin-1 or CP1252: a leading byte became a letter, each following byte one of these characters.
_FOLLOWING = "[\x80-\xbf" + bytes(range(0x80, 0xA0)).decode("cp1252", "ignore") + "]"
MOJIBAKE = re.compile(f"[ÂÃ]{_FOLLOWING}|(?:[ÎÏÐÑ]{_FOLLOWING}){{2}}|[âï]{_FOLLOWING}{{2}}|ð[Ÿ\x9f]{_FOLLOWING}")
TAG = re.compile("[\U000e0000-\U000e007f]")
HIDDEN_TAG = re.compile("(?<![\U0001f3f4\U000e0020-\U000e007e])[\U000e0000-\U000e007f]")  # except in the flag of a region
MIXED_SCRIPTS = re.compile("[A-Za-z][\u0400-\u04ff]|[\u0400-\u04ff][A-Za-z]")
UNREAD_KEYS = frozenset(("system", "history", "tools", "functions"))
EQUAL_ROWS = "every row counts the same"
NO_SCORES = "no loss of this pipeline uses margins or scores; leave out pairs that are too close, or remove the key"
IGNORED_KEYS = {
    "label": "only unpaired answers have a label",
    **dict.fromkeys(("weight", "train", "loss"), EQUAL_ROWS),
    **dict.fromkeys(("margin", "margins", "score", "scores", "rating", "ratings", "reward", "rewards"), NO_SCORES),
    **{
        f"{side}{mark}{name}": NO_SCORES
        for side in ("chosen", "rejected")
        for name in ("score", "rating", "reward")
        for mark in "_-"
    },
    **{f"{name}_{side}": NO_SCORES for side in ("chosen", "rejected") for name in ("score", "rating", "reward")},
}
SECRETS = {  # a marker that is cheap to look for -> the secret and the pattern that decides, in linear time
    "@": ("a mail address", r"[\w.%+-]@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2}"),
    "IA": ("an AWS key", r"(?a:\b)A(?:KI|SI)A[0-9A-Z]{16}(?a:\b)"),
    "PRIVATE": ("a private key", r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY"),
    "_": ("a GitHub or Hugging Face token", r"(?a:\b)(?:gh[opsur]|github_pat|hf)_[A-Za-z0-9_]{16}"),
    "sk-": ("an API key", r"(?a:\b)sk-(?=[A-Za-z_-]{0,60}\d)[A-Za-z0-9_-]{16}"),
}


def text_warnings(text: str) -> tuple[Problem, ...]:
    """Warnings about characters and secrets in a row's texts. They name the kind of a secret and never show it."""
    warnings = damage_warnings(text)
    if not text.isascii() and any(map(text.__contains__, BIDI_CONTROLS)):
        found = ", ".join(f"U+{ord(mark):04X}" for mark in BIDI_CONTROLS if mark in text)
        warnings.append(Problem("bidi_control", f"bidi controls ({found}) can hide what a text says: check it"))
    if any(map(text.__contains__, SECRETS)):
        secrets = [what for marker, (what, pattern) in SECRETS.items() if marker in text and re.search(pattern, text)]
        if secrets:
            warnings.append(
                Problem(
                    "secret_like",
                    f"the text seems to hold {' and '.join(secrets)}, which a model may repeat; replace it",
                )
            )
    return tuple(warnings)


def damage_warnings(text: str) -> list[Problem]:
    """Warnings about a text that was decoded wrongly or cut, or that mixes look-alike letters."""
    found = []
    if control := DAMAGED_CONTROL.search(text):
        found.append(Problem("control_character", f"the text holds the control character U+{ord(control[0]):04X}; remove it"))
    if text.isascii():
        return found
    if mojibake := MOJIBAKE.search(text):
        found.append(Problem("mojibake", f"{shown(mojibake[0])} seems to be UTF-8 that was read as CP1252; decode the text anew"))
    if "\ufffd" in text:
        found.append(Problem("replacement_character", "U+FFFD replaces a character that could not be decoded; restore it"))
    if mixed := MIXED_SCRIPTS.search(text):
        found.append(Problem("mixed_scripts", f"{shown(mixed[0])} mixes Latin and Cyrillic letters in one word: check it"))
    if TAG.search(text) and HIDDEN_TAG.search(text):
        found.append(Problem("hidden_text", "tag characters (U+E0000 to U+E007F) can hide words from people, not from a model"))
    return found


def key_warnings(row: dict, known: frozenset[str]) -> tuple[Problem, ...]:
    """Warnings about keys that nothing reads although they seem to matter."""
    if row.keys() <= known:
        return ()
    unknown = islice((key for key in row if key not in known), MAX_KEYS_LOOKED_AT)
    return tuple(warning for key in unknown if (warning := key_warning(key, row, known)))


def key_warning(key: str, row: dict, known: frozenset[str]) -> Problem | None:
    if key in IGNORED_KEYS and row[key] not in (None, "", [], {}):
        if IGNORED_KEYS[key] is EQUAL_ROWS and row[key] in (1, True):
            return None
        return Problem("ignored_key", f"`{key}` is ignored: {IGNORED_KEYS[key]}")
    near = nearest_key(key[:SHOWN_CHARACTERS], known)
    if near is not None and (near not in row or near == plain_key(key)):
        return Problem("misspelt_key", f"the key {shown(key)} is not read; did you mean {near!r}?")
    if key in UNREAD_KEYS and row[key]:
        return Problem("unread_key", f"`{key}` is not read; write it into the conversation or remove it")
    return None
