"""Rows on disk while a stage reads them: written as they come, found again by their number, and gone or moved at the end.

What a stage keeps in memory of a file of a million rows is then a few bytes a row.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

# Ignored by Git and DVC, and on the same disk as the outputs, so that a finished file is moved and not copied.
PLACE = ".cache"
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # as aligner.files writes rows


class Spool:
    """A JSON-lines file that is appended to and read from; while it is walked through nothing else may be read or appended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._starts = array("Q")
        self._end = 0
        self._reading = False

    def append(self, row: Any) -> None:
        line = (_ENCODER.encode(row) + "\n").encode()
        if self._reading:
            self._file.seek(self._end)
            self._reading = False
        self._file.write(line)
        self._starts.append(self._end)
        self._end += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Any:
        self._reading = True
        self._file.seek(self._starts[number])
        return orjson.loads(self._file.readline())

    def __iter__(self) -> Iterator[Any]:
        self._reading = True
        self._file.seek(0)
        for line in self._file:
            yield orjson.loads(line)

    def move_to(self, path: Path) -> None:
        """Ends the spool and puts its file at `path`."""
        self.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._path, path)

    def close(self) -> None:
        self._file.close()


class Scratch:
    """A folder of spools for the length of a `with` block; what was not moved is gone behind it, however it ends."""

    def __init__(self) -> None:
        Path(PLACE).mkdir(exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=PLACE, prefix="rows-")
        self._spools: list[Spool] = []

    def spool(self, name: str) -> Spool:
        self._spools.append(Spool(Path(self._folder.name) / f"{name}.jsonl"))
        return self._spools[-1]

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for spool in self._spools:
            spool.close()
        self._folder.cleanup()
