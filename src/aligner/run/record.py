"""Run records: one JSON file per stage run in experiments/, with times, host, versions, parameters and the end of the run.

No other file holds times, hosts and versions, so outputs and metrics are the same for every run. The folder is in the main
checkout (DVC_ROOT), even when DVC runs a queued experiment in a copy that it deletes afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from aligner.run import ranks

LIBRARIES = [
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "tokenizers",
    "safetensors",
    "dvc",
    "numpy",
]


class Run:
    """The record of one stage run. A stage adds values with `note` and durations with `phase`."""

    def __init__(self, stage: str) -> None:
        now = datetime.now(timezone.utc)
        folder = Path(os.environ.get("DVC_ROOT", ".")) / "experiments"
        self.path = folder / f"{stage}-{now:%Y%m%dT%H%M%S.%fZ}.json"
        self.fields: dict[str, Any] = {
            "stage": stage,
            "state": "running",
            "started": now.isoformat(timespec="seconds"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "git": git_state(),
            "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
            "python": platform.python_version(),
            "versions": installed(LIBRARIES),
            "seconds": {},
        }
        self._started = self._phase = time.monotonic()
        self.write()

    def note(self, **fields: Any) -> None:
        """Adds JSON values, parameters or dataclasses to the record."""
        self.fields.update({name: json_value(value) for name, value in fields.items()})

    def phase(self, name: str) -> float:
        """Ends a phase: records and returns the seconds since the previous phase or the start."""
        now = time.monotonic()
        seconds, self._phase = now - self._phase, now
        self.fields["seconds"][name] = round(seconds, 3)
        return seconds

    def finish(self, state: str, reason: str | None = None) -> None:
        self.fields["seconds"]["total"] = round(time.monotonic() - self._started, 3)
        self.fields["peak_memory_mb"] = peak_memory_mb()
        self.note(state=state, **({"reason": reason} if reason else {}))
        self.write()

    def write(self) -> None:
        """Replaces the file atomically, so no reader sees half of it; rank 0 alone writes one."""
        if not ranks.first():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def peak_memory_mb() -> dict[str, int]:
    """The most memory that this process has held, in MiB: `ram`, and `gpu` for tensors on the current CUDA device, if any."""
    found = {}
    with contextlib.suppress(ImportError):  # Windows has no `resource`
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        found["ram"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found


def json_value(value: Any) -> Any:
    """Converts parameters and dataclasses to dictionaries for JSON; other values stay as they are."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if is_dataclass(value) and not isinstance(value, type):
        return {name: str(item) for name, item in asdict(value).items()}
    return value


def git_state() -> dict[str, Any]:
    """The commit, and whether tracked files differ from it; both None without Git."""
    return {
        "revision": _git("rev-parse", "HEAD"),
        "dirty": _dirty(_git("status", "--porcelain", "--untracked-files=no")),
    }


def installed(names: list[str]) -> dict[str, str | None]:
    """Versions of the installed libraries among `names`, else None; reads their metadata and imports nothing."""
    found = {name: next(iter(metadata.distributions(name=name)), None) for name in names}
    return {name: distribution.version if distribution else None for name, distribution in found.items()}


def _dirty(status: str | None) -> bool | None:
    return None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
