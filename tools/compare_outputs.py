"""Compares a pipeline's outputs with those in dvc.lock: finds which differ, and by how much.

tools/verify.py uses it. It knows DVC's MD5 of files and folders, and reads JSON, CSV, JSON lines, safetensors and text.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MOST_LISTED = 10  # differences of one output


@dataclass(frozen=True)
class Result:
    """An output of the fresh run, compared with dvc.lock.

    state: same, differs, missing (not made), extra (made, but not in dvc.lock), or the message that Git or the cache holds other
    bytes than dvc.lock.
    """

    path: str
    sha256: str
    beside: str  # compared with the bytes in Git or in the cache, or with the MD5 in dvc.lock alone
    state: str
    found: Path
    reference: Path | None  # the expected bytes, if at hand


def compare(locked: dict[str, str], folder: Path, committed: Path, cache: Path) -> list[Result]:
    """Compares each output in `folder` with its MD5 in dvc.lock, and with the expected bytes where they are at hand.

    locked: path and MD5 of each output. A folder's MD5 is that of its listing and ends in .dir; its files are compared singly.
    committed: a folder with the outputs in Git. cache: a DVC cache.
    """
    return [
        result
        for path, md5 in locked.items()
        for result in (of_folder if md5.endswith(".dir") else of_file)(folder, path, md5, committed, cache)
    ]


def of_file(folder: Path, path: str, md5: str, committed: Path, cache: Path) -> list[Result]:
    cached = cache / "files" / "md5" / md5[:2] / md5[2:]
    beside, reference = next(
        ((name, file) for name, file in (("Git", committed / path), ("cache", cached)) if file.is_file()), ("dvc.lock", None)
    )
    found = folder / path
    if not found.is_file():
        return [Result(path, "", beside, "missing", found, reference)]
    sha256 = digest(found, "sha256")
    if digest(found, "md5") != md5:
        state = "differs"
    elif reference and digest(reference, "sha256") != sha256:
        state = f"{'Git' if beside == 'Git' else 'the cache'} holds other bytes than dvc.lock"
    else:
        state = "same"
    return [Result(path, sha256, beside, state, found, reference)]


def of_folder(folder: Path, path: str, md5: str, committed: Path, cache: Path) -> list[Result]:
    """Compares file by file if the listing in dvc.lock is in the cache or equals the new folder's; else the whole folder."""
    found = folder / path
    here = listing(found)
    expected = cached_listing(cache, md5) or (here if listing_md5(here) == md5 else None)
    if expected is None:
        return [Result(path, hashlib.sha256(json.dumps(here).encode()).hexdigest(), "dvc.lock", "differs", found, None)]
    results = [
        result for name, file_md5 in expected.items() for result in of_file(folder, f"{path}/{name}", file_md5, committed, cache)
    ]
    extra = [name for name in here if name not in expected]
    return results + [Result(f"{path}/{name}", digest(found / name, "sha256"), "", "extra", found / name, None) for name in extra]


def listing(folder: Path) -> dict[str, str]:
    """Relative path and MD5 of every file in a folder, in DVC's order."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: digest(files[name], "md5") for name in sorted(files)}


def listing_md5(files: dict[str, str]) -> str:
    """The MD5 that DVC gives to a folder: that of its listing as JSON."""
    entries = [{"md5": md5, "relpath": name} for name, md5 in files.items()]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def cached_listing(cache: Path, md5: str) -> dict[str, str] | None:
    file = cache / "files" / "md5" / md5[:2] / md5[2:]
    if not file.is_file() or digest(file, "md5") != md5.removesuffix(".dir"):
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(file.read_bytes())}


def digest(file: Path, algorithm: str) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


# ---- Size of a difference -------------------------------------------------------------------------------------------


def difference_lines(results: list[Result], unreferenced: Callable[[Result], str | None] = lambda result: None) -> Iterator[str]:
    """Describes each output that differs, with the size of the difference.

    unreferenced: what can be said about an output whose expected bytes are not at hand.
    """
    for result in results:
        if result.state == "differs":
            yield f"\n{result.path} differs:"
            if result.reference is None and (line := unreferenced(result)):
                yield f"  {line}"
            elif result.reference is None:
                yield "  its size is unknown: the expected bytes are neither in Git nor in the DVC cache (dvc pull, if shared)"
            else:
                yield from (f"  {line}" for line in differences(result.reference, result.found, Path(result.path).suffix))


def differences(reference: Path, found: Path, kind: str) -> list[str]:
    """One line for each value, series, tensor or field that differs, the largest difference first. kind: the file's suffix."""
    try:
        one, other = read_series(reference, kind), read_series(found, kind)
    except (ValueError, KeyError, OSError):  # damaged, or not the type that its suffix names
        one, other = of_bytes(reference), of_bytes(found)
    lines = [difference(name, one.get(name), other.get(name)) for name in {**one, **other}]
    apart = sorted(filter(None, lines), key=lambda line: -line[0])
    rest = [f"and {len(apart) - MOST_LISTED} more"] if len(apart) > MOST_LISTED else []
    return [text for _, text in apart[:MOST_LISTED]] + rest or ["the same values, written differently"]


