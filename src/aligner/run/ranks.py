"""One training stage on several processes, which torch.distributed connects; rank 0 is the stage's own process.

    ranks.start(2, shard=False)   # rank 0 starts the helpers: the same script with RANK and WORLD_SIZE in the environment
    ranks.join(device)            # all processes meet
    …                             # all run the same code, each on its share of every batch
    ranks.part()                  # rank 0 continues alone, unless each process holds only a part of the model

If a launcher has set WORLD_SIZE (torchrun, accelerate launch, Slurm), `start` starts nothing. Rank 0 alone prints and writes.
No process outlives the stage: a helper reads a pipe that closes when rank 0 ends, even by SIGKILL; rank 0 waits for each helper
in a thread, names the first one that fails, and ends the stage.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from aligner.run.errors import InputError

HELPER = "ALIGNER_HELPER"  # set in the processes that a stage started itself
LOOPBACK = {"linux": "lo", "darwin": "lo0"}
GRACE = 5.0  # seconds in which rank 0 notices the loss of a process by itself; afterwards the thread that waits ends the stage
# Parts of the messages of gloo and NCCL for a lost connection; both raise plain RuntimeError for most of them.
LOST_CONNECTION = ("Connection closed by peer", "Connection reset", "Broken pipe", "gloo", "NCCL", "Timed out waiting")


class _State:
    """What this process knows about the others."""

    def __init__(self) -> None:
        self.helpers: list[subprocess.Popen] = []
        self.environment: dict[str, str | None] = {}  # the values that `start` replaced
        self.joined = self.sharded = self.ended = False
        self.give_up: Callable[[str], None] = lambda reason: None  # see `together`
        self.lost: list[tuple[int, int]] = []  # (rank, exit code) of helpers that failed, the first one first


_state = _State()


def world() -> int:
    """The number of processes that work together now; 1 before `join` and after `part`."""
    return _asked() if _state.joined else 1


def rank() -> int:
    return int(os.environ.get("RANK", "0")) if _asked() > 1 else 0


def first() -> bool:
    """Whether this process prints, and writes records and outputs."""
    return rank() == 0


def sharded() -> bool:
    """Whether each process holds only a part of the base, so that all must run every forward pass together."""
    return _state.sharded


def _asked() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


# ---- Start and end --------------------------------------------------------------------------------------------------


def start(processes: int, shard: bool) -> None:
    """Starts processes - 1 helpers, unless a launcher has set WORLD_SIZE; helpers and other ranks print nothing from here on."""
    if "WORLD_SIZE" not in os.environ and processes > 1:
        _start_helpers(processes)
    if HELPER in os.environ:
        threading.Thread(target=_end_with_the_stage, daemon=True).start()
    if not first():
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    _state.sharded = shard and _asked() > 1


def join(device: str) -> None:
    """Connects the processes and chooses this process's GPU; InputError if the device does not allow so many."""
    if _asked() == 1:
        return
    import torch
    from accelerate import PartialState

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "mps" or (device == "cuda" and here > torch.cuda.device_count()):
        most = torch.cuda.device_count() or 1
        raise InputError(f"{here} processes here need as many GPUs, and there are {most}; set models.<name>.processes to {most}")
    threads = torch.get_num_threads()
    PartialState(cpu=device == "cpu")
    torch.set_num_threads(threads)  # PartialState may change it
    _state.joined = True
    if first():
        print(f"{world()} processes{', each with a part of the base' if sharded() else ''}", file=sys.stderr)


def part() -> None:
    """Ends the common work: helpers exit, and rank 0 continues alone. With a sharded base all continue."""
    if world() == 1 or sharded():
        return
    _disconnect()
    if not first():
        raise SystemExit(0)


