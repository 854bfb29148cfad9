"""The whole evaluation: every model, every pair, and the exploratory part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aligner import intervals, statistics
from aligner.run.params import Score
from aligner.scoring.estimates import differences, rate_estimate, with_interval
from aligner.scoring.models import Answers, describe, diversity, rates, signs
from aligner.scoring.pairs import Outcome, Pair, comparison, contest, name_of, verdict

# ---- All models ------------------------------------------------------------------------------------------------------


def evaluate(answers: Answers, references: Sequence[dict[str, Any]], pairs: Sequence[Pair], rules: Score) -> dict[str, Any]:
    """The whole report: `rules` holds tie_threshold, alpha and equivalence_margin; names of pairs are first_vs_second."""
    models = {name: describe(given, references) for name, given in answers.items()}
    for name, diverse in diversity(answers).items():
        models[name]["health"] |= diverse
    contested = contests(answers, references, pairs, rules)
    return {
        "settings": settings(rules),
        "prompts": len(references),
        "models": models,
        "pairs": contested,
        "clean": clean(answers, references, pairs, rules),
        "exploratory": exploratory(answers, references, pairs, rules, contested),
    }


def settings(rules: Score) -> dict[str, Any]:
    return {
        "primary_metric": "hit_rate: the mean over prompts of hits / groups",
        "family": "three pairwise comparisons on the primary metric; p_holm decides",
        "confidence": 0.95,
        "bootstrap_seed": intervals.RESAMPLING_SEED,
        **rules.model_dump(),
    }


def contests(answers: Answers, references: Sequence[dict], pairs: Sequence[Pair], rules: Score) -> dict[str, Any]:
    """The family of three: each pair's comparison with p-values adjusted over all of them, and its verdict."""
    concepts = [reference.get("concept") for reference in references]
    found = [contest(answers, pair, concepts, rules) for pair in pairs]
    adjusted = statistics.holm([each["p"] for each in found])
    for pair, each, p_holm in zip(pairs, found, adjusted, strict=True):
        gaps = differences(*(rates(answers[name]) for name in pair))
        outcome = Outcome(each["wins"], each["ties"], each["losses"])
        each |= {"p_holm": p_holm, "decision": verdict(gaps, outcome, p_holm, rules)}
    return {name_of(pair): each for pair, each in zip(pairs, found, strict=True)}


def kinds_of(reference: dict[str, Any]) -> list[str]:
    return [reference["kind"].replace("_", " ")] if "kind" in reference else []


def topics_of(reference: dict[str, Any]) -> list[str]:
    return [reference["topic"]]


def exploratory(
    answers: Answers,
    references: Sequence[dict],
    pairs: Sequence[Pair],
    rules: Score,
    contested: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Hit rates and comparisons by topic and kind, and differences in health: to look at, not to claim.

    q is Benjamini and Hochberg's over all p-values of this part together with those of the pairs at like length, which get theirs
    where they stand, in `contested`.
    """
    found_signs = {name: signs(given) for name, given in answers.items()}
    found = {
        "kinds": by_group(answers, references, kinds_of, pairs, rules),
        "topics": by_group(answers, references, topics_of, pairs, rules),
        "health": {name_of(pair): health_contest(*(found_signs[name] for name in pair)) for pair in pairs},
    }
    tests = [each for part in ("kinds", "topics") for group in found[part].values() for each in group["pairs"].values()]
    tests += [each for shares in found["health"].values() for each in shares.values()]
    tests += [each for pair in contested.values() for each in pair["length_matched"].values() if each["n"]]
    for test, q in zip(tests, statistics.benjamini_hochberg([test["p"] for test in tests]), strict=True):
        test["q"] = q
    note = f"exploratory: q-values (Benjamini-Hochberg) over these {len(tests)} tests; nothing here decides a verdict"
    return {"note": note, **found}


def by_group(
    answers: Answers, references: Sequence[dict], groups_of: Callable, pairs: Sequence[Pair], rules: Score
) -> dict[str, Any]:
    """For every group of prompts, in alphabetical order: each model's hit rate, and each pair's comparison."""
    places: dict[str, list[int]] = {}
    for place, reference in enumerate(references):
        for group in groups_of(reference):
            places.setdefault(group, []).append(place)
    return {group: on_part(answers, places[group], pairs, rules) for group in sorted(places)}


def on_part(answers: Answers, places: Sequence[int], pairs: Sequence[Pair], rules: Score) -> dict[str, Any]:
    """Each model's hit rate and each pair's comparison on the prompts at these places alone."""
    part = {name: [given[place].rate for place in places] for name, given in answers.items()}
    return {
        "models": {name: rate_estimate(values) for name, values in part.items()},
        "pairs": {name_of(pair): comparison(part[pair[0]], part[pair[1]], rules.tie_threshold) for pair in pairs},
    }


def clean(answers: Answers, references: Sequence[dict], pairs: Sequence[Pair], rules: Score) -> dict[str, Any]:
    """The figures on the prompts that share nothing with what was trained on (prepare marks the others with `overlap`)."""
    places = [place for place, reference in enumerate(references) if "overlap" not in reference]
    counts = {"prompts": len(places), "of": len(references)}
    if len(places) == len(references):
        return counts | {"note": "no prompt overlaps with what was trained on: the figures on all prompts are those of the clean"}
    if not places:
        return counts | {"note": "every prompt overlaps with what was trained on: there is no clean one to look at"}
    note = "the prompts that do not overlap with what was trained on; p-values are not adjusted, and verdicts rest on all prompts"
    return counts | {"note": note, **on_part(answers, places, pairs, rules)}


def health_contest(first: dict[str, list[bool]], second: dict[str, list[bool]]) -> dict[str, Any]:
    """The difference of each share of bad signs with Newcombe's paired interval, and McNemar's exact p."""
    found = {}
    for name in first:
        table = list(zip(first[name], second[name], strict=True))
        counts = [table.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))]
        estimate = (counts[1] - counts[2]) / len(table)
        interval = statistics.newcombe_paired_interval(*counts)
        found[name] = with_interval(estimate, len(table), interval, "Newcombe paired")
        found[name]["p"] = intervals.sign_test(counts[1], counts[2])
    return found


# ---- What goes into files --------------------------------------------------------------------------------------------


def rounded(value: Any) -> Any:
    """The same with keys sorted and floats to six significant digits."""
    if isinstance(value, dict):
        return {key: rounded(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
