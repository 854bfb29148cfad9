"""Adds the last league to docs/methods*.csv, and writes the tables over all seeds into docs/methods.md.

reads   reports/{league,reward,best_of_n}.json and the seed of the last run; run records in experiments/
writes  docs/methods.csv (one row per seed and model) and docs/methods_pairs.csv (one per seed and pair of models), in which the
        rows of this seed are replaced; docs/methods.md between its markers
command python tools/methods.py        (after each: dvc exp run -S seed=18 pipelines/dvc.yaml)

Seconds and peak memory are those of the newest completed run of each model's own training stage on this machine.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean
from typing import Any

from render_readme import fill

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "methods.csv"
PAIRS = ROOT / "docs" / "methods_pairs.csv"
PAGE = ROOT / "docs" / "methods.md"
REPORT = "reports/league.json"
REFERENCE = "sft"
WORDS = ("model", "comparison", "verdict", "verdict_at_equal_length")

Rows = list[dict[str, Any]]


def main() -> None:
    from ruamel.yaml import YAML

    seed = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))["seed"]
    report = json.loads((ROOT / REPORT).read_text(encoding="utf-8"))
    spent = costs(ROOT / "experiments")
    models = replaced(TABLE, seed, [row | cost_of(row["model"], spent) for row in rows_of(seed, report)])
    pairs = replaced(PAIRS, seed, pair_rows(seed, report))
    fill(PAGE, league=models_table(models), pairs=pairs_table(pairs), reward=reward_line(), best_of_n=best_of_n_table())


def replaced(path: Path, seed: int, rows: Rows) -> Rows:
    """Writes the rows of all seeds, those of `seed` replaced, and returns them; floats have four digits."""
    kept = [row for row in rows_in(path) if row["seed"] != seed]
    shown = [{key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    whole = sorted([*kept, *shown], key=lambda row: row["seed"])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, whole[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(whole)
    return whole


def rows_in(path: Path) -> Rows:
    """The rows of earlier runs; no row if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: value if key in WORDS else number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def number(text: str) -> float | None:
    if not text:
        return None
    return float(text) if "." in text or "e" in text else int(text)


# ---- The rows of one league -----------------------------------------------------------------------------------------


def rows_of(seed: int, report: dict[str, Any]) -> Rows:
    """One row per model; the verdicts are those against sft, over whole answers and at equal length."""
    rows = []
    for name, model in report["models"].items():
        level, pair = model["at_equal_length"], report["pairs"].get(f"{name}_vs_{REFERENCE}", {})
        verdicts = {"verdict": pair, "verdict_at_equal_length": pair.get("equal_length", {})}
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
        rows.append(row | {key: each["decision"]["verdict"] if each else None for key, each in verdicts.items()})
    return rows


def pair_rows(seed: int, report: dict[str, Any]) -> Rows:
    """One row per pair of models: differences of hit rates, whole and at equal length, their p-values after Holm, verdicts."""
    rows = []
    for name, pair in report["pairs"].items():
        row: dict[str, Any] = {"seed": seed, "comparison": name.replace("_vs_", " over ")}
        for each, suffix in ((pair, ""), (pair["equal_length"], "_at_equal_length")):
            row |= {
                f"difference{suffix}": each["mean_difference"]["estimate"],
                f"p{suffix}": each["p_holm"],
                f"verdict{suffix}": each["decision"]["verdict"],
            }
        rows.append(row)
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


def cost_of(model: str, spent: dict[str, tuple[float, int | None]]) -> dict[str, Any]:
    seconds, memory = spent.get(model, (None, None))
    return {"seconds": None if seconds is None else round(seconds), "memory_mb": memory}


# ---- The tables -----------------------------------------------------------------------------------------------------


