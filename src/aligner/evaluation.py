"""From scored answers to what may be claimed: rates with intervals, paired comparisons, verdicts, and the report that holds them.

Pure functions of `Answer`s in the order of the prompts. Every number stands in a small dictionary with its n, its interval and
the method; what is undefined is None, with the reason beside it. Intervals hold 95 %; `alpha` decides verdicts alone.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from aligner import statistics, text_health
from aligner.answers import Answer
from aligner.statistics import deviation, mean

# 4/5 - 3/5 is a little more than 0.2 in binary; hit rates that differ at all differ by far more than this.
ROUNDING = 1e-9
POWER = 0.8
FEWEST_FOR_T = 100
FEWEST_CLUSTERS = 10
LENGTH_TOLERANCE = 0.2
FEWEST_OPPOSITE = 0.1
LARGEST_LENGTH_EFFECT = 0.1
DISTINCT_ORDERS = (1, 2, 3)
UNITS: dict[str, Callable[[Answer], int]] = {
    "characters": lambda answer: len(answer.text),
    "words": lambda answer: answer.words,
    "tokens": lambda answer: answer.tokens,
}
QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}

BOOTSTRAP = "exact percentile bootstrap over prompts"
STUDENT = "t over prompts"
WILSON = "Wilson score"
TANGO = "Tango score of (W-L)/n, as (1 + net)/2"
CLUSTERS = "exact percentile bootstrap over whole clusters"
MEDIAN = "order statistics, by the sign test"
LENGTH_CONTROLLED = "logistic in tanh(length difference / sd), at equal length; unpenalised, no prior; HC0 error"
TOO_FEW = "an interval takes at least two prompts"
ALL_ALIKE = "all answers have the same share, so their spread says nothing"

Answers = dict[str, list[Answer]]
Pair = tuple[str, str]
Estimate = dict[str, Any]


class Outcome(NamedTuple):
    """How often the first model of a pair beat the second, prompt by prompt."""

    wins: int
    ties: int
    losses: int

    @property
    def win_rate(self) -> float:
        """(W + T/2) / n: the share of prompts won, ties counted as half."""
        return (self.wins + self.ties / 2) / sum(self)


def compare(first: Sequence[float], second: Sequence[float], tie_threshold: float) -> Outcome:
    """Wins, ties and losses of the first hit rates over the second: a tie where they differ by no more than the threshold."""
    gaps = differences(first, second)
    wins = sum(gap > tie_threshold + ROUNDING for gap in gaps)
    losses = sum(gap < -tie_threshold - ROUNDING for gap in gaps)
    return Outcome(wins, len(gaps) - wins - losses, losses)


def differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """First minus second, prompt by prompt, with what binary fractions add to zero taken away."""
    gaps = [one - other for one, other in zip(first, second, strict=True)]
    return [0.0 if abs(gap) <= ROUNDING else gap for gap in gaps]


def rates(given: Sequence[Answer]) -> list[float]:
    return [answer.rate for answer in given]


# ---- One number with what belongs to it ------------------------------------------------------------------------------


def undefined(reason: str, **known: Any) -> Estimate:
    return {"estimate": None, **known, "reason": reason}


def with_interval(value: float, n: int, interval: statistics.Interval | None, method: str, **known: Any) -> Estimate:
    if interval is None:
        return {"estimate": value, "n": n, **known, "low": None, "high": None, "method": method, "reason": TOO_FEW}
    return {"estimate": value, "n": n, **known, "low": interval[0], "high": interval[1], "method": method}


def mean_estimate(values: Sequence[float], interval: Callable, method: str) -> Estimate:
    """The mean with its standard error sd/sqrt(n) and an interval; undefined without values."""
    if not values:
        return undefined("no prompt has a value", n=0)
    spread = deviation(values)
    error = None if spread is None else spread / math.sqrt(len(values))
    return with_interval(mean(values), len(values), interval(values), method, standard_error=error)


def rate_estimate(values: Sequence[float]) -> Estimate:
    """The mean of hit rates, which lie on a lattice, with the exact bootstrap's interval."""
    return mean_estimate(values, statistics.exact_bootstrap_interval, BOOTSTRAP)


