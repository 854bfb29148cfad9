"""One model's estimates: hit rates, precision, lengths and text health."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from aligner import intervals, statistics, text_health
from aligner.scoring.answers import Answer
from aligner.scoring.estimates import (
    BOOTSTRAP,
    ROUNDING,
    STUDENT,
    Estimate,
    clustered,
    differences,
    mean_estimate,
    proportion,
    quantiles,
    rate_estimate,
    ratio_estimate,
    undefined,
)

DISTINCT_ORDERS = (1, 2, 3)
UNITS: dict[str, Callable[[Answer], int]] = {
    "characters": lambda answer: len(answer.text),
    "words": lambda answer: answer.words,
    "tokens": lambda answer: answer.tokens,
}
ALL_ALIKE = "all answers have the same share, so their spread says nothing"

Answers = dict[str, list[Answer]]


def rates(answers: Sequence[Answer]) -> list[float]:
    return [answer.rate for answer in answers]


# ---- One model -------------------------------------------------------------------------------------------------------


def describe(answers: Sequence[Answer], references: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All estimates of one model's answers that need no other model."""
    concepts = [reference.get("concept") for reference in references]
    return {
        "hit_rate": rate_estimate(rates(answers)) | {"clustered": clustered(rates(answers), concepts)},
        "micro_hit_rate": ratio_estimate([a.keyword.hits for a in answers], [a.keyword.groups for a in answers]),
        "all_hit_rate": proportion(answer.keyword.all_hit for answer in answers),
        "weighted_hit_rate": weighted(answers, references),
        "novel_hit_rate": novel(answers),
        **control(answers),
        "precision": precision(answers),
        "hits_per_100_words": density(answers),
        "health": health_estimates(answers),
        "lengths": {unit: quantiles(list(map(measured, answers))) for unit, measured in UNITS.items()},
    }


def weighted(answers: Sequence[Answer], references: Sequence[dict[str, Any]]) -> Estimate:
    weights = {group.get("weight", 1) for row in references for group in row["keywords"] if not isinstance(group, str)}
    if weights <= {1}:
        return undefined("no group of keywords has a weight of its own")
    return mean_estimate([answer.keyword.weighted_rate for answer in answers], intervals.exact_bootstrap_interval, BOOTSTRAP)


def novel(answers: Sequence[Answer]) -> Estimate:
    """The hit rate on groups that the prompt itself does not name; n counts the prompts with such groups."""
    values = [answer.keyword.novel_rate for answer in answers if answer.keyword.novel_rate is not None]
    return rate_estimate(values)


def control(answers: Sequence[Answer]) -> dict[str, Estimate]:
    """The rate on other prompts' keywords, and the lift: the mean of (own rate - rate on others), answer by answer."""
    shuffled = [answer.shuffled for answer in answers if answer.shuffled is not None]
    if len(shuffled) < len(answers):
        return dict.fromkeys(("shuffled_hit_rate", "lift"), undefined("there is no other prompt to take keywords from"))
    lifts = differences(rates(answers), shuffled)
    return {
        "shuffled_hit_rate": mean_estimate(shuffled, statistics.paired_t_interval, STUDENT),
        "lift": mean_estimate(lifts, statistics.paired_t_interval, STUDENT),
    }


def density(answers: Sequence[Answer]) -> Estimate:
    """Key ideas named per 100 words: 100 sum hits / sum words. It does not rise merely because answers are longer."""
    words = [answer.words for answer in answers]
    if not any(words):
        return undefined("no answer holds a word")
    return ratio_estimate([100 * answer.keyword.hits for answer in answers], words, highest=100.0)


