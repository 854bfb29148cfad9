"""The process that a model runs in: device, precision, threads, seeds, and every process-wide switch with its reason."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aligner.run.errors import InputError
from aligner.run.params import ModelEntry

if TYPE_CHECKING:
    import torch

# glibc's names for what mallopt sets (malloc.h), and the values: the largest that it takes.
MALLOPT = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_MMAP_THRESHOLD": (-3, 2**30)}


@dataclass(frozen=True)
class Runtime:
    """Where a model runs: `device` and `dtype` as torch names them, and the number of CPU threads."""

    device: str
    dtype: torch.dtype
    threads: int


def start(entry: ModelEntry, seed: int, training: bool = False) -> Runtime:
    """Prepares this process for one model entry, prints the choices on one line and returns them.

    Process-wide switches are set here; `compile_layers` (torch's stance) and score (the garbage collector) set one more each.
    Call this before anything imports torch: the libraries read some switches once, when they load.
    """
    set_environment()
    quiet_libraries()
    if training:
        score_supervised_tokens_only()
        if entry.padding_free:
            keep_freed_memory()
    import torch
    from transformers import set_seed

    if entry.threads:
        torch.set_num_threads(entry.threads)
    set_seed(seed)
    device = _device(entry.device)
    runtime = Runtime(device, _dtype(entry.dtype, device), torch.get_num_threads())
    print(
        f"device {device}, {str(runtime.dtype).removeprefix('torch.')}, {entry.attn_implementation} attention, "
        f"{runtime.threads} threads, seed {seed}",
        file=sys.stderr,
    )
    return runtime


# ---- Process-wide switches -------------------------------------------------------------------------------------------


def set_environment() -> None:
    """Sets variables that libraries read once, when they load. Apart from those against noise, a value of the user's wins."""
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # trl announces that its ORPOTrainer may change; requirements.txt pins it
    os.environ.setdefault("CI", "1")  # outside CI, trl calls the hub for every trainer that it builds
    os.environ.setdefault("MKL_CBWR", "AUTO")  # Intel's library then sums in one order, wherever in memory the terms are
    # libgomp's threads spin while they wait for each other, by default 300,000 rounds, even if another process needs their core:
    # beside four other loads on two cores a training step took 12 s instead of 0.2 s. A tenth of the rounds costs a quiet machine
    # less than 3 %; none (OMP_WAIT_POLICY=PASSIVE) costs it half as much time again (docs/performance.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def quiet_libraries() -> None:
    """Silences the libraries' own progress bars, advice and deprecations."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.captureWarnings(True)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def score_supervised_tokens_only() -> None:
    """Makes trl score supervised positions only on every device; by itself it does so only where Triton runs.

    The losses are the same to the bit. On two CPU cores a DPO step takes a fifth less time.
    """
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda device: True


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that tensors free.

    By default glibc returns it to Linux, which clears each page when the next layer asks for it: on a CPU, thousands of pages
    per step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for name, value in MALLOPT.values():
            mallopt(name, value)


# ---- Device and precision --------------------------------------------------------------------------------------------


def _device(wanted: str) -> str:
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device, there in present.items() if there)
    if not present[wanted]:
        raise InputError(f"params.yaml: models.<name>.device is {wanted}, but torch sees no such device; set it to auto or cpu")
    return wanted


def _dtype(wanted: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it and float32 elsewhere: bfloat16 on most CPUs is far slower."""
    import torch

    if wanted == "auto":
        wanted = "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return getattr(torch, wanted)
