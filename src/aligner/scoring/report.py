"""The report of the whole evaluation: all models, all pairs of models, the clean prompts and the exploratory part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aligner import intervals, statistics
from aligner.run.params import Score
from aligner.scoring.estimates import Estimate, differences, interval_estimate, rate_estimate
from aligner.scoring.models import Answers, describe, diversity_estimates, rates, signs
from aligner.scoring.pairs import Outcome, Pair, compare_models, comparison, cut_rates, pair_name, verdict


def scoring_report(answers: Answers, references: Sequence[dict[str, Any]], pairs: Sequence[Pair], rules: Score) -> dict[str, Any]:
    """The whole report, before rounding; a pair is named first_vs_second."""
    models = {name: describe(given, references) for name, given in answers.items()}
    for name, diverse in diversity_estimates(answers).items():
        models[name]["health"] |= diverse
    compared = compare_all(answers, references, pairs, rules)
    return {
        "settings": evaluation_settings(rules),
        "prompts": len(references),
        "models": models,
        "pairs": compared,
        "clean": clean(answers, references, pairs, rules),
        "exploratory": exploratory(answers, references, pairs, rules, compared),
    }


def evaluation_settings(rules: Score) -> dict[str, Any]:
    return {
        "primary_metric": "hit_rate: the mean over prompts of hits / groups",
        "family": "each pair of models on the primary metric, over whole answers and at equal length; p_holm decides",
        "confidence": 0.95,
        "bootstrap_seed": intervals.RESAMPLING_SEED,
        **rules.model_dump(),
    }


def compare_all(answers: Answers, references: Sequence[dict], pairs: Sequence[Pair], rules: Score) -> dict[str, Any]:
    """Compares every pair over whole answers and at equal length, with p-values adjusted over all of these tests, and decides."""
    concepts = [reference.get("concept") for reference in references]
    compared = [compare_models(answers, pair, concepts, rules) for pair in pairs]
    whole = [(rates(answers[first]), rates(answers[second])) for first, second in pairs]
    claims = list(zip(compared, whole, strict=True))
    claims += [(each["equal_length"], cut_rates(answers, pair)) for each, pair in zip(compared, pairs, strict=True)]
    adjusted = statistics.holm([claim["p"] for claim, _ in claims])
    for (claim, compared_rates), p_holm in zip(claims, adjusted, strict=True):
        outcome = Outcome(claim["wins"], claim["ties"], claim["losses"])
        claim |= {"p_holm": p_holm, "decision": verdict(differences(*compared_rates), outcome, p_holm, rules)}
    return {pair_name(pair): result for pair, result in zip(pairs, compared, strict=True)}


def kinds_of(reference: dict[str, Any]) -> list[str]:
    return [reference["kind"].replace("_", " ")] if "kind" in reference else []


def topics_of(reference: dict[str, Any]) -> list[str]:
    return [reference["topic"]]


def exploratory(
    answers: Answers,
    references: Sequence[dict],
    pairs: Sequence[Pair],
    rules: Score,
    compared: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Hit rates and comparisons by topic and kind, and differences in text health: to explore, not to claim.

    Every test of this part gets a q-value (Benjamini-Hochberg). The same family includes the comparisons at similar length, whose
    q-values are added in place, in `compared`.
    """
    signs_of = {name: signs(given) for name, given in answers.items()}
    kinds = by_group(answers, references, kinds_of, pairs, rules)
    topics = by_group(answers, references, topics_of, pairs, rules)
    health = {pair_name(pair): health_differences(*(signs_of[name] for name in pair)) for pair in pairs}
    tests = [test for groups in (kinds, topics) for group in groups.values() for test in group["pairs"].values()]
    tests += [test for by_sign in health.values() for test in by_sign.values()]
    tests += [pair["similar_length"] for pair in compared.values() if pair["similar_length"]["n"]]
    for test, q in zip(tests, statistics.benjamini_hochberg([test["p"] for test in tests]), strict=True):
        test["q"] = q
    note = f"exploratory: q-values (Benjamini-Hochberg) over these {len(tests)} tests; nothing here decides a verdict"
    return {"note": note, "kinds": kinds, "topics": topics, "health": health}


def by_group(
    answers: Answers, references: Sequence[dict], groups_of: Callable, pairs: Sequence[Pair], rules: Score
) -> dict[str, Any]:
    """For each group of prompts, in alphabetical order, every model's hit rate and every pair's comparison."""
    members: dict[str, list[int]] = {}
    for prompt, reference in enumerate(references):
        for group in groups_of(reference):
            members.setdefault(group, []).append(prompt)
    return {group: on_subset(answers, members[group], pairs, rules) for group in sorted(members)}


def on_subset(answers: Answers, prompts: Sequence[int], pairs: Sequence[Pair], rules: Score) -> dict[str, Any]:
    """Every model's hit rate and every pair's comparison on only these prompts, given by number."""
    part = {name: [given[prompt].rate for prompt in prompts] for name, given in answers.items()}
    return {
        "models": {name: rate_estimate(values) for name, values in part.items()},
        "pairs": {pair_name(pair): comparison(part[pair[0]], part[pair[1]], rules.tie_threshold) for pair in pairs},
    }


def clean(answers: Answers, references: Sequence[dict], pairs: Sequence[Pair], rules: Score) -> dict[str, Any]:
    """The figures on the prompts that share nothing with the training data (prepare marks the others with `overlap`)."""
    prompts = [prompt for prompt, reference in enumerate(references) if "overlap" not in reference]
    counts = {"prompts": len(prompts), "of": len(references)}
    if len(prompts) == len(references):
        return counts | {"note": "no prompt overlaps with the training data, so the clean subset is the whole set"}
    if not prompts:
        return counts | {"note": "every prompt overlaps with the training data, so there is no clean subset"}
    note = "the prompts that do not overlap with the training data; p-values are not adjusted, and verdicts rest on all prompts"
    return counts | {"note": note, **on_subset(answers, prompts, pairs, rules)}


def health_differences(first: dict[str, list[bool]], second: dict[str, list[bool]]) -> dict[str, Estimate]:
    """The difference in the proportion of each bad sign, with Newcombe's paired interval and McNemar's exact p."""
    result = {}
    for name in first:
        table = list(zip(first[name], second[name], strict=True))
        counts = [table.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))]
        estimate = (counts[1] - counts[2]) / len(table)
        interval = statistics.newcombe_paired_interval(*counts)
        result[name] = interval_estimate(estimate, len(table), interval, "Newcombe paired")
        result[name]["p"] = intervals.sign_test(counts[1], counts[2])
    return result


def rounded(value: Any) -> Any:
    """The same value with sorted keys and floats rounded to six significant digits, as reports/score.json holds it."""
    if isinstance(value, dict):
        return {key: rounded(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