def difference_estimate(gaps: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean difference: from 100 prompts on with the paired t interval, below with the exact bootstrap's."""
    method = STUDENT if len(gaps) >= FEWEST_FOR_T else BOOTSTRAP
    return mean_estimate(gaps, lambda values: difference_interval(values, confidence), method)


def difference_interval(gaps: Sequence[float], confidence: float) -> statistics.Interval | None:
    interval = statistics.paired_t_interval if len(gaps) >= FEWEST_FOR_T else statistics.exact_bootstrap_interval
    return interval(gaps, confidence)


def share(events: Iterable[bool]) -> Estimate:
    """How often something holds, with Wilson's interval."""
    events = list(events)
    count, n = sum(events), len(events)
    if n == 0:
        return undefined("there is nothing to count", n=0)
    return with_interval(count / n, n, statistics.wilson_interval(count, n), WILSON, count=count)


def clustered(values: Sequence[float], clusters: Sequence[Hashable | None]) -> Estimate:
    """The standard error of the mean when prompts of one cluster belong together (CR1), with the t interval of C-1 degrees.

    Below ten clusters with a warning, and with the bootstrap of whole clusters beside it.
    """
    named = [cluster for cluster in clusters if cluster is not None]
    count = len(set(named))
    if len(named) < len(clusters):
        return undefined(f"{len(clusters) - len(named)} of {len(clusters)} prompts name no concept", clusters=count)
    error = statistics.clustered_standard_error(values, clusters)
    if error is None:
        return undefined("fewer than two clusters", clusters=count)
    half, middle = statistics.t_quantile(count - 1) * error, mean(values)
    known = {"standard_error": error, "clusters": count, "low": middle - half, "high": middle + half, "method": "CR1, t"}
    return {"estimate": middle, **known, **(few_clusters(values, clusters) if count < FEWEST_CLUSTERS else {})}


def few_clusters(values: Sequence[float], clusters: Sequence[Hashable]) -> dict[str, Any]:
    low, high = statistics.cluster_bootstrap_interval(values, clusters)
    warning = f"only {len(set(clusters))} clusters: the standard error is itself uncertain"
    return {"warning": warning, "bootstrap": {"low": low, "high": high, "method": CLUSTERS}}


def ratio_estimate(hits: Sequence[float], groups: Sequence[float]) -> Estimate:
    """sum hits / sum groups with prompts as clusters: SE = sqrt(n/(n-1) sum (h_i - r g_i)^2) / sum g (ratio estimator)."""
    n, total = len(hits), math.fsum(groups)
    ratio, method = math.fsum(hits) / total, "ratio estimator, t"
    if n < 2:
        return with_interval(ratio, n, None, method, standard_error=None)
    squares = math.fsum((hit - ratio * group) ** 2 for hit, group in zip(hits, groups, strict=True))
    error = math.sqrt(n / (n - 1) * squares) / total
    half = statistics.t_quantile(n - 1) * error
    return with_interval(ratio, n, (max(0.0, ratio - half), min(1.0, ratio + half)), method, standard_error=error)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """5th, 50th and 95th percentile, between two values by their distance, and the mean."""
    ordered = sorted(values)
    return {name: _quantile(ordered, level) for name, level in QUANTILES.items()} | {"mean": mean(ordered)}


def _quantile(ordered: Sequence[float], level: float) -> float:
    place = level * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


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
    return mean_estimate([answer.keyword.weighted_rate for answer in given], statistics.exact_bootstrap_interval, BOOTSTRAP)


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


# ---- Two models ------------------------------------------------------------------------------------------------------


def win_rate(outcome: Outcome) -> dict[str, Any]:
    """W, T, L, the share of decided prompts, and the win rate with Tango's interval of the net, (1 + (W-L)/n)/2."""
    n = sum(outcome)
    if n == 0:
        return {**outcome._asdict(), "n": 0, "win_rate": undefined("no prompt", n=0)}
    low, high = statistics.tango_interval(*outcome)
    estimate = with_interval(outcome.win_rate, n, ((1 + low) / 2, (1 + high) / 2), TANGO)
    return {**outcome._asdict(), "n": n, "decided": (outcome.wins + outcome.losses) / n, "win_rate": estimate}


def comparison(first: Sequence[float], second: Sequence[float], tie_threshold: float) -> dict[str, Any]:
    """What every paired comparison of hit rates shows: outcomes, the mean difference, and the p-value of no difference."""
    gaps = differences(first, second)
    return {
        **win_rate(compare(first, second, tie_threshold)),
        "mean_difference": difference_estimate(gaps),
        "p": statistics.permutation_test(gaps),
    }


def contest(answers: Answers, pair: Pair, concepts: Sequence[Hashable | None], rules: SimpleNamespace) -> dict[str, Any]:
    """The comparison of two models on all prompts, but for what takes the other pairs: adjusted p-values and the verdict."""
    first, second = (answers[name] for name in pair)
    gaps = differences(rates(first), rates(second))
    found = comparison(rates(first), rates(second), rules.tie_threshold)
    found["mean_difference"] |= {"clustered": clustered(gaps, concepts)}
    return found | {
        "p_method": "sign-flip permutation of the differences",
        **reach(gaps, rules.alpha),
        "sign_test": {"p": statistics.sign_test(found["wins"], found["losses"])},
        "detectable": detectable(gaps, rules.alpha),
        "length": length_contest(first, second, rules.tie_threshold),
        "length_matched": {
            "similar": of_similar_length(first, second, rules.tie_threshold),
            "truncated": of_equal_length(answers, pair, rules.tie_threshold),
        },
    }


def reach(gaps: Sequence[float], alpha: float) -> dict[str, Any]:
    """The smallest p that so many differences other than 0 can give, all of one sign; and that it is too large, where it is."""
    decided = sum(gap != 0 for gap in gaps)
    smallest = min(1.0, 2.0 ** (1 - decided))
    if smallest < alpha:
        return {"p_smallest_possible": smallest}
    needed = next(wins for wins in itertools.count(1) if 2.0 ** (1 - wins) < alpha)
    note = f"cannot be significant: {decided} prompts differ, and it takes {needed} even if one model wins them all"
    return {"p_smallest_possible": smallest, "cannot_be_significant": note}


def detectable(gaps: Sequence[float], alpha: float) -> Estimate:
    """The true mean difference that so many prompts show with 80 % power: (z + z) sd / sqrt(n) (Miller 2024)."""
    spread = deviation(gaps)
    if not spread:
        return undefined("all differences are equal" if gaps[1:] else TOO_FEW, n=len(gaps))
    effect = statistics.minimum_detectable_effect(spread, len(gaps), alpha, POWER)
    return {"estimate": effect, "n": len(gaps), "alpha": alpha, "power": POWER}


def length_contest(first: Sequence[Answer], second: Sequence[Answer], tie_threshold: float) -> dict[str, Any]:
    """Which model writes more, whether more words win, and the win rate at equal length: the length bias of the comparison."""
    gaps = [one.words - other.words for one, other in zip(first, second, strict=True)]
    scores = differences(rates(first), rates(second))
    fought = [(gap > 0) == (score > 0) for gap, score in zip(gaps, scores, strict=True) if gap and score]
    return {
        "median_difference": {unit: median_difference(first, second, measured) for unit, measured in UNITS.items()},
        "share_longer": share(gap > 0 for gap in gaps),
        "share_shorter": share(gap < 0 for gap in gaps),
        "longer_wins": share(fought),
        "length_controlled": length_controlled(first, second, tie_threshold),
    }


def median_difference(first: Sequence[Answer], second: Sequence[Answer], measured: Callable[[Answer], int]) -> Estimate:
    """The median over prompts of first minus second, in the unit that is measured."""
    gaps = sorted(measured(one) - measured(other) for one, other in zip(first, second, strict=True))
    interval = statistics.median_interval(gaps)
    found = with_interval(_quantile(gaps, 0.5), len(gaps), interval, MEDIAN)
    return found if interval else found | {"reason": "the interval of a median takes at least six prompts"}


def length_controlled(first: Sequence[Answer], second: Sequence[Answer], tie_threshold: float) -> Estimate:
    """The win rate at equal length in characters, with its standard error: a diagnostic, which decides nothing.

    Refused where one model is nearly always longer, since the model would extrapolate; with a warning where it is more than ten
    percentage points from the plain win rate.
    """
    outcomes = [compare([one], [other], tie_threshold) for one, other in zip(rates(first), rates(second), strict=True)]
    lengths, others = ([len(answer.text) for answer in given] for given in (first, second))
    longer, shorter = (sum(sign * (one - other) > 0 for one, other in zip(lengths, others, strict=True)) for sign in (1, -1))
    n, raw = len(outcomes), mean(outcome.win_rate for outcome in outcomes)
    known = {"n": n, "raw": raw, "share_longer": longer / n, "share_shorter": shorter / n, "method": LENGTH_CONTROLLED}
    if min(longer, shorter) < FEWEST_OPPOSITE * n:
        reason = f"only {min(longer, shorter)} of {n} prompts have the opposite order of lengths, below {FEWEST_OPPOSITE:.0%}"
        return undefined(reason, standard_error=None, **known)
    found = statistics.length_controlled_win_rate([1 + outcome.win_rate for outcome in outcomes], lengths, others)
    if found["estimate"] is None:
        reason = "wins and losses do not determine the fit: they are all of one kind, or length parts them"
        return undefined(reason, standard_error=None, **known)
    rate, error = found["estimate"] / 100, found["standard_error"] / 100
    apart = f"{100 * abs(rate - raw):.0f} percentage points from the plain win rate"
    warning = {"warning": apart} if abs(rate - raw) > LARGEST_LENGTH_EFFECT else {}
    return {"estimate": rate, "standard_error": error, **known, **warning}


def of_similar_length(first: Sequence[Answer], second: Sequence[Answer], tie_threshold: float) -> dict[str, Any]:
    """The comparison on the prompts alone where the numbers of words differ by at most 20 % of the larger."""
    pairs = list(zip(first, second, strict=True))
    near = [(a.rate, b.rate) for a, b in pairs if abs(a.words - b.words) <= LENGTH_TOLERANCE * max(a.words, b.words)]
    return comparison([a for a, _ in near], [b for _, b in near], tie_threshold)


def of_equal_length(answers: Answers, pair: Pair, tie_threshold: float) -> dict[str, Any]:
    """The comparison on all prompts with the longer answer cut to the number of words of the shorter one."""
    first, second = pair
    cut = {name: [answer.cut[other] for answer in answers[name]] for name, other in ((first, second), (second, first))}
    return {
        "hit_rate": {name: rate_estimate(values) for name, values in cut.items()},
        **comparison(cut[first], cut[second], tie_threshold),
    }


def verdict(gaps: Sequence[float], outcome: Outcome, p_adjusted: float, rules: SimpleNamespace) -> dict[str, Any]:
    """One word, or "inconclusive" with what could have been seen, and what it rests on.

    better, worse: the adjusted p is below alpha and the 1 - alpha interval of the mean difference leaves 0 out.
    equivalent: the 1 - 2 alpha interval lies within +-margin (two one-sided tests, Schuirmann 1987).
    """
    interval = difference_interval(gaps, 1 - rules.alpha)
    close = equivalence_interval(gaps, outcome, 1 - 2 * rules.alpha)
    return {
        "verdict": _word(gaps, interval, close, p_adjusted, rules),
        "interval": _bounds(interval, 1 - rules.alpha),
        "equivalence_interval": _bounds(close, 1 - 2 * rules.alpha),
    }


def _word(gaps: Sequence[float], interval, close, p_adjusted: float, rules: SimpleNamespace) -> str:
    if interval and p_adjusted < rules.alpha and (interval[0] > 0 or interval[1] < 0):
        return "better" if interval[0] > 0 else "worse"
    if close and -rules.equivalence_margin < close[0] and close[1] < rules.equivalence_margin:
        return "equivalent"
    effect = detectable(gaps, rules.alpha)["estimate"]
    shown = "undefined" if effect is None else f"{100 * effect:.1f} pp"
    return f"inconclusive (MDE {shown} at n = {len(gaps)})"


def equivalence_interval(gaps: Sequence[float], outcome: Outcome, confidence: float) -> statistics.Interval | None:
    """The interval of the mean difference; Tango's of the net win rate when all differences are equal.

    Equal differences would give an interval of no width, and two tied prompts would prove equivalence. No difference is larger
    than 1, so the net win rate bounds the mean.
    """
    if len(gaps) < 2:
        return None
    if deviation(gaps) == 0:
        return statistics.tango_interval(*outcome, confidence)
    return difference_interval(gaps, confidence)


def _bounds(interval: statistics.Interval | None, confidence: float) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {"confidence": confidence, "low": low, "high": high} | ({} if interval else {"reason": TOO_FEW})


# ---- All models ------------------------------------------------------------------------------------------------------


def evaluate(
    answers: Answers, references: Sequence[dict[str, Any]], pairs: Sequence[Pair], rules: SimpleNamespace
) -> dict[str, Any]:
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


def settings(rules: SimpleNamespace) -> dict[str, Any]:
    return {
        "primary_metric": "hit_rate: the mean over prompts of hits / groups",
        "family": "three pairwise comparisons on the primary metric; p_holm decides",
        "confidence": 0.95,
        "bootstrap_seed": statistics.RESAMPLING_SEED,
        **vars(rules),
    }


def name_of(pair: Pair) -> str:
    return f"{pair[0]}_vs_{pair[1]}"


def contests(answers: Answers, references: Sequence[dict], pairs: Sequence[Pair], rules: SimpleNamespace) -> dict[str, Any]:
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
    rules: SimpleNamespace,
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
    answers: Answers, references: Sequence[dict], groups_of: Callable, pairs: Sequence[Pair], rules: SimpleNamespace
) -> dict[str, Any]:
    """For every group of prompts, in alphabetical order: each model's hit rate, and each pair's comparison."""
    places: dict[str, list[int]] = {}
    for place, reference in enumerate(references):
        for group in groups_of(reference):
            places.setdefault(group, []).append(place)
    return {group: on_part(answers, places[group], pairs, rules) for group in sorted(places)}


def on_part(answers: Answers, places: Sequence[int], pairs: Sequence[Pair], rules: SimpleNamespace) -> dict[str, Any]:
    """Each model's hit rate and each pair's comparison on the prompts at these places alone."""
    part = {name: [given[place].rate for place in places] for name, given in answers.items()}
    return {
        "models": {name: rate_estimate(values) for name, values in part.items()},
        "pairs": {name_of(pair): comparison(part[pair[0]], part[pair[1]], rules.tie_threshold) for pair in pairs},
    }


def clean(answers: Answers, references: Sequence[dict], pairs: Sequence[Pair], rules: SimpleNamespace) -> dict[str, Any]:
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
        found[name]["p"] = statistics.sign_test(counts[1], counts[2])
    return found


# ---- What goes into files --------------------------------------------------------------------------------------------


def rounded(value: Any) -> Any:
    """The same with keys sorted and floats to six significant digits."""
    if isinstance(value, dict):
        return {key: rounded(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
