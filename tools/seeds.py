"""Collects the runs of several seeds in docs/seeds.csv; tools/render_readme.py makes a table of docs/results.md from it.

reads   the last run, and the newest experiment of each name seed-N (reports from the DVC cache)
writes  docs/seeds.csv
command make seeds          (queues and runs the experiments, then runs this and tools/render_readme.py)
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "seeds.csv"
MODELS = ("base", "sft", "dpo")
PAIRS = ("sft_vs_base", "dpo_vs_sft")


def main(seeds: list[int]) -> None:
    from ruamel.yaml import YAML

    default = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))["seed"]
    rows = [run_row(default, lambda path: (ROOT / path).read_text(encoding="utf-8"))]
    rows += [run_row(seed, experiment(f"seed-{seed}")) for seed in seeds if seed != default]
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def experiment(name: str) -> Callable[[str], str]:
    """A function that reads files of the newest experiment with this name."""
    import dvc.api

    revision = git("for-each-ref", "--count=1", "--sort=-committerdate", "--format=%(objectname)", f"refs/exps/*/*/{name}")
    if not revision:
        raise SystemExit(f"no experiment is named {name}. Run: make seeds")
    return lambda path: dvc.api.read(path, repo=str(ROOT), rev=revision)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def run_row(seed: int, read: Callable[[str], str]) -> dict[str, float | int | str]:
    """The figures of one run, rounded to four digits; `read` returns the text of one of its files."""
    score, dpo = (json.loads(read(f"reports/{stage}.json")) for stage in ("score", "dpo"))
    models = score["models"]
    row: dict[str, float | int | str] = {"seed": seed}
    row |= {f"{model}_hit_rate": round(models[model]["hit_rate"]["estimate"], 4) for model in MODELS}
    for name in PAIRS:
        row |= claim_columns(name, score["pairs"][name])
        row |= claim_columns(f"{name}_equal_length", score["pairs"][name]["equal_length"])
    row["ordered"] = " ".join(ordered_groups(read("plots/hit_rate.csv")))
    row |= {f"{model}_precision": round(models[model]["precision"]["estimate"], 4) for model in MODELS}
    for sign in ("degenerate", "repeats"):
        row |= {f"{model}_{sign}": round(models[model]["health"][sign]["estimate"], 4) for model in MODELS[1:]}
    return row | {"dpo_reward_accuracy": dpo["dpo"]["reward_accuracy"]}


def claim_columns(name: str, claim: dict) -> dict[str, float | str]:
    """A claim's mean difference with its interval, adjusted p and verdict."""
    difference = claim["mean_difference"]
    row: dict[str, float | str] = {f"{name}_difference": round(difference["estimate"], 4)}
    row |= {f"{name}_{bound}": round(difference[bound], 4) for bound in ("low", "high")}
    return row | {f"{name}_p_adjusted": round(claim["p_holm"], 4), f"{name}_verdict": claim["decision"]["verdict"]}


def ordered_groups(hit_rates: str) -> list[str]:
    """The groups of prompts with hit rates base < sft < dpo."""
    groups: dict[str, dict[str, float]] = {}
    for line in csv.DictReader(io.StringIO(hit_rates)):
        groups.setdefault(line["group"], {})[line["model"]] = float(line["hit_rate"])
    return [group.replace(" ", "_") for group, rate in groups.items() if rate["base"] < rate["sft"] < rate["dpo"]]


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]])
