"""Checkpoints of sft and dpo: a training that was killed at any moment goes on when its stage runs again, to the same bytes.

    with checkpoints.keep("sft", checkpoints.fingerprint("sft", files, params=params)) as kept:
        trainer = …
        kept.train(trainer)     # goes on where an earlier run was stopped
        …                       # write the outputs; then the checkpoints are gone

They stand in .cache/checkpoints/<stage>/<fingerprint>/step-<n>, in the main checkout (DVC_ROOT) even for queued experiments, and
are no DVC outputs, which DVC deletes before it runs a stage. The fingerprint covers whatever determines the run, so that nothing
ever goes on from a run that was another one. transformers writes and reads most of a checkpoint; what it forgets between two
lines of its log (the sums that the next line will average) stands in progress.json.

A checkpoint is written under another name, synced to the disk, then renamed; SHA256SUMS tells whether it is still whole (or ask:
cd step-40 && sha256sum -c SHA256SUMS). Pickles among its files are read by transformers with `weights_only`.
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
from aligner.run.errors import InputError
from aligner.run.imports import SOURCE, code_of
from aligner.run.record import LIBRARIES, installed, plain
from aligner.run.stage import deferred_interrupt, interrupted
from aligner.training.trl_internals import restore_unlogged_sums, save_training_state, take_over_saving, unlogged_sums

SECONDS = 30.0  # from one checkpoint to the next, or longer:
SHARE = 0.01  # of the time at most goes into writing them
KEPT = 2  # checkpoints of a run: should the newest be damaged, there is the one before
OTHER_RUNS = 4  # unfinished runs of the same stage whose checkpoints stay, the newest ones, …
DAYS = 14  # … and for how long
PATIENCE = 1.0  # seconds that a lock may take, while somebody else looks whether it is held
SUMS = "SHA256SUMS"
STATE = "trainer_state.json"
PROGRESS = "progress.json"


def fingerprint(stage: str, files: list[Path], **values: Any) -> str:
    """What names a training run: a SHA-256 over `values`, the bytes of `files`, code, versions and the kind of machine.

    files: relative paths (of a folder, all that is in it); values: parameters and whatever else the run depends on. Code is the
    stage's script and all of src/ that it imports (aligner/run/imports.py), the same files as its deps in dvc.yaml.
    """
    parts = {
        "values": {name: plain(value) for name, value in values.items()},
        "files": {path.as_posix(): _sha256(path) for path in _files(files)},
        "code": {path.relative_to(SOURCE).as_posix(): _sha256(path) for path in code_of(SOURCE / f"{stage}.py", SOURCE)},
        "versions": {"python": platform.python_version(), **installed(LIBRARIES)},
        "machine": _machine(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


@contextlib.contextmanager
def keep(stage: str, run: str) -> Iterator[Checkpoints]:
    """The checkpoints of the run named `run`, for this process alone; removed when the block, which writes the outputs, is done.

    Two locks: no two processes train one run, and none writes the outputs of a working tree that another one writes.
    """
    folder = _root() / stage / run
    with alone(Path(".cache/checkpoints") / f"{stage}.lock"), alone(folder.with_name(f"{run}.lock")):
        clean_up(folder)
        folder.mkdir(exist_ok=True)
        yield Checkpoints(stage, folder)
        shutil.rmtree(folder, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run in `folder`: writes them while a trainer trains, and finds the newest that is whole."""

    def __init__(self, stage: str, folder: Path) -> None:
        self.stage, self.folder = stage, folder

    def train(self, trainer) -> int:
        """Trains to the end, from the newest checkpoint where there is one, and returns how many steps that one had done.

        On the first SIGTERM or Ctrl-C the step in hand is finished and saved, then KeyboardInterrupt says so.
        """
        from transformers import TrainerCallback

        newest = self.newest()

        class Saver(TrainerCallback):
            def on_train_begin(_, args, state, control, **kwargs):
                if newest is not None:
                    restore_unlogged_sums(trainer, json.loads((newest / PROGRESS).read_text(encoding="utf-8")))
                self._next = time.monotonic() + SECONDS

            def on_step_end(_, args, state, control, **kwargs):
                due = interrupted() or time.monotonic() >= self._next
                control.should_save = due and state.global_step < state.max_steps  # there is nothing to go on to after the last

        trainer.add_callback(Saver())
        take_over_saving(trainer, lambda: self._save(trainer))
        with deferred_interrupt(f"{self.stage}: this step is finished and saved first; once more stops at once"):
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        return _step(newest) if newest else 0

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, if any; damaged ones are told and removed."""
        for path in reversed(_steps(self.folder)):
            problem = damage(path)
            if problem is None:
                print(f"{self.stage}: goes on after step {_step(path)}, where an earlier run was stopped", file=sys.stderr)
                return path
            print(f"{self.stage}: checkpoint {path} is damaged ({problem}) and left out", file=sys.stderr)
            shutil.rmtree(path)
        return None

    def _save(self, trainer) -> None:
        started, state = time.monotonic(), trainer.state
        path = self.folder / f"step-{state.global_step}"
        try:
            write(trainer, path)
        except _write_errors() as error:
            if interrupted():
                raise KeyboardInterrupt(self._unwritten(path, error)) from None
            raise InputError(f"{self._unwritten(path, error)}. Make room there, then: dvc repro") from None
        for old in _steps(self.folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        if interrupted():
            raise KeyboardInterrupt(f"step {state.global_step} of {state.max_steps} is saved")
        now = time.monotonic()
        self._next = now + max(SECONDS, (now - started) / SHARE)

    def _unwritten(self, path: Path, error: Exception) -> str:
        before = _steps(self.folder)
        reason = (error.strerror if isinstance(error, OSError) else None) or next(iter(str(error).strip().splitlines()), "")
        kept = f"the one of step {_step(before[-1])} is kept" if before else "there is none yet"
        return f"checkpoint {path} could not be written ({reason}); {kept}"


# ---- One checkpoint -------------------------------------------------------------------------------------------------


def write(trainer, path: Path) -> None:
    """Writes the whole state of a trainer between two steps; `path` appears at once and complete, or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.mkdir(parents=True)
    try:
        save_adapter(trainer.model, unfinished, "", {})
        save_training_state(trainer, unfinished)
        trainer.state.save_to_json(str(unfinished / STATE))
        (unfinished / PROGRESS).write_text(json.dumps(unlogged_sums(trainer)), encoding="utf-8")
        sums = "".join(f"{_sha256(file)}  {file.name}\n" for file in _files([unfinished]))
        (unfinished / SUMS).write_text(sums, encoding="utf-8", newline="\n")
        for file in _files([unfinished]):
            _sync(file)
        _sync(unfinished)
        unfinished.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file must be there, and its bytes those that were written."""
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    except (OSError, ValueError):
        return f"{SUMS} cannot be read"
    found = {file.name for file in path.glob("[!.]*")} - {SUMS}
    for name in sorted({STATE, PROGRESS, *sums, *found}):
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != sums.get(name):
            return f"{name} has other bytes than were written"
    return None


def _write_errors() -> tuple[type[Exception], ...]:
    """What a full disk is to Python, to torch and to safetensors."""
    from safetensors import SafetensorError

    return OSError, RuntimeError, SafetensorError


# ---- Runs -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Holds a lock of the operating system, which ends with the process however that ends; InputError tells who has it."""
    from filelock import FileLock, Timeout

    holder = lock.with_suffix(".holder")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock).acquire(timeout=PATIENCE)
    except Timeout:
        raise InputError(
            f"another process trains this already: {_told(holder)}. Let it finish, or end it (kill PID: it saves a checkpoint "
            "first), then: dvc repro"
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
    """Removes a checkpoint of this run that was never finished, and the oldest runs beside it that nobody trains now."""
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


def _told(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8") or "just started"
    except OSError:
        return "just started"


def _machine() -> list[str]:
    """Another kind of processor computes other last digits: what begins on one does not go on on another."""
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [platform.system(), platform.machine(), torch.backends.cpu.get_cpu_capability(), *devices]


# ---- Files ----------------------------------------------------------------------------------------------------------


def _steps(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _files(paths: list[Path]) -> list[Path]:
    """Files as they are, folders as the files in them."""
    return [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk; Windows knows no such thing for folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
