"""Runs a stage: keeps its record, handles signals, and turns errors into one message and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from aligner.run import ranks
from aligner.run.errors import InputError
from aligner.run.record import Run
from aligner.run.terminal import alive, printable_lines

_interruptions: list[int] = []
_deferred: list[str] = []

METHODS = "pipelines/dvc.yaml"
RESTORE = "git checkout . && dvc checkout"


def run_stage(stage: str, main: Callable[[Run], None], pipeline: str = "") -> None:
    """Runs a stage and keeps its record. An error that the user can fix is one message and exit code 1; a bug has a traceback.

    pipeline: the dvc.yaml of the stage if it is not the root's, for the messages.
    """
    again = f"dvc repro {pipeline}".strip()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    try:
        with alive(stage):
            _recorded(Run(stage), main)
    except InputError as error:
        _exit(1, f"{stage}: {error}")
    except KeyboardInterrupt as error:
        reached = str(error) or "the inputs are unchanged"
        _exit(130, f"{stage}: interrupted; {reached}. Resume: {again}   (or undo: {RESTORE})")
    except OSError as error:
        _exit(
            1,
            f"{stage}: {error.strerror or error}{f': {error.filename}' if error.filename else ''}. Fix this, then: {again}",
        )
    finally:
        _interruptions.clear()


def _recorded(run: Run, main: Callable[[Run], None]) -> None:
    """Runs `main` and records how it ended; a record that cannot be written (a full disk) does not hide the reason."""
    try:
        with ranks.together(lambda reason: _give_up(run, reason)):
            main(run)
    except BaseException as error:
        with contextlib.suppress(OSError):
            run.finish(*_ending(error))
        if _interruptions and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    run.finish("completed")


def _give_up(run: Run, reason: str) -> None:
    """Reports and records the loss of a process when rank 0 cannot: it waits for the lost one."""
    print(printable_lines(f"{run.fields['stage']}: {reason}"), file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        run.finish("failed", reason)


def _ending(error: BaseException) -> tuple[str, str | None]:
    """The state and the reason of a run that ended with `error`."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", str(error) or None
    if _interruptions:
        return "interrupted", None
    if isinstance(error, InputError | OSError):
        return "failed", str(error)
    return "crashed", f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def deferred_interrupt(message: str) -> Iterator[None]:
    """Within this block the first signal only shows `message` and makes `interrupted` true; a second signal interrupts at once.

    If a signal came, the end of the block raises KeyboardInterrupt.
    """
    _deferred.append(message)
    try:
        yield
    finally:
        _deferred.pop()
    if _interruptions:
        raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether a signal has asked this stage to end."""
    return bool(_interruptions)


def _interrupt(signum: int, frame: Any) -> None:
    """Records the signal, since a library may turn a KeyboardInterrupt during its import into an error of its own."""
    _interruptions.append(signum)
    if not _deferred or len(_interruptions) > 1:
        raise KeyboardInterrupt
    os.write(2, f"\n{_deferred[-1]}\n".encode())  # print is unsafe in a signal handler


def _exit(code: int, message: str) -> None:
    if ranks.first():
        print(printable_lines(message), file=sys.stderr)
    elif code != 130:
        ranks.report(printable_lines(message))
    raise SystemExit(code)
