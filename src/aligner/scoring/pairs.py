"""Comparisons of two models on the same prompts: outcomes, differences, length bias and the verdict."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from aligner import intervals, statistics
from aligner.intervals import deviation, mean
from aligner.run.params import Score
from aligner.scoring.answers import Answer
from aligner.scoring.estimates import (
    ROUNDING,
    TOO_FEW,
    Estimate,
    clustered,
    detectable,
    difference_estimate,
    difference_interval,
    differences,
    interval_estimate,
    proportion,
    quantile,
    rate_estimate,
    undefined,
)
from aligner.scoring.models import UNITS, Answers, rates

LENGTH_TOLERANCE = 0.2
FEWEST_OPPOSITE = 0.1
LARGEST_LENGTH_EFFECT = 0.1
TANGO = "Tango score of (W-L)/n, as (1 + net)/2"
MEDIAN = "order statistics, by the sign test"
LENGTH_CONTROLLED = "logistic in tanh(length difference / sd), at equal length; unpenalised, no prior; HC0 error"
Pair = tuple[str, str]
Bounds = intervals.Interval | None


class Outcome(NamedTuple):
    """The numbers of prompts on which the first model of a pair won, tied and lost."""

    wins: int
    ties: int
    losses: int

    @property
    def win_rate(self) -> float:
        """(W + T/2) / n: the proportion of prompts won, with ties as half wins."""
        return (self.wins + self.ties / 2) / sum(self)


def prompt_outcomes(first: Sequence[float], second: Sequence[float], tie_threshold: float) -> list[int]:
    """For each prompt 1 where the first hit rate is higher, -1 where it is lower, and 0 for a tie.

    Rates tie where they differ by no more than the threshold.
    """
    limit = tie_threshold + ROUNDING
    return [(difference > limit) - (difference < -limit) for difference in differences(first, second)]


def compare(first: Sequence[float], second: Sequence[float], tie_threshold: float) -> Outcome:
    """Counts the wins, ties and losses of the first hit rates over the second."""
    outcomes = prompt_outcomes(first, second, tie_threshold)
    return Outcome(outcomes.count(1), outcomes.count(0), outcomes.count(-1))


def pair_name(pair: Pair) -> str:
    return f"{pair[0]}_vs_{pair[1]}"


# ---- The comparison --------------------------------------------------------------------------------------------------


def win_rate(outcome: Outcome) -> dict[str, Any]:
    """W, T, L, the proportion of decided prompts, and the win rate with Tango's interval of the net, (1 + (W-L)/n)/2."""
    n = sum(outcome)
    if n == 0:
        return {**outcome._asdict(), "n": 0, "win_rate": undefined("no prompt", n=0)}
    low, high = intervals.defined(intervals.tango_interval(*outcome))
    estimate = interval_estimate(outcome.win_rate, n, ((1 + low) / 2, (1 + high) / 2), TANGO)
    return {**outcome._asdict(), "n": n, "decided": (outcome.wins + outcome.losses) / n, "win_rate": estimate}


def comparison(first: Sequence[float], second: Sequence[float], tie_threshold: float) -> dict[str, Any]:
    """A paired comparison of hit rates: outcomes, the mean difference, and the p-value of no difference."""
    diffs = differences(first, second)
    return {
        **win_rate(compare(first, second, tie_threshold)),
        "mean_difference": difference_estimate(diffs),
        "p": statistics.permutation_test(diffs),
    }


def compare_models(answers: Answers, pair: Pair, concepts: Sequence[Hashable | None], rules: Score) -> dict[str, Any]:
    """Compares two models on all prompts. Adjusted p-values and verdicts need every pair, so `compare_all` adds them."""
    first, second = (answers[name] for name in pair)
    diffs = differences(rates(first), rates(second))
    compared = comparison(rates(first), rates(second), rules.tie_threshold)
    compared["mean_difference"] |= {"clustered": clustered(diffs, concepts)}
    return compared | {
        "p_method": "sign-flip permutation of the differences",
        **significance_reach(diffs, rules.alpha),
        "sign_test": {"p": intervals.sign_test(compared["wins"], compared["losses"])},
        "detectable": detectable(diffs, rules.alpha),
        "length": length_bias(first, second, rules.tie_threshold),
        "equal_length": equal_length_comparison(answers, pair, rules),
        "similar_length": similar_length_comparison(first, second, rules.tie_threshold),
    }


