"""The league: the report of score for any number of models, with their KL divergences and comparisons at equal length.

One family of tests covers all pairs of models, over whole answers and at equal length, where the longer answer of a pair is cut
to the number of words of the shorter one. p-values are adjusted by Holm over all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from aligner.run.params import Score
from aligner.scoring.estimates import Estimate, undefined
from aligner.scoring.models import Answers
from aligner.scoring.pairs import Pair, pair_name
from aligner.scoring.report import scoring_report

REFERENCE = "sft"  # differences at equal length and KL divergences are taken from it
KL = "kl_per_answer_sampled"


def all_pairs(models: Sequence[str]) -> list[Pair]:
    """Every pair of models, the later of the list first: ("sft", "base"), ("dpo", "base"), ("dpo", "sft"), …"""
    return [(later, earlier) for earlier, later in itertools.combinations(models, 2)]


def league_report(
    answers: Answers, references: Sequence[dict[str, Any]], reports: Mapping[str, Mapping[str, Any]], rules: Score
) -> dict[str, Any]:
    """The report of `scoring_report` over all pairs; each model also has `kl`, and `at_equal_length` against the reference.

    reports: the figures of reports/<model>.json, for the models that have them.
    """
    report = scoring_report(answers, references, all_pairs(list(answers)), rules)
    for name, model in report["models"].items():
        model["kl"] = kl_from_reference(name, reports)
        model["at_equal_length"] = at_equal_length(name, report["pairs"])
    return report


def kl_from_reference(name: str, reports: Mapping[str, Mapping[str, Any]]) -> Estimate:
    """KL(model || reference) in nats per answer that the model samples, as its own stage measured it."""
    if name == REFERENCE:
        return {"estimate": 0.0, "low": None, "high": None, "method": "the reference itself"}
    figures = reports.get(name, {})
    if figures.get(KL) is None:
        return undefined("the model's report has no KL divergence" if figures else "no stage measured it")
    return {
        "estimate": figures[KL],
        "low": figures.get(f"{KL}_low"),
        "high": figures.get(f"{KL}_high"),
        "method": f"reports/{name}.json",
    }


def at_equal_length(name: str, pairs: Mapping[str, Any]) -> dict[str, Any]:
    """The mean difference of hit rates to the reference, the longer answer cut, and its p adjusted over all pairs."""
    for first, second, sign in ((name, REFERENCE, 1), (REFERENCE, name, -1)):
        if (key := pair_name((first, second))) in pairs:
            compared = pairs[key]["equal_length"]
            return {**signed(compared["mean_difference"], sign), "p_holm": compared["p_holm"]}
    return undefined("there is no other model to compare with")


def signed(estimate: Estimate, sign: int) -> Estimate:
    """The estimate of a difference, or with sign -1 of the opposite difference."""
    if sign == 1 or estimate["estimate"] is None:
        return dict(estimate)
    low, high = (None if estimate[end] is None else -estimate[end] for end in ("high", "low"))
    return {**estimate, "estimate": -estimate["estimate"], "low": low, "high": high}


def part_of(report: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """The same report for some of its models and the pairs among them; p-values stay adjusted over all pairs."""
    pairs = [pair_name(pair) for pair in all_pairs(models)]
    groups = {
        part: {
            group: {
                "models": {name: found["models"][name] for name in models},
                "pairs": {name: found["pairs"][name] for name in pairs},
            }
            for group, found in report["exploratory"][part].items()
        }
        for part in ("kinds", "topics")
    }
    return {
        **report,
        "models": {name: report["models"][name] for name in models},
        "pairs": {name: report["pairs"][name] for name in pairs},
        "exploratory": {**report["exploratory"], **groups},
    }
