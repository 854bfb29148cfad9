"""Every run of a stage, told: one JSON file in experiments/, and one clear line when it ends badly.

Times, hosts and versions live here and nowhere else, so that metrics and outputs stay the same from run to run. The folder is
the main checkout's (DVC_ROOT) even when DVC runs a queued experiment in a copy that it deletes afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aligner.errors import InputError

_interruptions: list[int] = []
_patience: list[str] = []

RESTORE = "git checkout . && dvc checkout"
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
    """The record of one stage run; a stage adds what it knows with `note`, and its durations with `phase`."""

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
        """Adds plain values (or namespaces of them) to the record."""
        self.fields.update({name: plain(value) for name, value in fields.items()})

    def phase(self, name: str) -> float:
        """Closes a named phase: the seconds since the last one (or the start), which it also returns."""
        now = time.monotonic()
        seconds, self._phase = now - self._phase, now
        self.fields["seconds"][name] = round(seconds, 3)
        return seconds

    def finish(self, state: str, reason: str | None = None) -> None:
        self.fields["seconds"]["total"] = round(time.monotonic() - self._started, 3)
        self.note(state=state, **({"reason": reason} if reason else {}))
        self.write()

    def write(self) -> None:
        """Replaces the file in one step, so that no reader ever sees half of it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def run_stage(stage: str, main: Callable[[Run], None]) -> None:
    """Runs a stage under a record. What a person can mend ends in one message and exit code 1; a bug keeps its traceback."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    try:
        _recorded(Run(stage), main)
    except InputError as error:
        _exit(1, f"{stage}: {error}")
    except KeyboardInterrupt as error:
        reached = str(error) or "nothing of the inputs is lost"
        _exit(130, f"{stage}: interrupted; {reached}. Go on: dvc repro   (or back: {RESTORE})")
    except OSError as error:
        _exit(
            1,
            f"{stage}: {error.strerror or error}{f': {error.filename}' if error.filename else ''}. Mend it, then: dvc repro",
        )
    finally:
        _interruptions.clear()


def _recorded(run: Run, main: Callable[[Run], None]) -> None:
    """Runs `main` and tells the record how it ended; a record that cannot be written (a full disk) never hides why."""
    try:
        main(run)
    except BaseException as error:
        with contextlib.suppress(OSError):
            run.finish(*_ending(error))
        if _interruptions and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    run.finish("completed")


def _ending(error: BaseException) -> tuple[str, str | None]:
    """State and reason of a run that `error` ended."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", str(error) or None
    if _interruptions:
        return "interrupted", None
    if isinstance(error, InputError | OSError):
        return "failed", str(error)
    return "crashed", f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def patience(message: str) -> Iterator[None]:
    """Inside, a first signal shows `message` and is remembered, for the caller to ask `interrupted`; a second one interrupts.

    Whoever leaves the block without an answer to the signal is interrupted then.
    """
    _patience.append(message)
    try:
        yield
    finally:
        _patience.pop()
    if _interruptions:
        raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether a signal asked this stage to end."""
    return bool(_interruptions)


def plain(value: Any) -> Any:
    """Namespaces as dictionaries, for JSON."""
    if isinstance(value, SimpleNamespace):
        return {key: plain(item) for key, item in vars(value).items()}
    return value


def git_state() -> dict[str, Any]:
    """The commit and whether tracked files differ from it; nulls where there is no Git."""
    return {
        "revision": _git("rev-parse", "HEAD"),
        "dirty": _dirty(_git("status", "--porcelain", "--untracked-files=no")),
    }


def installed(names: list[str]) -> dict[str, str | None]:
    """Installed versions, read without importing anything."""
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


def _interrupt(signum: int, frame: Any) -> None:
    """Remembers the signal: a library that is just being imported may turn the KeyboardInterrupt into an error of its own."""
    _interruptions.append(signum)
    if not _patience or len(_interruptions) > 1:
        raise KeyboardInterrupt
    os.write(2, f"\n{_patience[-1]}\n".encode())  # print is not for signal handlers


def _exit(code: int, message: str) -> None:
    print(_harmless(message), file=sys.stderr)
    raise SystemExit(code)


def _harmless(message: str) -> str:
    """The message with whatever a terminal could act on escaped: it may quote a file, a model or its chat template."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in message)
