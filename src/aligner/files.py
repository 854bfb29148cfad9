"""Reads and writes JSON, JSON lines and CSV, with the same bytes on every machine. Of several processes, rank 0 writes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aligner.run import ranks
from aligner.run.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with keys in the given order. ValueError for NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_figures(figures: dict[str, dict[str, Any]], report: Path, metrics: Path, headline: dict[str, tuple[str, ...]]) -> None:
    """Writes all figures of a stage to `report`, and the headline ones to `metrics`, which `dvc metrics diff` compares."""
    write_json(report, figures)
    write_json(metrics, {section: {name: figures[section][name] for name in names} for section, names in headline.items()})


def read_json(path: Path) -> Any:
    return json.loads(_existing(path).read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Writes one JSON object per line. ValueError for NaN and infinities."""
    if not ranks.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> Iterator[dict]:
    """Yields the rows of a file that a stage wrote (files that people wrote go through aligner.data)."""
    with _existing(path).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def write_text(path: Path, text: str) -> None:
    if not ranks.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: Path, columns: list[str], rows: Iterable[Iterable]) -> None:
    """Writes a table for a plot: floats to six significant digits, None as an empty cell. ValueError for NaN and infinities."""
    if not ranks.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise ValueError(f"a plot cannot show {value}")
    return float(f"{value:.6g}")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} is missing; an earlier stage writes it. Run: dvc repro (or, if it was shared: dvc pull)")
    return path
