"""Gathers the runs of several seeds into docs/seeds.csv, from which tools/render_readme.py makes README's table.

reads   the last run, and the newest experiments of the names seed-N
writes  docs/seeds.csv
command make seeds                      (queues the experiments, runs them, then this and tools/render_readme.py)
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
    rows = [row(default, lambda path: (ROOT / path).read_text(encoding="utf-8"))]
    rows += [row(seed, experiment(f"seed-{seed}")) for seed in seeds if seed != default]
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def experiment(name: str) -> Callable[[str], str]:
    """A reader of the files of the newest experiment of that name."""
    import dvc.api

    revision = git("for-each-ref", "--count=1", "--sort=-committerdate", "--format=%(objectname)", f"refs/exps/*/*/{name}")
    if not revision:
        raise SystemExit(f"no experiment {name} was run; run: make seeds")
    return lambda path: dvc.api.read(path, repo=str(ROOT), rev=revision)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def row(seed: int, read: Callable[[str], str]) -> dict[str, float | int | str]:
    """What the table shows of one run."""
    score, report, dpo = (json.loads(read(path)) for path in ("metrics/score.json", "reports/score.json", "metrics/dpo.json"))
    found: dict[str, float | int | str] = {"seed": seed}
    found |= {f"{model}_hit_rate": score[model]["hit_rate"] for model in MODELS}
    for pair in PAIRS:
        gap = report["pairs"][pair]["mean_difference"]
        found |= {f"{pair}_difference": round(gap["estimate"], 4)}
        found |= {f"{pair}_{bound}": round(gap[bound], 4) for bound in ("low", "high")}
        found |= {f"{pair}_p_adjusted": score[pair]["p_adjusted"], f"{pair}_verdict": score[pair]["verdict"]}
    found["ordered"] = " ".join(ordered_groups(read("plots/hit_rate.csv")))
    found |= {f"{model}_precision": score[model]["precision"] for model in MODELS}
    found |= {f"{model}_degenerate": score[model]["degenerate"] for model in MODELS[1:]}
    return found | {"dpo_reward_accuracy": dpo["dpo"]["reward_accuracy"]}


def ordered_groups(hit_rates: str) -> list[str]:
    """The groups of prompts on which base < sft < dpo holds."""
    groups: dict[str, dict[str, float]] = {}
    for line in csv.DictReader(io.StringIO(hit_rates)):
        groups.setdefault(line["group"], {})[line["model"]] = float(line["hit_rate"])
    return [group.replace(" ", "_") for group, rate in groups.items() if rate["base"] < rate["sft"] < rate["dpo"]]


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]])
