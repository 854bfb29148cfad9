"""One model's figures: hit rates, precision, lengths, health."""

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
    quantiles,
    rate_estimate,
    ratio_estimate,
    share,
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


def rates(given: Sequence[Answer]) -> list[float]:
    return [answer.rate for answer in given]


# ---- One model -------------------------------------------------------------------------------------------------------


def describe(given: Sequence[Answer], references: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything about one model's answers by themselves."""
    concepts = [reference.get("concept") for reference in references]
    return {
        "hit_rate": rate_estimate(rates(given)) | {"clustered": clustered(rates(given), concepts)},
        "micro_hit_rate": ratio_estimate([a.keyword.hits for a in given], [a.keyword.groups for a in given]),
        "all_hit_rate": share(answer.keyword.all_hit for answer in given),
        "weighted_hit_rate": weighted(given, references),
        "novel_hit_rate": novel(given),
        **control(given),
        "precision": precision(given),
        "health": health(given),
        "lengths": {unit: quantiles(list(map(measured, given))) for unit, measured in UNITS.items()},
    }


def weighted(given: Sequence[Answer], references: Sequence[dict[str, Any]]) -> Estimate:
    weights = {group.get("weight", 1) for row in references for group in row["keywords"] if not isinstance(group, str)}
    if weights <= {1}:
        return undefined("no group of keywords has a weight of its own")
    return mean_estimate([answer.keyword.weighted_rate for answer in given], intervals.exact_bootstrap_interval, BOOTSTRAP)


def novel(given: Sequence[Answer]) -> Estimate:
    """The hit rate on groups that the prompt does not name itself; n counts the prompts that have such groups."""
    values = [answer.keyword.novel_rate for answer in given if answer.keyword.novel_rate is not None]
    return rate_estimate(values)


def control(given: Sequence[Answer]) -> dict[str, Estimate]:
    """The rate on other prompts' keywords, and the lift: the mean of (own rate - rate on others), answer by answer."""
    if any(answer.shuffled is None for answer in given):
        return dict.fromkeys(("shuffled_hit_rate", "lift"), undefined("there is no other prompt to take keywords from"))
    shuffled = [answer.shuffled for answer in given]
    lifts = differences(rates(given), shuffled)
    return {
        "shuffled_hit_rate": mean_estimate(shuffled, statistics.paired_t_interval, STUDENT),
        "lift": mean_estimate(lifts, statistics.paired_t_interval, STUDENT),
    }


def precision(given: Sequence[Answer]) -> Estimate:
    """Of all key ideas that the answers name, the share that belongs to the concept asked about: sum own / sum (own + foreign).

    `n` counts the answers that name an idea at all. The silent ones would add 0 to both sums and to every square, but a prompt to
    n: beside one answer that speaks, they would give an interval of no width. A degenerate answer counts as it stands, since a
    loop, too, is about its concept or about another one.
    """
    asked = [answer.ideas for answer in given if answer.ideas is not None]
    named = [(ideas.own, ideas.own + len(ideas.foreign)) for ideas in asked if ideas.own or ideas.foreign]
    own, total = sum(one for one, _ in named), sum(both for _, both in named)
    counts = {"n": len(named), "own": own, "foreign": total - own, "silent": len(asked) - len(named)}
    counts["without_concept"] = len(given) - len(asked)
    if not named:
        reason = "no answer names a key idea of the catalogue" if asked else "no prompt names a concept of the catalogue"
        return undefined(reason, **counts)
    found = ratio_estimate(*zip(*named, strict=True)) | counts
    if found["standard_error"] is not None and found["standard_error"] <= ROUNDING:
        found |= {"low": None, "high": None, "reason": ALL_ALIKE}
    return found


def health(given: Sequence[Answer]) -> dict[str, Estimate]:
    """Text health: shares of answers with a bad sign, and how much they repeat themselves and each other.

    `duplicate` is 1 - different texts / texts, which finds a model that says one thing to all prompts; `shared`, the share of
    answers whose text is that of another one too, is what can be compared prompt by prompt.
    """
    texts = [answer.text for answer in given]
    duplicates = len(texts) - len(set(texts))
    compression = [answer.compression for answer in given if answer.compression is not None]
    return {
        **{name: share(found) for name, found in signs(given).items()},
        "duplicate": share([True] * duplicates + [False] * (len(texts) - duplicates)),
        "repetition_4": mean_estimate([answer.repetition for answer in given], statistics.paired_t_interval, STUDENT),
        "compression": mean_estimate(compression, statistics.paired_t_interval, STUDENT),
    }


SIGNS: dict[str, Callable[[Answer], bool]] = {
    "loop": lambda answer: answer.loop,
    "degenerate": lambda answer: "degenerate" in answer.keyword.flags,
    "stuffed": lambda answer: answer.keyword.stuffed,
    "empty": lambda answer: "empty" in answer.keyword.flags,
    "echo": lambda answer: "echo" in answer.keyword.flags,
    "forbidden": lambda answer: "forbidden" in answer.keyword.flags,
    "refusal": lambda answer: answer.refusal,
    "truncated": lambda answer: answer.stop == "length",
}


def signs(given: Sequence[Answer]) -> dict[str, list[bool]]:
    """For every sign of bad text, which answers have it."""
    copies = Counter(answer.text for answer in given)
    return {
        **{name: list(map(holds, given)) for name, holds in SIGNS.items()},
        "shared": [copies[answer.text] > 1 for answer in given],
    }


def diversity(answers: Answers) -> dict[str, dict[str, Estimate]]:
    """distinct-n of each model's answers, and the same adjusted for their length (EAD-n), over all of them together.

    The vocabulary of EAD-n is the number of different n-grams in the answers of all models, one for all that are compared. As it
    is counted and not known, EAD-n can exceed 1.
    """
    corpora = {name: [answer.text for answer in given] for name, given in answers.items()}
    found: dict[str, dict[str, Estimate]] = {name: {} for name in corpora}
    for n in DISTINCT_ORDERS:
        counts, vocabulary = text_health.count_ngrams(list(corpora.values()), n)
        for (name, texts), (different, total) in zip(corpora.items(), counts, strict=True):
            reason = f"no answer has {n} tokens"
            adjusted = text_health.adjusted_distinct(different, total, vocabulary)
            found[name][f"distinct_{n}"] = of_all(different / total if total else None, texts, reason)
            found[name][f"ead_{n}"] = of_all(adjusted, texts, reason) | {"vocabulary": vocabulary}
    return found


def of_all(value: float | None, texts: Sequence[str], reason: str) -> Estimate:
    if value is None:
        return undefined(reason, n=len(texts))
    return {"estimate": value, "n": len(texts), "method": "over all answers together, no interval"}
