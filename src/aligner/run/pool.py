"""Independent work on several processes, with the results in the order of the work.

    for result in in_order(work, items, processes=4):
        …

`work` is a picklable function, or an object with `__call__` that holds what every call needs; it is sent to each process once.
The processes are new Python programs (spawn), so neither threads nor locks of this one are copied. At most AHEAD items for each
process are read ahead, which bounds the memory. No process outlives this one, even after SIGKILL.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal

from aligner.run.errors import InputError

AHEAD = 4


def cores(wanted: int | Literal["auto"]) -> int:
    """The number of processes: as wanted, or one for each core that this process may use."""
    if wanted != "auto":
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Any], Any], items: Iterable[Any], processes: int) -> Iterator[Any]:
    """Yields work(item) for each item, in order; one process works in this one.

    Raises what `work` raises, and InputError if a process is lost.
    """
    if processes == 1:
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (work,))
    waiting: deque[Future] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) > AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            f"one of {processes} processes was lost; if memory ran out, set models.<name>.prepare.processes to a smaller number"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    """Prepares a new process: Ctrl-C is for the first process alone, and when that one ends, this one does."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(item: Any) -> Any:
    return _work(item)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in the pool's processes only
    parent.join()
    os._exit(1)


_work: Callable[[Any], Any]
