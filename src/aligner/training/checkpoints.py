"""Checkpoints of sft and dpo: a training that was killed at any moment resumes when its stage runs again, to the same bytes.

    with checkpoints.locked("sft", checkpoints.run_fingerprint("sft", files, params=params)) as saved:
        trainer = …
        saved.train(trainer)    # resumes where an earlier run stopped
        …                       # write the outputs; the end of the block deletes the checkpoints

Checkpoints are in .cache/checkpoints/<stage>/<fingerprint>/step-<n>, in the main checkout (DVC_ROOT) even for queued experiments.
They are not DVC outputs, since DVC deletes outputs before it runs a stage. The fingerprint covers everything that determines the
run, so no run resumes from the checkpoint of a different one. transformers writes and reads most of a checkpoint; progress.json
holds what it keeps in memory only, the sums that the next line of its log averages.

A checkpoint is written under another name, synced to the disk and then renamed. SHA256SUMS shows whether it is intact (check it
with: cd step-40 && sha256sum -c SHA256SUMS). transformers reads the pickles among its files with `weights_only`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aligner.model.loading import save_adapter
from aligner.run import ranks
from aligner.run.errors import InputError
from aligner.run.imports import SOURCE, code_of
from aligner.run.record import LIBRARIES, installed, json_value
from aligner.run.stage import deferred_interrupt, interrupted
from aligner.training.trl_internals import (
    random_state,
    restore_unlogged_sums,
    save_training_state,
    take_over_saving,
    unlogged_sums,
)

SECONDS = 30.0  # between two checkpoints, or more:
SHARE = 0.01  # the largest share of the time that writing them may take
KEPT_CHECKPOINTS = 2  # per run: if the newest is damaged, the one before it is used
OTHER_RUNS = 4  # how many other unfinished runs of the stage keep their checkpoints, newest first, …
DAYS = 14  # … and for how long
LOCK_TIMEOUT = 1.0  # seconds to wait for a lock, which another process may hold for a moment to test it
SUMS = "SHA256SUMS"
STATE = "trainer_state.json"
PROGRESS = "progress.json"


def run_fingerprint(stage: str, files: list[Path], **values: Any) -> str:
    """Identifies a training run: SHA-256 over `values`, the bytes of `files`, the code, versions and the kind of machine.

    files: relative paths; a folder stands for the files in it. values: parameters and everything else that the run depends on.
    The code is the stage's script and all files of src/ that it imports (aligner/run/imports.py), as in its deps in dvc.yaml.
    """
    parts = {
        "values": {name: json_value(value) for name, value in values.items()},
        "files": {path.as_posix(): sha256(path) for path in _files(files)},
        "code": {path.relative_to(SOURCE).as_posix(): sha256(path) for path in code_of(SOURCE / f"{stage}.py", SOURCE)},
        "versions": {"python": platform.python_version(), **installed(LIBRARIES)},
        "machine": _machine(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


@contextlib.contextmanager
def locked(stage: str, run: str) -> Iterator[Checkpoints]:
    """Locks the checkpoints of one run for this process, and deletes them once the block has written the stage's outputs.

    There are two locks: one per run, and one per stage of a working tree, whose outputs only one process may write. Raises
    InputError when another process holds one. Of the processes of one training, rank 0 holds the locks for all.
    """
    folder = _root() / stage / run
    if not ranks.first():
        yield Checkpoints(stage, folder)
        return
    with alone(Path(".cache/checkpoints") / f"{stage}.lock"), alone(folder.with_name(f"{run}.lock")):
        clean_up(folder)
        folder.mkdir(exist_ok=True)
        yield Checkpoints(stage, folder)
        shutil.rmtree(folder, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run, in `folder`: saves them during training and finds the newest intact one."""

    def __init__(self, stage: str, folder: Path) -> None:
        self.stage, self.folder = stage, folder

    def train(self, trainer) -> int:
        """Trains to the end, from the newest checkpoint if there is one, and returns the number of steps in that checkpoint.

        On the first SIGTERM or Ctrl-C it finishes and saves the current step, then raises KeyboardInterrupt.
        """
        from transformers import TrainerCallback

        newest, sums = ranks.same(self.start_of(trainer) if ranks.first() else None)

        class Saver(TrainerCallback):
            def on_train_begin(_, args, state, control, **kwargs):
                if newest is not None:
                    restore_unlogged_sums(trainer, own_sums(sums))
                self.next_due = time.monotonic() + SECONDS

            def on_step_end(_, args, state, control, **kwargs):
                due = interrupted() or (ranks.first() and time.monotonic() >= self.next_due)
                due = ranks.anywhere(due)
                control.should_save = due and state.global_step < state.max_steps  # no resuming after the last step

        trainer.add_callback(Saver())
        take_over_saving(trainer, lambda: self.save(trainer))
        with deferred_interrupt(f"{self.stage}: finishing and saving this step; interrupt again to stop at once"):
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        return step_of(newest) if newest else 0

    def start_of(self, trainer) -> tuple[Path | None, list[dict[str, Any]]]:
        """The newest intact checkpoint and the unlogged sums of each process in it.

        Raises InputError if another number of processes wrote it and the model has dropout, which draws other values for them.
        """
        newest = self.newest()
        sums = json.loads((newest / PROGRESS).read_text(encoding="utf-8")) if newest else []
        if newest and len(sums) != ranks.world() and has_dropout(trainer.model):
            raise InputError(
                f"{newest} is a checkpoint of {len(sums)} processes, and with dropout {ranks.world()} would train otherwise. "
                f"Set models.<name>.processes to {len(sums)}, or begin anew: rm -r {self.folder}"
            )
        return newest, sums

    def newest(self) -> Path | None:
        """The newest intact checkpoint, if any; damaged ones are reported and deleted."""
        for path in reversed(finished_checkpoints(self.folder)):
            problem = find_damage(path)
            if problem is None:
                print(f"{self.stage}: resumes after step {step_of(path)}, where an earlier run stopped", file=sys.stderr)
                return path
            print(f"{self.stage}: checkpoint {path} is damaged ({problem}) and was deleted", file=sys.stderr)
            shutil.rmtree(path)
        return None

    def save(self, trainer) -> None:
        """Writes a checkpoint, deletes the oldest, and sets the time of the next; raises KeyboardInterrupt after a signal."""
        started, state = time.monotonic(), trainer.state
        path = self.folder / f"step-{state.global_step}"
        try:
            write(trainer, path)
        except _write_errors() as error:
            if interrupted():
                raise KeyboardInterrupt(self._unwritten(path, error)) from None
            raise InputError(f"{self._unwritten(path, error)}. Free some space, then: dvc repro") from None
        for old in finished_checkpoints(self.folder)[:-KEPT_CHECKPOINTS] if ranks.first() else []:
            shutil.rmtree(old, ignore_errors=True)
        if ranks.anywhere(interrupted()):
            raise KeyboardInterrupt(f"step {state.global_step} of {state.max_steps} is saved")
        now = time.monotonic()
        self.next_due = now + max(SECONDS, (now - started) / SHARE)

    def _unwritten(self, path: Path, error: Exception) -> str:
        before = finished_checkpoints(self.folder)
        reason = (error.strerror if isinstance(error, OSError) else None) or next(iter(str(error).strip().splitlines()), "")
        kept = f"the checkpoint of step {step_of(before[-1])} is kept" if before else "there is no earlier one"
        return f"checkpoint {path} could not be written ({reason}); {kept}"