def models_table(rows: Rows) -> str:
    """Means over seeds, the highest hit rate first, with its range; "better" counts the seeds with this verdict."""
    lines = table(
        *("model", "seeds", "hit rate (seeds)", "better than sft", "at equal length", "better at equal length"),
        *("precision", "repeats", "words", "KL", "seconds", "memory (MiB)"),
    )
    for name, each in sorted(grouped(rows, "model").items(), key=lambda item: -mean(row["hit_rate"] for row in item[1])):
        rates = [row["hit_rate"] for row in each]
        better = [f"{sum(row[key] == 'better' for row in each)} of {len(each)}" for key in ("verdict", "verdict_at_equal_length")]
        shown = [name, str(len(each)), f"{mean(rates):.3f} ({min(rates):.3f} to {max(rates):.3f})"]
        shown += [better[0], averaged(each, "at_equal_length", "+.3f"), better[1]] if name != REFERENCE else ["", "", ""]
        shown += [averaged(each, key, form) for key, form in (("precision", ".3f"), ("repeats", ".2f"), ("words", ".0f"))]
        shown += [averaged(each, "kl", ".1f"), averaged(each, "seconds", ".0f"), averaged(each, "memory_mb", ".0f")]
        lines.append(line(shown))
    return "\n".join(lines) + "\n"


def pairs_table(rows: Rows) -> str:
    """The pairs with a difference that survives Holm on any seed: the mean difference, and on how many seeds it is real."""
    lines = table("comparison", "difference", "seeds with a verdict", "at equal length", "seeds with a verdict")
    for name, each in grouped(rows, "comparison").items():
        decided = [verdicts(each, key) for key in ("verdict", "verdict_at_equal_length")]
        if any(decided):
            means = [averaged(each, key, "+.3f") for key in ("difference", "difference_at_equal_length")]
            lines.append(line([name, means[0], decided[0] or "none", means[1], decided[1] or "none"]))
    return "\n".join(lines) + "\n"


def verdicts(rows: Rows, key: str) -> str:
    """Such as "better on 3 of 3"; empty if no seed says better or worse."""
    counts = {word: sum(row[key] == word for row in rows) for word in ("better", "worse")}
    return ", ".join(f"{word} on {count} of {len(rows)}" for word, count in counts.items() if count)


def reward_line() -> str:
    """The reward model of the last run in one sentence."""
    figures = json.loads((ROOT / "reports/reward.json").read_text(encoding="utf-8"))["reward"]

    def rate(name: str) -> str:
        low, high = figures[f"{name}_low"], figures[f"{name}_high"]
        return "undefined" if figures[name] is None else f"{figures[name]:.3f} ({low:.3f} to {high:.3f})"

    return (
        f"Last run: accuracy {rate('accuracy')} on {figures['validation_pairs']} held-out pairs,\n"
        f"{rate('equal_length_accuracy')} on {figures['equal_length_pairs']} pairs of equal length; "
        f'"longer is better" {figures["longer_is_chosen"]:.3f}; Brier score {figures["brier"]:.3f},\n'
        f"expected calibration error {figures['calibration_error']:.3f}.\n"
    )


def best_of_n_table() -> str:
    """The curve of the last run."""
    curve = json.loads((ROOT / "reports/best_of_n.json").read_text(encoding="utf-8"))["best_of_n"]["curve"]
    lines = table("n", "reward", "hit rate", "hit rate of a perfect choice", "precision", "words", "KL")
    for entry in curve:
        names = ("reward", "hit_rate", "oracle_hit_rate", "precision", "words")
        values = {name: entry[name]["estimate"] for name in names}
        forms = {name: ".0f" if name == "words" else ".3f" for name in names}
        shown = ["" if value is None else f"{value:{forms[name]}}" for name, value in values.items()]
        lines.append(line([str(entry["n"]), *shown, f"{entry['kl']:.2f}"]))
    return "\n".join(lines) + "\n"


def table(*names: str) -> list[str]:
    return [line(names), "|" + "---|" * len(names)]


def line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def grouped(rows: Rows, key: str) -> dict[str, Rows]:
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def averaged(rows: Rows, key: str, form: str) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    return f"{mean(values):{form}}" if values else ""


if __name__ == "__main__":
    main()
