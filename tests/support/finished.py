"""A workspace in which all five stages have run on a tiny model; built once per architecture and session, on the shelf.

    folder = finished.folder("gpt2")                    # read only
    workspace = finished.copy("gpt2", tmp_path, monkeypatch)
    finished.traces()["dpo"]                            # the files that a stage read and made
    finished.with_methods()                             # the stages of pipelines/dvc.yaml have run there too

An audit hook records every file that a stage opens, so the tests of dvc.yaml need no run of their own.
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
from support.pipeline_files import METHOD_STAGES, STAGES
from support.workspace import Workspace

# Learning rates at which so small a model learns in a few steps.
FAST = {f"models.mini.{stage}.learning_rate": 0.02 for stage in ("sft", "dpo", "kto", "orpo", "reward", "grpo")}
OPENED: list[str] = []
LISTENING: list[str] = []
TRACES = "traces.json"


class Trace(NamedTuple):
    """The files that a stage read and made, as paths in the workspace."""

    read: set[str]
    made: set[str]


def folder(model: str = "mini") -> Path:
    return shelf.built(f"finished-{model}", lambda place: run_all(place, model)) / "workspace"


def copy(model: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy, which a test may change; it becomes the current directory."""
    return Workspace.copy(folder(model), place, monkeypatch)


def traces(model: str = "mini") -> dict[str, Trace]:
    """The trace of every stage, by its name in dvc.yaml."""
    return read_traces(folder(model).parent)


def with_methods() -> Path:
    """The folder of a workspace in which the stages of pipelines/dvc.yaml have run after the five; read only."""
    return shelf.built("finished-methods", run_methods) / "workspace"


def traces_of_methods() -> dict[str, Trace]:
    return read_traces(with_methods().parent)


def read_traces(place: Path) -> dict[str, Trace]:
    found = json.loads((place / TRACES).read_text(encoding="utf-8"))
    return {stage: Trace(*map(set, trace)) for stage, trace in found.items()}


def run_methods(place: Path) -> None:
    """Makes the workspace and the traces of the methods' stages in `place`."""
    listen()
    with pytest.MonkeyPatch.context() as patch:
        workspace = copy("mini", place / "workspace", patch)
        write_traces(place, {stage: trace(workspace, *stage.split("@")) for stage in METHOD_STAGES})


def run_all(place: Path, model: str) -> None:
    """Makes the workspace and the traces of its stages in `place`."""
    listen()
    with pytest.MonkeyPatch.context() as patch:
        workspace = Workspace(place / "workspace", patch, model=model, **FAST)
        write_traces(place, {stage: trace(workspace, *stage.split("@")) for stage in STAGES})


def write_traces(place: Path, found: dict[str, Trace]) -> None:
    listed = {stage: [sorted(names) for names in each] for stage, each in found.items()}
    (place / TRACES).write_text(json.dumps(listed, indent=2), encoding="utf-8")


@functools.cache
def listen() -> None:
    sys.addaudithook(note_opened)


def note_opened(event: str, arguments: tuple) -> None:
    """An audit hook, which Python cannot remove: it records files that are opened for reading while LISTENING is not empty."""
    if LISTENING and event == "open" and isinstance(arguments[0], str | os.PathLike):
        path, mode, flags = arguments
        if (mode or "r").startswith("r") and not (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            OPENED.append(os.path.realpath(path))


def trace(workspace: Workspace, *stage: str) -> Trace:
    """Runs a stage and returns its trace."""
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
    """Whether a file is params.yaml, a run record, or in the scratch folder that prepare deletes when it ends."""
    return name == "params.yaml" or name.startswith(("experiments/", ".cache/checkpoints/", ".cache/rows-"))
