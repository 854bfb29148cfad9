"""A workspace in which all five stages have run on a tiny model: one for each architecture and session, on the shelf.

    folder = finished.folder("gpt2")                    # only to be read
    workspace = finished.copy("gpt2", tmp_path, monkeypatch)
    finished.traces()["dpo"]                            # what a stage read and which files it made

Every file that a stage opens is noted by an audit hook, so that the tests of dvc.yaml need no run of their own.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from support import shelf
from support.pipeline_files import STAGES
from support.workspace import Workspace

# Rates at which so small a model learns something in a few steps.
FAST = {"models.mini.sft.learning_rate": 0.02, "models.mini.dpo.learning_rate": 0.02}
OPENED: list[str] = []
LISTENING: list[str] = []
TRACES = "traces.json"


class Trace(NamedTuple):
    """Files that a stage read and files that it made, as paths in the workspace."""

    read: set[str]
    made: set[str]


def folder(model: str = "mini") -> Path:
    return shelf.built(f"finished-{model}", lambda place: run_all(place, model)) / "workspace"


def copy(model: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy to be changed, which becomes the current directory."""
    return Workspace.copy(folder(model), place, monkeypatch)


def traces(model: str = "mini") -> dict[str, Trace]:
    """The trace of every stage, by its name in dvc.yaml."""
    found = json.loads((folder(model).parent / TRACES).read_text(encoding="utf-8"))
    return {stage: Trace(*map(set, trace)) for stage, trace in found.items()}


def run_all(place: Path, model: str) -> None:
    """Fills `place` with the workspace and the traces of its stages."""
    listen()
    with pytest.MonkeyPatch.context() as patch:
        workspace = Workspace(place / "workspace", patch, model=model, **FAST)
        found = {stage: [sorted(names) for names in trace(workspace, *stage.split("@"))] for stage in STAGES}
    (place / TRACES).write_text(json.dumps(found, indent=2), encoding="utf-8")


@functools.cache
def listen() -> None:
    sys.addaudithook(note_opened)


def note_opened(event: str, arguments: tuple) -> None:
    """An audit hook, which Python never forgets: it notes files that are opened for reading while somebody listens."""
    if LISTENING and event == "open" and isinstance(arguments[0], str | os.PathLike):
        path, mode, flags = arguments
        if (mode or "r").startswith("r") and not (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            OPENED.append(os.path.realpath(path))


def trace(workspace: Workspace, *stage: str) -> Trace:
    """Runs a stage."""
    before = workspace.files()
    OPENED.clear()
    LISTENING.append(stage[0])
    try:
        workspace.run(*stage)
    finally:
        LISTENING.clear()
    root = os.path.realpath(workspace.folder) + os.sep
    read = {Path(path.removeprefix(root)).as_posix() for path in OPENED if path.startswith(root)}
    made = workspace.files() - before
    return Trace({name for name in read if not unrelated(name)}, {name for name in made if not unrelated(name)})


def unrelated(name: str) -> bool:
    """Parameters, run records, and the scratch folder of prepare, which is gone when it ends."""
    return name == "params.yaml" or name.startswith(("experiments/", ".cache/checkpoints/", ".cache/rows-"))