# ---- One checkpoint -------------------------------------------------------------------------------------------------


def write(trainer, path: Path) -> None:
    """Writes the full state of a trainer between two steps; `path` appears complete or not at all.

    Rank 0 writes it, with the unlogged sums and random states of all processes.
    """
    sums, random_states = ranks.gathered(unlogged_sums(trainer)), ranks.gathered(random_state(trainer))
    if not ranks.first():
        return
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.mkdir(parents=True)
    try:
        save_adapter(trainer.model, unfinished, "", {})
        save_training_state(trainer, unfinished)
        for name, content in random_states:
            (unfinished / name).write_bytes(content)
        trainer.state.save_to_json(str(unfinished / STATE))
        (unfinished / PROGRESS).write_text(json.dumps(sums), encoding="utf-8")
        lines = "".join(f"{sha256(file)}  {file.name}\n" for file in _files([unfinished]))
        (unfinished / SUMS).write_text(lines, encoding="utf-8", newline="\n")
        for file in _files([unfinished]):
            sync(file)
        sync(unfinished)
        unfinished.rename(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def own_sums(sums: list[dict[str, Any]]) -> dict[str, Any]:
    """This process's unlogged sums; from another number of processes the mean loss, and all else is the same on each."""
    if len(sums) == ranks.world():
        return sums[ranks.rank()]
    return {**sums[0], "loss": sum(each["loss"] for each in sums) / len(sums)}


def has_dropout(model) -> bool:
    """Whether training draws random numbers in the model."""
    import torch

    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file must exist and hold the bytes that were written."""
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    except (OSError, ValueError):
        return f"{SUMS} cannot be read"
    found = {file.name for file in path.glob("[!.]*")} - {SUMS}
    for name in sorted({STATE, PROGRESS, *sums, *found}):
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256(path / name) != sums.get(name):
            return f"{name} does not hold the bytes that were written"
    return None


def _write_errors() -> tuple[type[Exception], ...]:
    """The exceptions that Python, torch and safetensors raise for a full disk."""
    from safetensors import SafetensorError

    return OSError, RuntimeError, SafetensorError


# ---- Runs -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Holds a lock of the operating system, which ends with the process; InputError names the process that holds it already."""
    from filelock import FileLock, Timeout

    holder = lock.with_suffix(".holder")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock).acquire(timeout=LOCK_TIMEOUT)
    except Timeout:
        raise InputError(
            f"another process is training this stage: {_text_of(holder)}. Wait for it, or end it (kill PID; it saves a "
            "checkpoint first), then: dvc repro"
        ) from None
    with held:
        now = datetime.now(timezone.utc).isoformat(sep=" ", timespec="seconds")
        holder.write_text(f"pid {os.getpid()} on {platform.node()}, since {now}", encoding="utf-8")
        try:
            yield
        finally:
            for path in (holder, lock):
                with contextlib.suppress(OSError):
                    path.unlink()


