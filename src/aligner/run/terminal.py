"""Output for a terminal: a progress bar, and text in which nothing can act on the terminal."""

from __future__ import annotations

import sys
from typing import TextIO


def bar(title: str, total: int | None, unit: str, done: int = 0):
    """A tqdm bar on standard error; `total` may be None where a stream's length is not known."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=title, unit=unit, file=sys.stderr, disable=None, dynamic_ncols=True)


SHOWN_CHARACTERS = 60


def shown(text: str) -> str:
    """A text of a row as messages may show it: quoted, escaped, and cut; no control sequence gets through."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")


def printable(text: str) -> str:
    """A path or a message as it is, or escaped where it holds anything that a terminal could act on."""
    return text if text.isprintable() else repr(text)[1:-1]


def write_line(out: TextIO, line: str) -> None:
    """Writes a line with whatever the stream's encoding lacks escaped."""
    encoding = out.encoding or "utf-8"
    out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def printable_lines(message: str) -> str:
    """The message with whatever a terminal could act on escaped: it may quote a file, a model or its chat template."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in message)
