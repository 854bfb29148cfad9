"""A small digest of weights, in Git, so that a machine without the recorded bytes can still say how far its weights are.

docs/weights.json holds, for each folder of weights in dvc.lock, its MD5 and of each tensor the norm and the first values. The
norm shows a change anywhere in a tensor, the values how large it is. tools/verify.py --record writes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from compare_outputs import Result, of_tensors

FILE = "docs/weights.json"
VALUES = 4  # of each tensor
DIGITS = 9  # what a float32 needs


def write(root: Path, locked: dict[str, str], folder: Path) -> None:
    """Writes docs/weights.json of `root`: the digests of the folders of weights that a run left in `folder`.

    locked: path and MD5 of each output in dvc.lock.
    """
    found = {path: {"md5": md5, "files": of_folder(folder / path)} for path, md5 in locked.items() if md5.endswith(".dir")}
    lines = [f"  {json.dumps(path)}: {json.dumps(entry)}" for path, entry in found.items() if entry["files"]]
    (root / FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8", newline="\n")


def read(root: Path, locked: dict[str, str]) -> dict[str, dict[str, list[float]]]:
    """The digest of each file of weights whose folder dvc.lock still records: path -> tensor -> [norm, first values …]."""
    file = root / FILE
    entries = json.loads(file.read_bytes()) if file.is_file() else {}
    known = {path: entry for path, entry in entries.items() if locked.get(path) == entry["md5"]}
    return {f"{path}/{name}": tensors for path, entry in known.items() for name, tensors in entry["files"].items()}


def of_folder(folder: Path) -> dict[str, dict[str, list[float]]]:
    """The digest of each safetensors file in a folder."""
    return {file.name: of_file(file) for file in sorted(folder.glob("*.safetensors"))}


def of_file(file: Path) -> dict[str, list[float]]:
    """[norm, first values …] of each tensor, in nine significant digits."""
    return {name: summary(values) for name, values in sorted(of_tensors(file).items())}


def summary(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in (np.linalg.norm(values), *values.ravel()[:VALUES])]


def distance(expected: dict[str, list[float]], file: Path) -> float:
    """How far weights are from a digest: relative to each tensor's norm, or largest first value; infinite for other tensors."""
    if not file.is_file():
        return float("inf")
    found = of_file(file)
    if {name: len(values) for name, values in found.items()} != {name: len(values) for name, values in expected.items()}:
        return float("inf")
    apart = [0.0]
    for name, (norm, *first) in expected.items():
        other_norm, *others = found[name]
        scale = max(map(abs, first), default=0.0) or 1.0
        apart += [abs(other_norm - norm) / (norm or 1.0), *(abs(a - b) / scale for a, b in zip(first, others, strict=True))]
    return max(apart)


def distance_of(result: Result, digests: dict[str, dict[str, list[float]]]) -> float | None:
    """The largest distance of the weights in an output, a file or a folder of files; None if no digest knows it."""
    inside = {path: result.found / path.removeprefix(result.path).lstrip("/") for path in digests if within(path, result.path)}
    return max((distance(digests[path], file) for path, file in inside.items()), default=None)


def within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}/")


def line(result: Result, digests: dict[str, dict[str, list[float]]]) -> str | None:
    """A line for the report about weights whose recorded bytes are not at hand; None if no digest knows them."""
    apart = distance_of(result, digests)
    return None if apart is None else f"weights: norms and first {VALUES} values are up to {apart:.2g} apart, relative ({FILE})"