def difference(name: str, expected: np.ndarray | None, found: np.ndarray | None) -> tuple[float, str] | None:
    """A series' largest difference, relative to the largest expected value, and a line about it; None if the series are equal."""
    if expected is None or found is None:
        return np.inf, f"{name}: {'not expected' if expected is None else 'is missing'}"
    if expected.shape != found.shape:
        return np.inf, f"{name}: {shape(found)} values, expected {shape(expected)}"
    if expected.dtype.kind != "f" or found.dtype.kind != "f":
        unequal = np.array([str(a) != str(b) for a, b in zip(expected.flat, found.flat, strict=True)])
        return (unequal.mean(), unequal_line(name, expected, found, unequal)) if unequal.any() else None
    unequal = (expected != found) & ~(np.isnan(expected) & np.isnan(found))
    if not unequal.any():
        return None
    largest = np.abs(expected - found)[unequal].max()
    scale = np.nanmax(np.abs(expected), initial=0)
    relative = largest / scale if scale else np.inf
    line = f"{largest:.2g} apart, relative {relative:.2g}"
    if unequal.size == 1:
        return relative, f"{name}: {found.item()}, not {expected.item()}: {line}"
    return relative, f"{name}: up to {line}; {unequal.sum():,} of {unequal.size:,} values differ"


def unequal_line(name: str, expected: np.ndarray, found: np.ndarray, unequal: np.ndarray) -> str:
    if unequal.size == 1:
        return f"{name}: {found.item()}, not {expected.item()}"
    return f"{name}: {unequal.sum():,} of {unequal.size:,} differ"


def shape(values: np.ndarray) -> str:
    return "×".join(map(str, values.shape))


def read_series(file: Path, kind: str) -> dict[str, np.ndarray]:
    """The content as named series: float arrays for numbers, object arrays for other values."""
    readers = {".json": of_json, ".csv": of_csv, ".safetensors": of_tensors, ".jsonl": of_rows}
    return readers.get(kind, of_lines)(file)


def of_json(file: Path) -> dict[str, np.ndarray]:
    """Each value under its dotted name."""
    return {name: as_array([value]) for name, value in flat(json.loads(file.read_bytes()))}


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield name, value
    else:
        for key, item in items:
            yield from flat(item, f"{name}.{key}" if name else str(key))


def of_csv(file: Path) -> dict[str, np.ndarray]:
    """One series per numeric column and combination of text columns, for example `value of training`."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows:
        return of_lines(file)
    measures = [column for column in rows[0] if all(is_number(row[column]) for row in rows)]
    columns: dict[str, list[float]] = {}
    for row in rows:
        labels = ", ".join(value for column, value in row.items() if column not in measures)
        for column in measures:
            columns.setdefault(f"{column} of {labels}" if labels else column, []).append(float(row[column]))
    return {name: as_array(values) for name, values in columns.items()}


def is_number(text: str | None) -> bool:
    return bool(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|nan|[-+]?inf", text or "", re.IGNORECASE))


def of_tensors(file: Path) -> dict[str, np.ndarray]:
    """Each tensor, in double precision."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.double().numpy() for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise ValueError(error) from error


def of_rows(file: Path) -> dict[str, np.ndarray]:
    """Each field over all rows of a JSON-lines file, as text."""
    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    fields = dict.fromkeys(field for row in rows for field in row)
    return {field: as_array([json.dumps(row.get(field)) for row in rows]) for field in fields}


def of_lines(file: Path) -> dict[str, np.ndarray]:
    return {"lines": as_array(file.read_text(encoding="utf-8").splitlines())}


def of_bytes(file: Path) -> dict[str, np.ndarray]:
    return {"bytes": np.frombuffer(file.read_bytes(), dtype=np.uint8)}


def as_array(values: list[Any]) -> np.ndarray:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return np.array(values, dtype=float if numbers else object)
