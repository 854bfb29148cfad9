"""Rows on disk while a stage runs: appended one by one, read again by number, and deleted or moved to an output at the end.

In memory, a stage then needs a few bytes for each row of a file, however long its texts are.
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

# Git and DVC ignore this folder. It is on the same disk as the outputs, so a finished file is renamed and not copied.
FOLDER = ".cache"
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # as for the rows that aligner.files writes


def line_of(row: Any) -> bytes:
    """A row as one line of JSON."""
    return (_ENCODER.encode(row) + "\n").encode()


class RowStore:
    """A JSON-lines file to append rows to and to read them from. During an iteration, nothing else may be read or appended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._starts = array("Q")
        self._end = 0
        self._reading = False

    def append(self, row: Any) -> None:
        self.append_line(line_of(row))

    def append_line(self, line: bytes) -> None:
        """Appends a row that `line_of` has written."""
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
        """Closes the store and moves its file to `path`."""
        self.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._path, path)

    def close(self) -> None:
        self._file.close()


class Scratch:
    """A folder of row stores for the length of a `with` block, which always deletes the files that were not moved."""

    def __init__(self) -> None:
        Path(FOLDER).mkdir(exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=FOLDER, prefix="rows-")
        self._stores: list[RowStore] = []

    def store(self, name: str) -> RowStore:
        self._stores.append(RowStore(Path(self._folder.name) / f"{name}.jsonl"))
        return self._stores[-1]

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for store in self._stores:
            store.close()
        self._folder.cleanup()
