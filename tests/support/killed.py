"""Runs stages in separate processes, kills them and runs them again.

A server process loads the libraries once and forks for every run, so a run costs a second instead of ten. The killed process runs
the stage's real `main` under `run_stage`; only its checkpoints are written at every step, and slowly.
"""

from __future__ import annotations

import csv
import importlib
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trl.experimental.orpo  # noqa: F401  (loads what stages import late before the server forks)
import trl.trainer.dpo_trainer  # noqa: F401
import trl.trainer.kto_trainer  # noqa: F401
import trl.trainer.sft_trainer  # noqa: F401

import sft  # noqa: F401
from aligner.run.stage import run_stage
from aligner.training import checkpoints  # noqa: F401
from support.workspace import Workspace

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["support.killed"])
SLOWLY = 0.02  # additional seconds per file of a checkpoint, so a kill can fall between two files
SPREAD = 0.25  # a kill comes within this many seconds after a step: about one step and its checkpoint

# Epochs that end with a short step, logs and measurements at different steps, dropout, and batches by length.
SETTINGS = {
    "sft.train_sampling_strategy": "batch_rebalance",
    "prepare.validation_share": 0.2,
    "lora.lora_dropout": 0.2,
    **{
        f"{stage}.{key}": value
        for stage in ("sft", "dpo", "kto", "orpo")
        for key, value in {"num_train_epochs": 14.5, "logging_steps": 3, "eval_steps": 4}.items()
    },
    **{
        f"models.mini.{stage}.{key}": value
        for stage in ("sft", "dpo", "orpo")
        for key, value in {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}.items()
    },
    "models.mini.kto.per_device_train_batch_size": 2,
    "models.mini.kto.gradient_accumulation_steps": 4,
    "models.mini.dpo.learning_rate": 0.01,
}


def prepare(folder: Path, **changes: Any) -> None:
    """Makes a workspace in `folder`, with training settings that are hard to resume, and runs `prepare`."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        Workspace(folder, patch, **{**SETTINGS, **changes}).run("prepare")


def start(stage: str, folder: Path, seconds: float = 0, slowly: float = 0.0, largest: int | None = None):
    """Starts a stage in `folder` and returns its process, whose output goes to said.txt.

    seconds: between checkpoints; slowly: additional seconds for each of their files; largest: a limit on the size of files in
    bytes, which acts like a full disk.
    """
    process = CONTEXT.Process(target=_run, args=(stage, str(folder), seconds, slowly, largest), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the server, which starts with the first process
        process.start()
    return process


def _run(stage: str, folder: str, seconds: float, slowly: float, largest: int | None) -> None:
    os.chdir(folder)
    os.environ.pop("DVC_ROOT", None)
    os.environ.update(CI="1", HF_HUB_OFFLINE="1")
    said = open("said.txt", "w", encoding="utf-8", buffering=1)
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    sys.stderr = sys.stdout = said
    checkpoints.SECONDS, checkpoints.SHARE = seconds, 1e9
    sync = checkpoints.sync
    checkpoints.sync = lambda path: (time.sleep(slowly), sync(path))
    if largest:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    run_stage(stage, importlib.import_module(stage).main)


def finish(process, seconds: float = 900) -> int:
    """Waits for a process and returns its exit code."""
    process.join(seconds)
    assert process.exitcode is not None, "still running"
    return process.exitcode


def run_folder(folder: Path, stage: str) -> Path | None:
    """The folder of a run's checkpoints, if there is one."""
    return next((path for path in (folder / ".cache/checkpoints" / stage).glob("*") if path.is_dir()), None)


def checkpoint_names(folder: Path, stage: str) -> set[str]:
    run = run_folder(folder, stage)
    return {path.name for path in run.iterdir()} if run else set()


def kill_and_rerun(stage: str, folder: Path, times: int, steps: int, seed: int = 17) -> list[dict[str, Any]]:
    """Kills a stage that takes `steps` steps `times` times with SIGKILL, then lets it finish; returns where each kill fell.

    The steps are divided into as many equal parts as there are kills. Each kill comes a random part of a second after a random
    step near the middle of its part, so the kills are some steps apart; every second one waits until a checkpoint is being
    written, the others until none is.
    """
    source, kills = random.Random(seed), []
    for number in range(times):
        step = max(1, round((number + source.uniform(0.25, 0.75)) * (steps - 5) / times))
        before = checkpoint_names(folder, stage)
        process = start(stage, folder, slowly=SLOWLY)
        wait_for(lambda before=before, step=step: begun(checkpoint_names(folder, stage) - before) >= step, process)
        time.sleep(source.uniform(0, SPREAD))
        wait_for(lambda number=number: writing(folder, stage) == bool(number % 2), process)
        process.kill()
        process.join()
        assert process.exitcode == -9, f"{stage} ended before it was killed: {(folder / 'said.txt').read_text()}"
        whole = [
            path for path in checkpoints.finished_checkpoints(run_folder(folder, stage)) if checkpoints.find_damage(path) is None
        ]
        step = checkpoints.step_of(whole[-1]) if whole else 0
        kills.append({"saved step": step, "while writing": writing(folder, stage)})
    assert finish(start(stage, folder)) == 0, (folder / "said.txt").read_text()
    return kills


def writing(folder: Path, stage: str) -> bool:
    """Whether there is an unfinished checkpoint."""
    return any(name.endswith(".unfinished") for name in checkpoint_names(folder, stage))


def begun(names: set[str]) -> int:
    """The last step among these checkpoints, finished or not."""
    return max((int(name.removeprefix("step-").removesuffix(".unfinished")) for name in names), default=0)


def steps_of_curve(folder: Path, stage: str) -> int:
    """The number of steps that a stage took; its curves end with the last one."""
    with (folder / "plots" / ("sft.csv" if stage == "sft" else f"{stage}_loss.csv")).open(encoding="utf-8", newline="") as file:
        return max(int(row["step"]) for row in csv.DictReader(file))


def wait_for(condition, process, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.is_alive(), "it did not come to that"
        time.sleep(0.002)


def outputs(folder: Path, stage: str) -> dict[str, bytes]:
    """What a training stage wrote: adapter, metrics, report and curves."""
    paths = [*(folder / "models" / stage).iterdir(), folder / f"metrics/{stage}.json", folder / f"reports/{stage}.json"]
    paths += [*(folder / "plots").glob(f"{stage}*.csv")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}
