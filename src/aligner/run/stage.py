"""How a stage runs: under a record, with deferred signals, and with a one-line error and an exit code when it fails."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from aligner.run.errors import InputError
from aligner.run.record import Run
from aligner.run.terminal import printable_lines

_interruptions: list[int] = []
_deferred: list[str] = []

RESTORE = "git checkout . && dvc checkout"


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
def deferred_interrupt(message: str) -> Iterator[None]:
    """Inside, a first signal shows `message` and is remembered, for the caller to ask `interrupted`; a second one interrupts.

    Whoever leaves the block without an answer to the signal is interrupted then.
    """
    _deferred.append(message)
    try:
        yield
    finally:
        _deferred.pop()
    if _interruptions:
        raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether a signal asked this stage to end."""
    return bool(_interruptions)


def _interrupt(signum: int, frame: Any) -> None:
    """Remembers the signal: a library that is just being imported may turn the KeyboardInterrupt into an error of its own."""
    _interruptions.append(signum)
    if not _deferred or len(_interruptions) > 1:
        raise KeyboardInterrupt
    os.write(2, f"\n{_deferred[-1]}\n".encode())  # print is not for signal handlers


def _exit(code: int, message: str) -> None:
    print(printable_lines(message), file=sys.stderr)
    raise SystemExit(code)
