"""Terminal output: a progress bar, and text without control sequences."""

from __future__ import annotations

import sys
from typing import TextIO

SHOWN_CHARACTERS = 60  # of a row's text in a message


def bar(title: str, total: int | None, unit: str, done: int = 0):
    """A tqdm progress bar on standard error; `total` is None for a stream of unknown length."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=title, unit=unit, file=sys.stderr, disable=None, dynamic_ncols=True)


def shown(text: str) -> str:
    """A row's text for a message: quoted, escaped and shortened."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")


def printable(text: str) -> str:
    """A path or message; escaped if it holds anything that a terminal could act on."""
    return text if text.isprintable() else repr(text)[1:-1]


def write_line(out: TextIO, line: str) -> None:
    """Writes a line; characters that the stream's encoding lacks are escaped."""
    encoding = out.encoding or "utf-8"
    out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def printable_lines(message: str) -> str:
    """A message whose control characters are escaped; it may quote a file, a model or its chat template."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in message)