def significance_reach(diffs: Sequence[float], alpha: float) -> dict[str, Any]:
    """The smallest p-value that this many nonzero differences can give, and a note where it is not below alpha."""
    decided = sum(difference != 0 for difference in diffs)
    smallest = min(1.0, 2.0 ** (1 - decided))
    if smallest < alpha:
        return {"p_smallest_possible": smallest}
    needed = next(wins for wins in itertools.count(1) if 2.0 ** (1 - wins) < alpha)
    note = f"cannot be significant: {decided} prompts differ, and it takes {needed} even if one model wins them all"
    return {"p_smallest_possible": smallest, "cannot_be_significant": note}


def length_bias(first: Sequence[Answer], second: Sequence[Answer], tie_threshold: float) -> dict[str, Any]:
    """The length bias of a comparison: which model writes more, whether more words win, and the win rate at equal length."""
    words = [one.words - other.words for one, other in zip(first, second, strict=True)]
    scores = differences(rates(first), rates(second))
    longer_wins = [(more > 0) == (score > 0) for more, score in zip(words, scores, strict=True) if more and score]
    return {
        "median_difference": {unit: median_difference(first, second, measured) for unit, measured in UNITS.items()},
        "share_longer": proportion(more > 0 for more in words),
        "share_shorter": proportion(more < 0 for more in words),
        "longer_wins": proportion(longer_wins),
        "length_controlled": length_controlled_estimate(first, second, tie_threshold),
    }


def median_difference(first: Sequence[Answer], second: Sequence[Answer], measured: Callable[[Answer], int]) -> Estimate:
    """The median over prompts of first minus second, in the unit of `measured`."""
    diffs = sorted(measured(one) - measured(other) for one, other in zip(first, second, strict=True))
    interval = statistics.median_interval(diffs)
    estimate = interval_estimate(quantile(diffs, 0.5), len(diffs), interval, MEDIAN)
    return estimate if interval else estimate | {"reason": "the interval of a median takes at least six prompts"}


def length_controlled_estimate(first: Sequence[Answer], second: Sequence[Answer], tie_threshold: float) -> Estimate:
    """The win rate at equal length in characters, with its standard error: a diagnostic that decides nothing.

    It is undefined where one model is nearly always longer, since the fit would extrapolate. It carries a warning where it is
    more than ten percentage points from the plain win rate.
    """
    wins = [(1 + outcome) / 2 for outcome in prompt_outcomes(rates(first), rates(second), tie_threshold)]
    lengths, others = ([len(answer.text) for answer in given] for given in (first, second))
    longer, shorter = (sum(sign * (one - other) > 0 for one, other in zip(lengths, others, strict=True)) for sign in (1, -1))
    n, raw = len(wins), mean(wins)
    known = {"n": n, "raw": raw, "share_longer": longer / n, "share_shorter": shorter / n, "method": LENGTH_CONTROLLED}
    if min(longer, shorter) < FEWEST_OPPOSITE * n:
        reason = f"only {min(longer, shorter)} of {n} prompts have the opposite order of lengths, below {FEWEST_OPPOSITE:.0%}"
        return undefined(reason, standard_error=None, **known)
    fitted = statistics.length_controlled_win_rate([1 + win for win in wins], lengths, others)
    if fitted["estimate"] is None or fitted["standard_error"] is None:
        reason = "wins and losses do not determine the fit: they are all of one kind, or length parts them"
        return undefined(reason, standard_error=None, **known)
    rate, error = fitted["estimate"] / 100, fitted["standard_error"] / 100
    apart = f"{100 * abs(rate - raw):.0f} percentage points from the plain win rate"
    warning = {"warning": apart} if abs(rate - raw) > LARGEST_LENGTH_EFFECT else {}
    return {"estimate": rate, "standard_error": error, **known, **warning}


