"""Folders that many tests only read (checkpoints, finished workspaces, clones), built once per session.

    folder = shelf.built("checkpoint-mini", build)      # build(folder) makes the folder

The workers of pytest-xdist share the shelf, a folder beside their own temporary folders; conftest.py sets it. Copy a folder
before you change it.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

FOLDER: Path | None = None


def built(name: str, build: Callable[[Path], object]) -> Path:
    """The folder `name` of the shelf. One process builds it while others wait; an incomplete one is built again."""
    shelf = FOLDER or Path(own().name)
    folder, done = shelf / name, shelf / f"{name}.done"
    with FileLock(shelf / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder)
            done.touch()
    return folder


@functools.cache
def own() -> tempfile.TemporaryDirectory:
    """The shelf of a process other than a test (tools/kills.py); it is deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix="shelf-")
