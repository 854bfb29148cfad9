"""A number with its n, its interval and its method; an undefined number is None with the reason beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from aligner import intervals, statistics
from aligner.intervals import deviation, mean

# 4/5 - 3/5 is a little more than 0.2 in binary; hit rates that differ at all differ by far more than this.
ROUNDING = 1e-9
POWER = 0.8
FEWEST_FOR_T = 100
FEWEST_CLUSTERS = 10
QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}

BOOTSTRAP = "exact percentile bootstrap over prompts"
STUDENT = "t over prompts"
WILSON = "Wilson score"
CLUSTERS = "exact percentile bootstrap over whole clusters"
TOO_FEW = "an interval takes at least two prompts"
Estimate = dict[str, Any]


# ---- One number with what belongs to it ------------------------------------------------------------------------------


def differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """First minus second, prompt by prompt, with what binary fractions add to zero taken away."""
    gaps = [one - other for one, other in zip(first, second, strict=True)]
    return [0.0 if abs(gap) <= ROUNDING else gap for gap in gaps]


def undefined(reason: str, **known: Any) -> Estimate:
    return {"estimate": None, **known, "reason": reason}


def with_interval(value: float, n: int, interval: intervals.Interval | None, method: str, **known: Any) -> Estimate:
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
    return mean_estimate(values, intervals.exact_bootstrap_interval, BOOTSTRAP)


def difference_estimate(gaps: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean difference: from 100 prompts on with the paired t interval, below with the exact bootstrap's."""
    method = STUDENT if len(gaps) >= FEWEST_FOR_T else BOOTSTRAP
    return mean_estimate(gaps, lambda values: difference_interval(values, confidence), method)


def difference_interval(gaps: Sequence[float], confidence: float) -> intervals.Interval | None:
    interval = statistics.paired_t_interval if len(gaps) >= FEWEST_FOR_T else intervals.exact_bootstrap_interval
    return interval(gaps, confidence)


def share(events: Iterable[bool]) -> Estimate:
    """How often something holds, with Wilson's interval."""
    events = list(events)
    count, n = sum(events), len(events)
    if n == 0:
        return undefined("there is nothing to count", n=0)
    return with_interval(count / n, n, intervals.wilson_interval(count, n), WILSON, count=count)


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
    return {name: quantile(ordered, level) for name, level in QUANTILES.items()} | {"mean": mean(ordered)}


def quantile(ordered: Sequence[float], level: float) -> float:
    place = level * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


# ---- Two models ------------------------------------------------------------------------------------------------------


def detectable(gaps: Sequence[float], alpha: float) -> Estimate:
    """The true mean difference that so many prompts show with 80 % power: (z + z) sd / sqrt(n) (Miller 2024)."""
    spread = deviation(gaps)
    if not spread:
        return undefined("all differences are equal" if gaps[1:] else TOO_FEW, n=len(gaps))
    effect = statistics.minimum_detectable_effect(spread, len(gaps), alpha, POWER)
    return {"estimate": effect, "n": len(gaps), "alpha": alpha, "power": POWER}