def similar_length_comparison(first: Sequence[Answer], second: Sequence[Answer], tie_threshold: float) -> dict[str, Any]:
    """The comparison on only those prompts where the numbers of words differ by at most 20 % of the larger."""
    pairs = list(zip(first, second, strict=True))
    near = [(a.rate, b.rate) for a, b in pairs if abs(a.words - b.words) <= LENGTH_TOLERANCE * max(a.words, b.words)]
    return comparison([a for a, _ in near], [b for _, b in near], tie_threshold)


def cut_rates(answers: Answers, pair: Pair) -> tuple[list[float], list[float]]:
    """Both models' hit rates with the longer answer to each prompt cut to the number of words of the shorter one."""
    first, second = pair
    return [answer.cut[second] for answer in answers[first]], [answer.cut[first] for answer in answers[second]]


def equal_length_comparison(answers: Answers, pair: Pair, rules: Score) -> dict[str, Any]:
    """The comparison on all prompts at equal length, which gives no credit for saying more."""
    cut = cut_rates(answers, pair)
    compared = comparison(*cut, rules.tie_threshold)
    means = {name: rate_estimate(values) for name, values in zip(pair, cut, strict=True)}
    return {"hit_rate": means, **compared, **significance_reach(differences(*cut), rules.alpha)}


# ---- The verdict -----------------------------------------------------------------------------------------------------


def verdict(diffs: Sequence[float], outcome: Outcome, p_adjusted: float, rules: Score) -> dict[str, Any]:
    """The verdict with the two intervals that it rests on.

    better, worse: the adjusted p is below alpha and the 1 - alpha interval of the mean difference excludes 0.
    equivalent: the 1 - 2 alpha interval lies within +-margin (two one-sided tests, Schuirmann 1987).
    inconclusive: neither; it names the smallest difference that the prompts could have shown.
    """
    interval = difference_interval(diffs, 1 - rules.alpha)
    close = equivalence_interval(diffs, outcome, 1 - 2 * rules.alpha)
    return {
        "verdict": verdict_word(diffs, interval, close, p_adjusted, rules),
        "interval": bounds(interval, 1 - rules.alpha),
        "equivalence_interval": bounds(close, 1 - 2 * rules.alpha),
    }


def verdict_word(diffs: Sequence[float], interval: Bounds, close: Bounds, p_adjusted: float, rules: Score) -> str:
    if interval and p_adjusted < rules.alpha and (interval[0] > 0 or interval[1] < 0):
        return "better" if interval[0] > 0 else "worse"
    if close and -rules.equivalence_margin < close[0] and close[1] < rules.equivalence_margin:
        return "equivalent"
    effect = detectable(diffs, rules.alpha)["estimate"]
    shown = "undefined" if effect is None else f"{100 * effect:.1f} pp"
    return f"inconclusive (MDE {shown} at n = {len(diffs)})"


def equivalence_interval(diffs: Sequence[float], outcome: Outcome, confidence: float) -> Bounds:
    """The interval of the mean difference; where all differences are equal, Tango's interval of the net win rate.

    Equal differences would give an interval of no width, and two tied prompts would prove equivalence. No difference exceeds 1,
    so the net win rate bounds the mean.
    """
    if len(diffs) < 2:
        return None
    if deviation(diffs) == 0:
        return intervals.tango_interval(*outcome, confidence)
    return difference_interval(diffs, confidence)


def bounds(interval: Bounds, confidence: float) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {"confidence": confidence, "low": low, "high": high} | ({} if interval else {"reason": TOO_FEW})
