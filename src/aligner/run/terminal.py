"""Terminal output: a progress bar, and text without control sequences."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TextIO

SHOWN_CHARACTERS = 60  # of a row's text in a message


SECONDS = 10.0  # between two lines where the output is no terminal


def bar(title: str, total: int | None, unit: str, done: int = 0):
    """A tqdm progress bar on standard error; `total` is None for a stream of unknown length.

    Where standard error is no terminal (`dvc repro | tee log`, a queue), it is one line every SECONDS, and none in the first.
    """
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(total=total, initial=done, desc=title, unit=unit, file=sys.stderr, dynamic_ncols=True)

    class Lines(tqdm):
        @staticmethod
        def status_printer(file):
            def show(line: str) -> None:
                if line.strip():
                    file.write(line + "\n")
                    file.flush()

            return show

    pace = {"mininterval": SECONDS, "maxinterval": SECONDS, "miniters": 1, "delay": SECONDS}
    progress = (
        "{n_fmt} of {total_fmt} {unit}s, {elapsed} passed, {remaining} left" if total else "{n_fmt} {unit}s, {elapsed} passed"
    )
    form = "{desc}: " + progress + "{postfix}"
    return Lines(total=total, initial=done, desc=title, unit=unit, file=sys.stderr, bar_format=form, **pace)


@contextlib.contextmanager
def alive(stage: str):
    """Says every SECONDS that the stage is working, while no progress bar does so."""
    ended, started = threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(SECONDS):
            tqdm = sys.modules.get("tqdm")
            if tqdm is None or not tqdm.tqdm._instances:
                print(f"{stage}: working, {time.monotonic() - started:.0f} s passed", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


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