def precision(answers: Sequence[Answer]) -> Estimate:
    """The proportion of the key ideas named that belong to the concept asked about: sum own / sum (own + foreign).

    `n` counts the answers that name an idea at all. Silent answers add 0 to both sums and to every square but would raise n:
    next to a single answer that names ideas, they would give an interval of no width. A degenerate answer counts like any other,
    since a loop, too, is about its concept or about another one.
    """
    asked = [answer.ideas for answer in answers if answer.ideas is not None]
    named = [(ideas.own, ideas.own + len(ideas.foreign)) for ideas in asked if ideas.own or ideas.foreign]
    own, total = sum(one for one, _ in named), sum(both for _, both in named)
    counts = {"n": len(named), "own": own, "foreign": total - own, "silent": len(asked) - len(named)}
    counts["without_concept"] = len(answers) - len(asked)
    if not named:
        reason = "no answer names a key idea of the catalogue" if asked else "no prompt names a concept of the catalogue"
        return undefined(reason, **counts)
    estimate = ratio_estimate([one for one, _ in named], [both for _, both in named]) | counts
    if estimate["standard_error"] is not None and estimate["standard_error"] <= ROUNDING:
        estimate |= {"low": None, "high": None, "reason": ALL_ALIKE}
    return estimate


def health_estimates(answers: Sequence[Answer]) -> dict[str, Estimate]:
    """Text health: the proportion of answers with each bad sign, and how much answers repeat themselves and each other.

    `duplicate` is 1 - distinct texts / texts; it exposes a model that gives one answer to all prompts. `shared`, the proportion
    of answers whose text another answer has too, can be compared prompt by prompt.
    """
    texts = [answer.text for answer in answers]
    duplicates = len(texts) - len(set(texts))
    compression = [answer.compression for answer in answers if answer.compression is not None]
    return {
        **{name: proportion(events) for name, events in signs(answers).items()},
        "duplicate": proportion([True] * duplicates + [False] * (len(texts) - duplicates)),
        "repetition_4": mean_estimate([answer.repetition for answer in answers], statistics.paired_t_interval, STUDENT),
        "compression": mean_estimate(compression, statistics.paired_t_interval, STUDENT),
    }


SIGNS: dict[str, Callable[[Answer], bool]] = {
    "repeats": lambda answer: answer.repeats,
    "loop": lambda answer: answer.loop,
    "degenerate": lambda answer: "degenerate" in answer.keyword.flags,
    "stuffed": lambda answer: answer.keyword.stuffed,
    "empty": lambda answer: "empty" in answer.keyword.flags,
    "echo": lambda answer: "echo" in answer.keyword.flags,
    "forbidden": lambda answer: "forbidden" in answer.keyword.flags,
    "refusal": lambda answer: answer.refusal,
    "truncated": lambda answer: answer.stop == "length",
}


def signs(answers: Sequence[Answer]) -> dict[str, list[bool]]:
    """For each sign of bad text, whether each answer has it."""
    copies = Counter(answer.text for answer in answers)
    return {
        **{name: list(map(holds, answers)) for name, holds in SIGNS.items()},
        "shared": [copies[answer.text] > 1 for answer in answers],
    }


def diversity_estimates(answers: Answers) -> dict[str, dict[str, Estimate]]:
    """distinct-n over all of a model's answers, and its expectation-adjusted form EAD-n, which corrects for length.

    The vocabulary of EAD-n is the number of distinct n-grams in the answers of all models, so that models can be compared. It is
    counted from the answers, so EAD-n can exceed 1.
    """
    corpora = {name: [answer.text for answer in of_model] for name, of_model in answers.items()}
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in corpora}
    for n in DISTINCT_ORDERS:
        counts, vocabulary = text_health.count_ngrams(list(corpora.values()), n)
        for (name, texts), (different, total) in zip(corpora.items(), counts, strict=True):
            reason = f"no answer has {n} tokens"
            adjusted = text_health.adjusted_distinct(different, total, vocabulary)
            estimates[name][f"distinct_{n}"] = corpus_estimate(different / total if total else None, texts, reason)
            estimates[name][f"ead_{n}"] = corpus_estimate(adjusted, texts, reason) | {"vocabulary": vocabulary}
    return estimates


def corpus_estimate(value: float | None, texts: Sequence[str], reason: str) -> Estimate:
    if value is None:
        return undefined(reason, n=len(texts))
    return {"estimate": value, "n": len(texts), "method": "over all answers together, no interval"}
