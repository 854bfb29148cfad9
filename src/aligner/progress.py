"""One progress bar a long loop, with rate and time left; silent when nobody watches (the output is no terminal)."""

from __future__ import annotations

import sys


def bar(title: str, total: int | None, unit: str, done: int = 0):
    """A tqdm bar on standard error; `total` may be None where a stream's length is not known."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=title, unit=unit, file=sys.stderr, disable=None, dynamic_ncols=True)
