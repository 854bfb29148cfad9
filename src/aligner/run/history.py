"""The run records in experiments/ as a table, and the differences of two of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner.run.errors import InputError

FOLDER = Path("experiments")
# The parameters and figures that tell most runs of a stage apart, by the last part of their names.
KEYS = ("beta", "learning_rate", "num_train_epochs", "sft_weight", "max_new_tokens")
FIGURES = ("validation_loss", "perplexity", "reward_accuracy", "hit_rate")
COLUMNS = ("id", "stage", "started (UTC)", "seconds", "seed", "parameters", "figures", "end")
IGNORED = ("started", "seconds", "command", "git.dirty")  # differ between any two runs, or follow from the rest


def read_all(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Every record by its name, oldest first; a file that is no record is left out."""
    found = {}
    for path in folder.glob("*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and {"stage", "started", "state"} <= set(record):
            found[path.stem] = record
    return dict(sorted(found.items(), key=lambda item: item[0].rpartition("-")[2]))


def find(records: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """The record of an id, or of its beginning; `sft` alone is the newest of the stage."""
    matching = [key for key in records if key == name] or [key for key in records if key.startswith(f"{name}-")][-1:]
    matching = matching or [key for key in records if key.startswith(name)]
    if len(matching) != 1:
        problem = f"{len(matching)} runs begin with {name!r}" if matching else f"no run is called {name!r}"
        raise InputError(f"{problem}. List them: python src/runs.py")
    return records[matching[0]]


def row(name: str, record: dict[str, Any]) -> list[str]:
    """One line of the table."""
    seconds = record.get("seconds", {}).get("total")
    return [
        *(name, record["stage"], record["started"][:19].replace("T", " ")),
        "" if seconds is None else f"{seconds:.0f}",
        str(record.get("seed", "")),
        shortest(record.get("params"), KEYS),
        shortest(record.get("metrics"), FIGURES),
        record["state"] + (f": {record['reason']}" if record.get("reason") else ""),
    ]


def shortest(values: Any, names: tuple[str, ...]) -> str:
    """The wanted values of a nested mapping, `name value`, the first of each name."""
    found: dict[str, Any] = {}
    for path, value in flat(values or {}):
        last = path.rpartition(".")[2]
        if last in names and value is not None:
            found.setdefault(last, value)
    return ", ".join(f"{name} {found[name]:g}" for name in names if isinstance(found.get(name), int | float))


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of each value in nested mappings."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[list[str]]:
    """(name, value of one, value of the other) for each value that differs."""
    first, second = dict(flat(one)), dict(flat(other))
    return [
        [name, str(first.get(name, "–")), str(second.get(name, "–"))]
        for name in {**first, **second}
        if first.get(name) != second.get(name) and not name.startswith(IGNORED)
    ]


def table(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Lines of aligned text; the last column is not padded."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)][:-1]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=True)), line[-1]]).rstrip()
        for line in [list(columns), *rows]
    ]
