"""The league as Markdown: a row for each model, and a row for each pair of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.markdown import figure, interval, markdown, p_value, table, with_interval
from aligner.scoring.league import REFERENCE

INTRODUCTION = """\
{prompts} prompts, the same for all models; ranges are 95% intervals. Precision: the share of all ideas named that belong to the
concept asked about. Repeats: the share of answers that say a sentence twice. KL: the divergence from {reference} in nats per
answer that the model samples. At equal length: the difference of hit rates from {reference}, the longer answer cut to the words
of the shorter one."""
PAIRS = """\
All {pairs} pairs, over whole answers and at equal length. The p-values of these {tests} sign-flip permutation tests are adjusted
by Holm (alpha {alpha:g})."""


def league_page(report: Mapping[str, Any]) -> str:
    """reports/league.md, from the report of `league_report`."""
    parts = [
        "# League of models",
        INTRODUCTION.format(prompts=report["prompts"], reference=REFERENCE),
        model_table(report["models"]),
        "## Which differences are real",
        PAIRS.format(pairs=len(report["pairs"]), tests=2 * len(report["pairs"]), alpha=report["settings"]["alpha"]),
        pair_table(report["pairs"]),
    ]
    return "\n\n".join(parts) + "\n"


def model_table(models: Mapping[str, Any]) -> str:
    """One row per model, the highest hit rate first."""
    order = sorted(models, key=lambda name: -models[name]["hit_rate"]["estimate"])
    columns = ["model", "hit rate", "at equal length", "precision", "repeats", "words", "ended by itself", "KL"]
    return table(columns, [[markdown(name), *model_cells(models[name])] for name in order])


def model_cells(model: Mapping[str, Any]) -> list[str]:
    level, health = model["at_equal_length"], model["health"]
    equal = "" if level["estimate"] is None else f"{level['estimate']:+.3f} ({interval(level)}; p {p_value(level['p_holm'])})"
    return [
        with_interval(model["hit_rate"]),
        equal,
        with_interval(model["precision"]),
        figure(health["repeats"]["estimate"]),
        f"{model['lengths']['words']['mean']:.0f}",
        figure(1 - health["truncated"]["estimate"]),
        "" if model["kl"]["estimate"] is None else with_interval(model["kl"]),
    ]


def pair_table(pairs: Mapping[str, Any]) -> str:
    columns = ["comparison", "difference", "p", "verdict", "win rate", "at equal length", "p", "verdict"]
    return table(columns, [[name.replace("_vs_", " over "), *pair_cells(found)] for name, found in pairs.items()])


def pair_cells(found: Mapping[str, Any]) -> list[str]:
    level = found["equal_length"]
    return [
        with_interval(found["mean_difference"]),
        p_value(found["p_holm"]),
        found["decision"]["verdict"],
        with_interval(found["win_rate"]),
        with_interval(level["mean_difference"]),
        p_value(level["p_holm"]),
        level["decision"]["verdict"],
    ]
