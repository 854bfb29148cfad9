"""Estimates: a number with its n, interval and method. An undefined number is None, with the reason beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from aligner import intervals, statistics
from aligner.intervals import deviation, mean

# In binary, 4/5 - 3/5 is slightly more than 0.2. Hit rates that differ at all differ by far more than this.
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


# ---- One number ------------------------------------------------------------------------------------------------------


def differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """First minus second, prompt by prompt; differences that are only rounding errors are 0."""
    exact = [one - other for one, other in zip(first, second, strict=True)]
    return [0.0 if abs(difference) <= ROUNDING else difference for difference in exact]


def undefined(reason: str, **known: Any) -> Estimate:
    return {"estimate": None, **known, "reason": reason}


def interval_estimate(value: float, n: int, interval: intervals.Interval | None, method: str, **known: Any) -> Estimate:
    if interval is None:
        return {"estimate": value, "n": n, **known, "low": None, "high": None, "method": method, "reason": TOO_FEW}
    return {"estimate": value, "n": n, **known, "low": interval[0], "high": interval[1], "method": method}


def mean_estimate(values: Sequence[float], interval: Callable, method: str) -> Estimate:
    """The mean with its standard error sd/sqrt(n) and the interval that `interval` computes; undefined without values."""
    if not values:
        return undefined("no prompt has a value", n=0)
    spread = deviation(values)
    error = None if spread is None else spread / math.sqrt(len(values))
    return interval_estimate(mean(values), len(values), interval(values), method, standard_error=error)


def rate_estimate(values: Sequence[float]) -> Estimate:
    """The mean of hit rates with the exact bootstrap interval (hit rates lie on a lattice)."""
    return mean_estimate(values, intervals.exact_bootstrap_interval, BOOTSTRAP)


def difference_estimate(diffs: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean difference, with the paired t interval from 100 prompts on and the exact bootstrap interval below."""
    method = STUDENT if len(diffs) >= FEWEST_FOR_T else BOOTSTRAP
    return mean_estimate(diffs, lambda values: difference_interval(values, confidence), method)


def difference_interval(diffs: Sequence[float], confidence: float) -> intervals.Interval | None:
    interval = statistics.paired_t_interval if len(diffs) >= FEWEST_FOR_T else intervals.exact_bootstrap_interval
    return interval(diffs, confidence)


def proportion(events: Iterable[bool]) -> Estimate:
    """The proportion of events that hold, with Wilson's interval."""
    events = list(events)
    count, n = sum(events), len(events)
    if n == 0:
        return undefined("there is nothing to count", n=0)
    return interval_estimate(count / n, n, intervals.wilson_interval(count, n), WILSON, count=count)


def clustered(values: Sequence[float], clusters: Sequence[Hashable | None]) -> Estimate:
    """The mean with its cluster-robust standard error (CR1) and the t interval with C-1 degrees of freedom.

    Below ten clusters, a warning and the bootstrap of whole clusters are added.
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
    """The warning and the bootstrap interval for few clusters, of which there must be two."""
    low, high = intervals.defined(statistics.cluster_bootstrap_interval(values, clusters))
    warning = f"only {len(set(clusters))} clusters: the standard error is itself uncertain"
    return {"warning": warning, "bootstrap": {"low": low, "high": high, "method": CLUSTERS}}


def ratio_estimate(hits: Sequence[float], groups: Sequence[float], highest: float = 1.0) -> Estimate:
    """The ratio sum hits / sum groups, with prompts as clusters: SE = sqrt(n/(n-1) sum (h_i - r g_i)^2) / sum g.

    The interval is cut to [0, highest], the range of the ratio.
    """
    n, total = len(hits), math.fsum(groups)
    ratio, method = math.fsum(hits) / total, "ratio estimator, t"
    if n < 2:
        return interval_estimate(ratio, n, None, method, standard_error=None)
    squares = math.fsum((hit - ratio * group) ** 2 for hit, group in zip(hits, groups, strict=True))
    error = math.sqrt(n / (n - 1) * squares) / total
    half = statistics.t_quantile(n - 1) * error
    return interval_estimate(ratio, n, (max(0.0, ratio - half), min(highest, ratio + half)), method, standard_error=error)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The 5th, 50th and 95th percentile, linearly interpolated, and the mean."""
    ordered = sorted(values)
    return {name: quantile(ordered, level) for name, level in QUANTILES.items()} | {"mean": mean(ordered)}


def quantile(ordered: Sequence[float], level: float) -> float:
    position = level * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


# ---- Two models ------------------------------------------------------------------------------------------------------


def detectable(diffs: Sequence[float], alpha: float) -> Estimate:
    """The smallest true mean difference that this many prompts detect with 80 % power (Miller 2024)."""
    spread = deviation(diffs)
    if not spread:
        return undefined("all differences are equal" if diffs[1:] else TOO_FEW, n=len(diffs))
    effect = statistics.minimum_detectable_effect(spread, len(diffs), alpha, POWER)
    return {"estimate": effect, "n": len(diffs), "alpha": alpha, "power": POWER}
