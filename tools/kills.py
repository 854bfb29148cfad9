"""Kills sft and dpo by SIGKILL at random moments, runs them again, and compares the bytes of their outputs.

The model is tiny and random, and its stages save a checkpoint at every step, slowly; every second kill interrupts such a save.
The uninterrupted run saves none. A kill comes a random part of a second after a random step.

command PYTHONPATH=src:tests:models/base python tools/kills.py [--times N] [--seed N]
        10 kills a stage by default; a minute or two
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from support import killed


def main(times: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {stage: survived(stage, Path(folder), times, seed) for stage in ("sft", "dpo")}
    heads = f"{'stage':7s}{'steps':>5s}  {'kills':>5s}  {'in a write':>10s}  {'bytes':>9s}  {'differing':>9s}"
    print(f"{heads}  newest whole checkpoint at each kill (* in a write)")
    for stage, row in found.items():
        steps = " ".join(f"{kill['saved step']}{'*' * kill['while writing']}" for kill in row["kills"])
        writing = sum(kill["while writing"] for kill in row["kills"])
        numbers = f"{row['steps']:5d}  {len(row['kills']):5d}  {writing:10d}  {row['bytes']:9,d}  {row['differing']:9,d}"
        print(f"{stage:7s}{numbers}  {steps}")
    print(json.dumps(found))


def survived(stage: str, folder: Path, times: int, seed: int) -> dict[str, Any]:
    """The kills of a stage, the size of its outputs, and the number of bytes that differ from an uninterrupted run."""
    whole = folder / "whole"
    if not whole.exists():
        killed.prepare(whole)
    assert killed.finish(killed.start(stage, whole, seconds=1000)) == 0, (whole / "said.txt").read_text()
    again = shutil.copytree(whole, folder / stage)
    expected = killed.outputs(whole, stage)
    for name in expected:
        (again / name).unlink()
    steps = killed.steps_of_curve(whole, stage)
    kills = killed.kill_and_rerun(stage, again, times, steps, seed)
    found = killed.outputs(again, stage)
    differing = sum(differences(expected.get(name, b""), found.get(name, b"")) for name in {*expected, *found})
    return {"kills": kills, "bytes": sum(map(len, expected.values())), "differing": differing, "steps": steps}


def differences(one: bytes, other: bytes) -> int:
    return sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=17)
    arguments = parser.parse_args()
    main(arguments.times, arguments.seed)
