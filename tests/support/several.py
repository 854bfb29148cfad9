"""Runs training stages as programs, on one or several processes, and reads the losses that they write."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support import killed, shelf
from support.workspace import REPOSITORY, Workspace

# Batches of 3 rows for 2 processes, epochs that end with a batch of 2 or fewer, and a line of the log for every step.
SETTINGS = {
    "prepare.validation_share": 0.3,
    **{
        f"{stage}.{key}": value
        for stage in ("sft", "dpo")
        for key, value in {"num_train_epochs": 3, "logging_steps": 1, "eval_steps": 2}.items()
    },
    **{
        f"models.mini.{stage}.{key}": value
        for stage in ("sft", "dpo")
        for key, value in {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 0.01}.items()
    },
}
# Writes a checkpoint at every step, and takes `PAUSE` seconds more for each of its files.
SCRIPT = """
import os, sys, time
sys.path.insert(0, {source!r})
from aligner.run.stage import run_stage
import {stage}
from aligner.training import checkpoints
checkpoints.SECONDS, checkpoints.SHARE = 0, 1e9
sync = checkpoints.sync
checkpoints.sync = lambda path: (time.sleep({pause}), sync(path))
run_stage({stage!r}, {stage}.main)
"""


def prepared(name: str, **changes: Any) -> Path:
    """A workspace in which `prepare` ran with SETTINGS and some changes; copy it before you train in it."""

    def build(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            Workspace(folder, patch, **{**SETTINGS, **changes}).run("prepare")

    return shelf.built(f"several-{name}", build)


def start(folder: Path, stage: str, pause: float | None = None, **environment: str) -> subprocess.Popen:
    """Starts a stage as a program in `folder`; with `pause`, it writes a checkpoint after every step (SCRIPT)."""
    script = REPOSITORY / f"src/{stage}.py"
    if pause is not None:
        script = folder / f"{stage}_slowly.py"
        script.write_text(SCRIPT.format(source=str(REPOSITORY / "src"), stage=stage, pause=pause), encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    quiet = {"CI": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    said = (folder / "said.txt").open("w", encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=folder,
        env={**inherited, **quiet, **environment},
        stdout=said,
        stderr=said,
        stdin=subprocess.DEVNULL,
    )


def run(folder: Path, stage: str, **environment: str) -> None:
    process = start(folder, stage, **environment)
    assert process.wait(300) == 0, said(folder)


def said(folder: Path) -> str:
    return (folder / "said.txt").read_text(encoding="utf-8")


def last_line(folder: Path) -> str:
    """The last line that is not empty; a progress bar that ends writes an empty one."""
    return [line for line in said(folder).splitlines() if line.strip()][-1]


def series(folder: Path, stage: str) -> dict[tuple[str, str], float]:
    """All points of the stage's loss curve: (step, series) -> value."""
    curve = {"sft": "sft", "dpo": "dpo_loss"}[stage]
    with (folder / f"plots/{curve}.csv").open(encoding="utf-8", newline="") as file:
        return {(row["step"], row["series"]): float(row["value"]) for row in csv.DictReader(file)}


def largest_difference(one: Path, other: Path, stage: str) -> float:
    """The largest difference between two runs' losses of the same step; both runs must have the same steps."""
    left, right = series(one, stage), series(other, stage)
    assert left.keys() == right.keys() and len(left) > 8
    return max(abs(left[key] - right[key]) for key in left)


def processes_of(folder: Path) -> dict[int, int]:
    """The running processes whose current directory is `folder`, by rank (Linux)."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.joinpath("cwd").readlink() == folder.resolve() and b"python" in path.joinpath("cmdline").read_bytes():
                names = dict(part.split(b"=", 1) for part in path.joinpath("environ").read_bytes().split(b"\0") if b"=" in part)
                found[int(names.get(b"RANK", b"0"))] = int(path.name)
        except (OSError, ValueError):
            continue
    return found


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, "it did not come to that"
        time.sleep(0.01)


def steps_of(folder: Path, stage: str) -> list[str]:
    """The names of the finished checkpoints of the run in `folder`."""
    return sorted(name for name in killed.checkpoint_names(folder, stage) if not name.endswith(".unfinished"))
