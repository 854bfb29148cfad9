"""Writes the tables of README.md and docs/results.md from the last run, five sample answers, and two plots as SVG.

reads   plots/*.csv, reports/score.json, data/generated/*.jsonl, data/prepared/references.jsonl, docs/seeds.csv, .dvc/plots
writes  README.md and docs/results.md (between their markers), docs/images/*.svg
command python tools/render_readme.py          after dvc repro
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results.md"
REPORT = ROOT / "reports" / "score.json"
IMAGES = ROOT / "docs" / "images"
MODELS = ("base", "sft", "dpo")
PAIRS = (("sft", "base"), ("dpo", "sft"), ("dpo", "base"))
IN_SEEDS = ("dpo_vs_sft", "dpo_vs_sft_equal_length")
PICTURES = {"hit_rate": "plots/hit_rate.csv", "dpo_rewards": "plots/dpo_rewards.csv"}


def main() -> None:
    if not REPORT.is_file():
        raise SystemExit("render_readme: reports/score.json is missing. Run: dvc repro")
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    table = results(report)
    fill(README, results=table)
    fill(RESULTS, results=table, lengths=lengths(report), answers=answers(), seeds=seeds())
    pictures()


def fill(path: Path, **contents: str) -> None:
    """Replaces the text between the markers of each name in a Markdown file."""
    text = path.read_text(encoding="utf-8")
    for name, content in contents.items():
        text = between(name, content, text)
    path.write_text(text, encoding="utf-8", newline="\n")


def between(name: str, content: str, text: str) -> str:
    """The text with `content` between the two markers of `name`; ValueError if they do not occur exactly once."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    text, count = pattern.subn(lambda found: found[1] + content + found[2], text)
    if count != 1:
        raise ValueError(f"the markers of {name} occur {count} times, not once")
    return text


def results(report: dict[str, Any]) -> str:
    """The result table: hit rates with their intervals by kind of prompt, precision, repetition, density, and the verdicts."""
    rates = read_csv(ROOT / "plots" / "hit_rate.csv")
    counts = {row["group"]: row["prompts"] for row in rates}
    titles = ["model", *(f"{group} (n = {count})" for group, count in counts.items())]
    titles += ["precision", "says a sentence twice", "ideas per 100 words", "words"]
    rows = [
        [model, *(_rate(row) for row in rates if row["model"] == model), *_quality(report["models"][model])] for model in MODELS
    ]
    pairs = {" over ".join(pair): report["pairs"]["_vs_".join(pair)] for pair in PAIRS}
    whole = "; ".join(_claim(name, pair) for name, pair in pairs.items())
    level = "; ".join(_claim(name, pair["equal_length"]) for name, pair in pairs.items())
    return f"{markdown_table(titles, rows)}\nMean difference in hit rate: {whole}.\nAt equal length: {level}.\n"


def _rate(row: dict[str, str]) -> str:
    return f"{float(row['hit_rate']):.2f} ({float(row['low']):.2f} to {float(row['high']):.2f})"


def _quality(model: dict[str, Any]) -> list[str]:
    precision = model["precision"]["estimate"]
    return [
        "undefined" if precision is None else f"{precision:.2f}",
        f"{model['health']['repeats']['estimate']:.2f}",
        f"{model['hits_per_100_words']['estimate']:.1f}",
        f"{model['lengths']['words']['mean']:.0f}",
    ]


def _claim(title: str, claim: dict[str, Any]) -> str:
    """For example dpo over sft +0.067 (0.030 to 0.105; better, p = 0.0005)."""
    difference = claim["mean_difference"]
    interval = f"{difference['low']:.3f} to {difference['high']:.3f}"
    return f"{title} {difference['estimate']:+.3f} ({interval}; {claim['decision']['verdict']}, {_p(claim['p_holm'])})"


def _p(p: float) -> str:
    return "p below 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def lengths(report: dict[str, Any]) -> str:
    """Each pair's mean difference of hit rates at similar and at equal length, with its interval and unadjusted p."""
    titles = ["mean difference of hit rates", "at similar length", "at equal length"]
    rows = []
    for pair in PAIRS:
        compared = report["pairs"]["_vs_".join(pair)]
        rows.append([" over ".join(pair), *(_difference(compared[how]) for how in ("similar_length", "equal_length"))])
    return markdown_table(titles, rows)


def _difference(matched: dict[str, Any]) -> str:
    """For example 0.019 (-0.010 to 0.048; n = 96, p = 0.2200); parts that are undefined are omitted."""
    difference = matched["mean_difference"]
    if difference["estimate"] is None:
        return f"undefined (n = {matched['n']})"
    interval = "no interval" if difference["low"] is None else f"{difference['low']:.3f} to {difference['high']:.3f}"
    return f"{difference['estimate']:.3f} ({interval}; n = {matched['n']}, {_p(matched['p'])})"


def seeds() -> str:
    """The table of five seeds from docs/seeds.csv, with mean and standard deviation."""
    runs = read_csv(ROOT / "docs" / "seeds.csv")
    titles = ["seed", *MODELS, "dpo over sft", "adjusted p", "verdict", "at equal length", "adjusted p", "verdict"]
    titles += ["precision of dpo", "dpo says a sentence twice"]
    rows = []
    for run in runs:
        cells = [run["seed"], *(f"{float(run[f'{model}_hit_rate']):.3f}" for model in MODELS)]
        for claim in IN_SEEDS:
            difference, low, high = (float(run[f"{claim}_{name}"]) for name in ("difference", "low", "high"))
            cells.append(f"{difference:.3f} ({low:.3f} to {high:.3f})")
            cells += [f"{float(run[f'{claim}_p_adjusted']):.4f}", run[f"{claim}_verdict"]]
        rows.append([*cells, f"{float(run['dpo_precision']):.3f}", f"{float(run['dpo_repeats']):.3f}"])
    columns = [*(f"{model}_hit_rate" for model in MODELS), *(f"{claim}_difference" for claim in IN_SEEDS)]
    columns += ["dpo_precision", "dpo_repeats"]
    base, sft, dpo, whole, level, *others = (_mean_and_deviation([float(run[column]) for run in runs]) for column in columns)
    return markdown_table(titles, [*rows, ["mean (sd)", base, sft, dpo, whole, "", "", level, "", "", *others]])


def _mean_and_deviation(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({statistics.stdev(values):.3f})"


def answers(count: int = 5) -> str:
    """The answers to the prompts whose IDs have the smallest SHA-256, so nobody can select them by hand."""
    references = read_jsonl(ROOT / "data/prepared/references.jsonl")
    by_model = {
        model: {row["id"]: row["answer"] for row in read_jsonl(ROOT / f"data/generated/{model}.jsonl")} for model in MODELS
    }
    picked = sorted(references, key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())[:count]
    parts = []
    for row in picked:
        parts.append(f"**{row['prompt']}** ({row['kind'].replace('_', ' ')})")
        parts += [f"- *{model}*: {by_model[model][row['id']]}" for model in MODELS]
        parts.append("")
    return "\n".join(parts)


def pictures() -> None:
    """Writes two of the plots as SVG, drawn by tools/plots.py."""
    import plots

    drawn = plots.specifications()
    for name, plot in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(plots.svg(drawn[plot]), encoding="utf-8", newline="\n")


# ---- Files and tables ------------------------------------------------------------------------------------------------


def markdown_table(titles: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |\n" for cells in (titles, *rows)]
    return "".join([lines[0], "|---" * len(titles) + "|\n", *lines[1:]])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
