"""Adds the last league to docs/methods.csv, and prints the means over its seeds with each model's cost as a Markdown table.

reads   reports/league.json and the seed of the last run; run records in experiments/
writes  docs/methods.csv: one row per seed and model; those of this seed are replaced
command python tools/methods.py        (after each: dvc exp run -S seed=18 pipelines/dvc.yaml)

Seconds and peak memory are those of the newest completed run of each model's own training stage on this machine.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "methods.csv"
REPORT = "reports/league.json"
REFERENCE = "sft"
WORDS = ("model", "verdict", "verdict_at_equal_length")


def main() -> None:
    from ruamel.yaml import YAML

    seed = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))["seed"]
    rows = [row for row in rows_in(TABLE) if row["seed"] != seed]
    rows += rows_of(seed, json.loads((ROOT / REPORT).read_text(encoding="utf-8")))
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(markdown_table(rows, costs(ROOT / "experiments")))


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of earlier runs; no row if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: value if key in WORDS else number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def number(text: str) -> float | None:
    return float(text) if text else None


def rows_of(seed: int, report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per model of a league, floats to four digits; the verdicts are those against sft, whole and at equal length."""
    rows = []
    for name, model in report["models"].items():
        level, pair = model["at_equal_length"], report["pairs"].get(f"{name}_vs_{REFERENCE}", {})
        row = {
            "seed": seed,
            "model": name,
            "hit_rate": model["hit_rate"]["estimate"],
            "low": model["hit_rate"]["low"],
            "high": model["hit_rate"]["high"],
            "at_equal_length": level["estimate"],
            "p_at_equal_length": level.get("p_holm"),
            "precision": model["precision"]["estimate"],
            "repeats": model["health"]["repeats"]["estimate"],
            "words": model["lengths"]["words"]["mean"],
            "kl": model["kl"]["estimate"],
        }
        rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        verdicts = {"verdict": pair, "verdict_at_equal_length": pair.get("equal_length", {})}
        rows.append(rounded | {key: each["decision"]["verdict"] if each else None for key, each in verdicts.items()})
    return rows


def costs(folder: Path) -> dict[str, tuple[float, int | None]]:
    """(seconds, peak memory in MiB) of the newest completed run of each stage, by its name."""
    found: dict[str, tuple[float, int | None]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem.rpartition("-")[2]):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["state"] == "completed":
            memory = record.get("peak_memory_mb", {})
            found[record["stage"]] = (record["seconds"]["total"], memory.get("gpu", memory.get("ram")))
    return found


def markdown_table(rows: list[dict[str, Any]], spent: dict[str, tuple[float, int | None]]) -> str:
    """Means over seeds, the highest hit rate first; "better in" counts the seeds with this verdict against sft."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    lines = [
        "| model | seeds | hit rate | at equal length | better in | better at equal length in | precision | repeats | words | KL "
        "| seconds | memory (MiB) |",
        "|" + "---|" * 12,
    ]
    for name, each in sorted(by_model.items(), key=lambda item: -mean(row["hit_rate"] for row in item[1])):
        counted = [str(sum(row[key] == "better" for row in each)) for key in ("verdict", "verdict_at_equal_length")]
        shown = [averaged(each, key, digits) for key, digits in (("hit_rate", 3), ("at_equal_length", 3))]
        shown += counted if name != REFERENCE else ["", ""]
        shown += [averaged(each, key, digits) for key, digits in (("precision", 3), ("repeats", 2), ("words", 0), ("kl", 1))]
        seconds, memory = spent.get(name, (None, None))
        shown += ["" if seconds is None else f"{seconds:.0f}", "" if memory is None else str(memory)]
        lines.append("| " + " | ".join([name, str(len(each)), *shown]) + " |")
    return "\n".join(lines)


def averaged(rows: list[dict[str, Any]], key: str, digits: int) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    return f"{mean(values):.{digits}f}" if values else ""


if __name__ == "__main__":
    main()
