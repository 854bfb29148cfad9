"""Writes what README.md shows of the last run: two tables of results, five answers picked by rule, and two plots as SVG.

reads   metrics/*.json, plots/*.csv, reports/score.json, data/generated/*.jsonl, data/prepared/references.jsonl, .dvc/plots
writes  README.md (between its markers), docs/images/*.svg
command python tools/render_readme.py          after dvc repro
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
MODELS = ("base", "sft", "dpo")
PAIRS = (("sft", "base"), ("dpo", "sft"), ("dpo", "base"))
SHOWN = ("sft_vs_base", "dpo_vs_sft")
PICTURES = {"hit_rate": "plots/hit_rate.csv", "dpo_rewards": "plots/dpo_rewards.csv"}


def main() -> None:
    text = README.read_text(encoding="utf-8")
    text = between("results", results(), text)
    text = between("lengths", lengths(), text)
    text = between("answers", answers(), text)
    text = between("seeds", seeds(), text)
    README.write_text(text, encoding="utf-8", newline="\n")
    pictures()


def between(name: str, content: str, text: str) -> str:
    """The text with what stands between the markers of `name` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    return pattern.sub(lambda found: found[1] + content + found[2], text)


def results() -> str:
    """The result table: hit rates with their intervals by kind of prompt, precision, and win rates."""
    with (ROOT / "plots" / "hit_rate.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    score = json.loads((ROOT / "metrics" / "score.json").read_text(encoding="utf-8"))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    counts = {row["group"]: row["prompts"] for row in rows}
    titles = ["model", *(f"{group} (n = {counts[group]})" for group in groups), "precision", "ended by itself", "tokens"]
    lines = [_line(titles), "|---" * len(titles) + "|"]
    for model in MODELS:
        cells = [_rate(row) for row in rows if row["model"] == model]
        precision, ended = score[model]["precision"], score[model]["ended_rate"]
        cells += ["undefined" if precision is None else f"{precision:.2f}", f"{ended:.2f}", f"{score[model]['tokens_mean']:.0f}"]
        lines.append(_line([model, *cells]))
    wins = "; ".join(_comparison(f"{first} over {second}", score[f"{first}_vs_{second}"]) for first, second in PAIRS)
    return "\n".join(lines) + f"\n\nWin rates, prompt by prompt, ties as half: {wins}.\n"


def lengths() -> str:
    """Each pair's mean difference of hit rates where length can play no part, with its interval and unadjusted p."""
    pairs = json.loads((ROOT / "reports" / "score.json").read_text(encoding="utf-8"))["pairs"]
    titles = ["mean difference of hit rates", "at similar length", "cut to the shorter answer's length"]
    lines = [_line(titles), "|---" * len(titles) + "|"]
    for first, second in PAIRS:
        matched = pairs[f"{first}_vs_{second}"]["length_matched"]
        lines.append(_line([f"{first} over {second}", *(_difference(matched[how]) for how in ("similar", "truncated"))]))
    return "\n".join(lines) + "\n"


def _difference(found: dict) -> str:
    """0.019 (-0.010 to 0.048; n = 96, p = 0.2200), or what of it there is."""
    gap = found["mean_difference"]
    if gap["estimate"] is None:
        return f"undefined (n = {found['n']})"
    shown = "no interval" if gap["low"] is None else f"{gap['low']:.3f} to {gap['high']:.3f}"
    return f"{gap['estimate']:.3f} ({shown}; n = {found['n']}, {_p(found['p'])})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _comparison(title: str, pair: dict) -> str:
    return f"{title} {pair['win_rate']:.2f} ({pair['verdict']}, {_p(pair['p_adjusted'])})"


def _p(p: float) -> str:
    return "p below 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def _rate(row: dict[str, str]) -> str:
    return f"{float(row['hit_rate']):.2f} ({float(row['low']):.2f} to {float(row['high']):.2f})"


def seeds() -> str:
    """The same run with five seeds, from docs/seeds.csv, with mean and standard deviation."""
    with (ROOT / "docs" / "seeds.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    titles = ["seed", *MODELS, "sft over base", "dpo over sft", "adjusted p", "verdict", "precision of dpo"]
    lines = [_line(titles), "|---" * len(titles) + "|"]
    for row in rows:
        cells = [row["seed"], *(f"{float(row[f'{model}_hit_rate']):.3f}" for model in MODELS)]
        for pair in SHOWN:
            gap, low, high = (float(row[f"{pair}_{name}"]) for name in ("difference", "low", "high"))
            cells.append(f"{gap:.3f} ({low:.3f} to {high:.3f})")
        cells += [f"{float(row['dpo_vs_sft_p_adjusted']):.4f}", row["dpo_vs_sft_verdict"], f"{float(row['dpo_precision']):.3f}"]
        lines.append(_line(cells))
    numbers = [*(f"{model}_hit_rate" for model in MODELS), *(f"{pair}_difference" for pair in SHOWN)]
    cells = [_mean_and_deviation([float(row[name]) for row in rows]) for name in numbers]
    lines.append(_line(["mean (sd)", *cells, "", "", _mean_and_deviation([float(row["dpo_precision"]) for row in rows])]))
    return "\n".join(lines) + "\n"


def _mean_and_deviation(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({statistics.stdev(values):.3f})"


def answers(count: int = 5) -> str:
    """The answers to the prompts whose ids have the smallest SHA-256: picked by that rule and not by hand."""
    references = _rows("data/prepared/references.jsonl")
    given = {model: {row["id"]: row["answer"] for row in _rows(f"data/generated/{model}.jsonl")} for model in MODELS}
    picked = sorted(references, key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())[:count]
    parts = []
    for row in picked:
        parts.append(f"**{row['prompt']}** ({row['kind'].replace('_', ' ')})")
        parts += [f"- *{model}*: {given[model][row['id']]}" for model in MODELS]
        parts.append("")
    return "\n".join(parts)


def _rows(path: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


def pictures() -> None:
    """Two of the plots as SVG, as tools/plots.py draws them all."""
    import plots

    drawn = plots.specifications()
    for name, plot in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(plots.svg(drawn[plot]), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