def clean_up(folder: Path) -> None:
    """Deletes unfinished checkpoints of this run, and the oldest other runs that no process is training."""
    for path in folder.glob("*.unfinished"):
        shutil.rmtree(path)
    others = sorted((path for path in folder.parent.iterdir() if path.is_dir() and path != folder), key=_age)
    for rank, path in enumerate(others):
        if rank >= OTHER_RUNS or _age(path) > DAYS * 86400:
            with contextlib.suppress(InputError), alone(path.with_name(f"{path.name}.lock")):
                shutil.rmtree(path)


def _root() -> Path:
    return Path(os.environ.get("DVC_ROOT", ".")) / ".cache" / "checkpoints"


def _age(folder: Path) -> float:
    """Seconds since a checkpoint was last written to a run's folder."""
    return time.time() - folder.stat().st_mtime


def _text_of(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8") or "just started"
    except OSError:
        return "just started"


def _machine() -> list[str]:
    """The kind of processor: another kind computes other last digits, so a run does not resume on it."""
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [platform.system(), platform.machine(), torch.backends.cpu.get_cpu_capability(), *devices]


# ---- Files ----------------------------------------------------------------------------------------------------------


def finished_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in the folder of a run, oldest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _files(paths: list[Path]) -> list[Path]:
    """The files among `paths` and the files in the folders among them."""
    return [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk; Windows cannot do this for folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