@contextlib.contextmanager
def together(give_up: Callable[[str], None]) -> Iterator[None]:
    """Encloses a stage: when it ends in any way, no helper is left; a lost process becomes an InputError that names it.

    give_up: reports that message and records the end, for a rank 0 that waits in a collective operation and notices no loss.
    """
    _state.give_up, _state.ended, _state.lost = give_up, False, []
    try:
        yield
        if world() > 1:
            _disconnect()
        for helper in _state.helpers:
            helper.wait(GRACE * 12)
    except Exception as error:
        if not isinstance(error, InputError) and world() > 1 and _is_lost_connection(error):
            raise InputError(_reason(error)) from error
        if not first():
            sys.stderr = sys.__stderr__  # for the traceback
        raise
    finally:
        _stop()


def report(message: str) -> None:
    """Prints the error of another rank than 0, unless rank 0 ends this process first, with the same error for example."""
    time.sleep(GRACE)
    print(f"[process {rank()} of {_asked()}] {message}", file=sys.__stderr__)


def _start_helpers(processes: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    size = str(processes)
    names = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform in LOOPBACK and "GLOO_SOCKET_IFNAME" not in os.environ:
        names["GLOO_SOCKET_IFNAME"] = LOOPBACK[sys.platform]
    names.update(RANK="0", LOCAL_RANK="0")
    _state.environment = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    for number in range(1, processes):
        _state.helpers.append(
            subprocess.Popen(
                [sys.executable, *sys.argv],
                env={**os.environ, "RANK": str(number), "LOCAL_RANK": str(number), HELPER: "1"},
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C reaches rank 0 alone, which tells the others after the step
            )
        )
    threading.Thread(target=_watch, daemon=True).start()


def _end_with_the_stage() -> None:
    os.read(0, 1)  # returns when rank 0 has ended; sys.stdin would hold a lock that Python needs when it exits
    os._exit(1)


def _watch() -> None:
    """Waits until a helper fails; ends this process if it does not end by itself."""
    while not _state.ended and not _state.lost:
        time.sleep(0.1)
        _note_losses()
    if _state.ended:
        return
    time.sleep(GRACE)
    if not _state.ended:
        _state.give_up(_reason(None))
        _stop()
        os._exit(1)


def _note_losses() -> None:
    for number, helper in enumerate(_state.helpers, 1):
        if helper.poll() not in (None, 0) and number not in dict(_state.lost):
            _state.lost.append((number, helper.returncode))


def _is_lost_connection(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and any(part in str(error) for part in LOST_CONNECTION)


def _reason(error: Exception | None) -> str:
    """Names the process that was lost. A helper waits here for rank 0, which has more to say, and ends with it."""
    deadline = time.monotonic() + GRACE
    while (HELPER in os.environ or _state.helpers) and not _state.lost and time.monotonic() < deadline:
        time.sleep(0.05)
        _note_losses()
    if not _state.lost:
        return f"the connection to another process was lost ({str(error).splitlines()[0]}); see its messages. Resume: dvc repro"
    number, code = _state.lost[0]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"process {number} of {_asked()} (RANK={number}) {how}, and the others were stopped. Resume: dvc repro"


def _disconnect() -> None:
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()
    _state.joined = False


def _stop() -> None:
    """Kills the helpers that are left, and restores the environment and this module's state."""
    _state.ended = True
    for helper in _state.helpers:
        helper.kill()
        helper.wait()
        if helper.stdin:
            helper.stdin.close()
    _state.helpers = []
    for name, value in _state.environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _state.environment, _state.joined, _state.sharded = {}, False, False


# ---- Values of all processes ----------------------------------------------------------------------------------------


def same(value: Any) -> Any:
    """Rank 0's value, on every process."""
    if world() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    box: list[Any] = [None] * world()
    dist.all_gather_object(box, value)
    return box


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process; cheap enough for every step."""
    if world() == 1:
        return flag
    import torch
    import torch.distributed as dist

    value = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def own(items: list) -> list:
    """This process's share of independent forward passes; all of them if the base is sharded."""
    return items if sharded() else items[rank() :: world()] if world() > 1 else items


def summed(rows: list[Any]) -> list[Any]:
    """The element-wise sums over the processes of tuples of numbers, which each computed for its `own` share."""
    if world() == 1 or sharded():
        return rows
    return [tuple(map(math.fsum, zip(*each, strict=True))) for each in zip(*gathered(rows), strict=True)]
