"""Two models on the same prompts: outcomes, differences, length, and the verdict."""

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
    quantile,
    rate_estimate,
    share,
    undefined,
    with_interval,
)
from aligner.scoring.models import UNITS, Answers, rates

LENGTH_TOLERANCE = 0.2
FEWEST_OPPOSITE = 0.1
LARGEST_LENGTH_EFFECT = 0.1
TANGO = "Tango score of (W-L)/n, as (1 + net)/2"
MEDIAN = "order statistics, by the sign test"
LENGTH_CONTROLLED = "logistic in tanh(length difference / sd), at equal length; unpenalised, no prior; HC0 error"
Pair = tuple[str, str]


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


# ---- Two models ------------------------------------------------------------------------------------------------------


def win_rate(outcome: Outcome) -> dict[str, Any]:
    """W, T, L, the share of decided prompts, and the win rate with Tango's interval of the net, (1 + (W-L)/n)/2."""
    n = sum(outcome)
    if n == 0:
        return {**outcome._asdict(), "n": 0, "win_rate": undefined("no prompt", n=0)}
    low, high = intervals.tango_interval(*outcome)
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


def contest(answers: Answers, pair: Pair, concepts: Sequence[Hashable | None], rules: Score) -> dict[str, Any]:
    """The comparison of two models on all prompts, but for what takes the other pairs: adjusted p-values and the verdict."""
    first, second = (answers[name] for name in pair)
    gaps = differences(rates(first), rates(second))
    found = comparison(rates(first), rates(second), rules.tie_threshold)
    found["mean_difference"] |= {"clustered": clustered(gaps, concepts)}
    return found | {
        "p_method": "sign-flip permutation of the differences",
        **reach(gaps, rules.alpha),
        "sign_test": {"p": intervals.sign_test(found["wins"], found["losses"])},
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
    found = with_interval(quantile(gaps, 0.5), len(gaps), interval, MEDIAN)
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


def verdict(gaps: Sequence[float], outcome: Outcome, p_adjusted: float, rules: Score) -> dict[str, Any]:
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


def _word(gaps: Sequence[float], interval, close, p_adjusted: float, rules: Score) -> str:
    if interval and p_adjusted < rules.alpha and (interval[0] > 0 or interval[1] < 0):
        return "better" if interval[0] > 0 else "worse"
    if close and -rules.equivalence_margin < close[0] and close[1] < rules.equivalence_margin:
        return "equivalent"
    effect = detectable(gaps, rules.alpha)["estimate"]
    shown = "undefined" if effect is None else f"{100 * effect:.1f} pp"
    return f"inconclusive (MDE {shown} at n = {len(gaps)})"


def equivalence_interval(gaps: Sequence[float], outcome: Outcome, confidence: float) -> intervals.Interval | None:
    """The interval of the mean difference; Tango's of the net win rate when all differences are equal.

    Equal differences would give an interval of no width, and two tied prompts would prove equivalence. No difference is larger
    than 1, so the net win rate bounds the mean.
    """
    if len(gaps) < 2:
        return None
    if deviation(gaps) == 0:
        return intervals.tango_interval(*outcome, confidence)
    return difference_interval(gaps, confidence)


def _bounds(interval: intervals.Interval | None, confidence: float) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {"confidence": confidence, "low": low, "high": high} | ({} if interval else {"reason": TOO_FEW})


# ---- All models ------------------------------------------------------------------------------------------------------


def name_of(pair: Pair) -> str:
    return f"{pair[0]}_vs_{pair[1]}"
