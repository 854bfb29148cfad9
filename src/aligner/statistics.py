"""Intervals and tests for comparing language models on the same prompts.

Pure functions. An interval is a tuple (low, high); a p-value is a two-sided float. A result that is undefined for the data is
None, and the docstring says when. Input that cannot be data raises ValueError with the value. n counts prompts; wins, ties and
losses are those of model A against model B; a difference is score A - score B on one prompt.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from statistics import NormalDist

from aligner.intervals import (
    LATTICE_TOLERANCE,
    RESAMPLES,
    RESAMPLING_SEED,
    Interval,
    checked_count,
    checked_number,
    checked_numbers,
    checked_share,
    checked_within,
    clopper_pearson_interval,
    defined,
    deviation,
    mean,
    normal_quantile,
    on_lattice,
    require_same_length,
    sign_test,
    tail_shares,
    wilson_interval,
)

__all__ = ["clopper_pearson_interval", "sign_test", "wilson_interval"]  # other programs import them from here

MOST_ENUMERATED_CLUSTERS = 9
SIGN_FLIP_OPERATIONS = 2 * 10**9


# ---- Wins, ties and losses -------------------------------------------------------------------------------------------


def newcombe_paired_interval(
    both: int,
    only_a: int,
    only_b: int,
    neither: int,
    confidence: float = 0.95,
) -> Interval | None:
    """Newcombe's square-and-add interval of the difference of two paired proportions (Newcombe 1998, method 10).

    The 2x2 table (A and B right, only A, only B, neither) gives the rates p_a and p_b with their Wilson intervals. Then
    low = p_a-p_b - sqrt(x^2 - 2 phi x y + y^2), x = p_a - low_a, y = high_b - p_b; high likewise with the other ends.
    None without data.
    """
    both, only_a = checked_count("both", both), checked_count("only_a", only_a)
    only_b, neither = checked_count("only_b", only_b), checked_count("neither", neither)
    n = both + only_a + only_b + neither
    if n == 0:
        return None
    a, b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = defined(wilson_interval(both + only_a, n, confidence))
    low_b, high_b = defined(wilson_interval(both + only_b, n, confidence))
    phi = _corrected_phi(both, only_a, only_b, neither)
    below = _correlated_norm(a - low_a, high_b - b, phi)
    above = _correlated_norm(high_a - a, b - low_b, phi)
    return a - b - below, a - b + above


def _correlated_norm(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))


def _corrected_phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """The phi coefficient with continuity correction (n/2 off a positive numerator); 0 when a margin is empty."""
    n = both + only_a + only_b + neither
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance = both * neither - only_a * only_b
    corrected = max(0.0, covariance - n / 2) if covariance > 0 else covariance
    return corrected / math.sqrt(margins) if margins else 0.0


# ---- Differences and scores ------------------------------------------------------------------------------------------


def t_quantile(degrees: float, confidence: float = 0.95) -> float:
    """t such that Student's t with these degrees of freedom lies within +-t with this probability; 12.7 for 1 and 0.95."""
    from scipy.special import stdtrit

    if checked_number("degrees", degrees) <= 0:
        raise ValueError(f"degrees must be > 0, got {degrees!r}")
    return float(stdtrit(degrees, (1 + checked_share("confidence", confidence)) / 2))


def paired_t_interval(differences: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """The t interval of the mean difference: d +- t_{n-1} sd(d)/sqrt(n), sd with n-1 (Miller 2024, arXiv 2411.00640).

    Meant for n >= 100; below that its coverage is too low. None for n < 2, where sd is undefined. It has no width when all
    differences are equal.
    """
    values = checked_numbers("differences", differences)
    checked_share("confidence", confidence)
    spread = deviation(values)
    if spread is None:
        return None
    half = t_quantile(len(values) - 1, confidence) * spread / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """The exact interval of a median, by inverting the sign test: from the k-th smallest to the k-th largest value.

    k is the largest with 2 P(X < k) <= 1 - confidence for X ~ Binomial(n, 1/2), so the coverage is at least `confidence` for any
    distribution (David and Nagaraja 2003, section 7.1). None where no such k exists: n < 6 for 0.95.
    """
    ordered = sorted(checked_numbers("values", values))
    rank = _median_rank(len(ordered), checked_share("confidence", confidence))
    return (ordered[rank - 1], ordered[-rank]) if rank else None


@lru_cache(maxsize=64)
def _median_rank(n: int, confidence: float) -> int:
    """Integer arithmetic: `below` is 2^n P(X < rank), `term` is C(n, rank)."""
    rank, below, term, orders = 0, 0, 1, 2**n
    while 2 * (below + term) / orders <= 1 - confidence:
        below, term, rank = below + term, term * (n - rank) // (rank + 1), rank + 1
    return rank


def permutation_test(differences: Sequence[float]) -> float:
    """Fisher's sign-flip test of paired differences: P(|sum of +-|d_i|| >= |sum of d_i|), every sign a fair coin.

    Exact on a lattice, by convolution; otherwise from 10,000 flips with a fixed seed, p = (hits + 1) / (flips + 1).
    p = 1 when there are no differences or all are 0.
    """
    values = [value for value in checked_numbers("differences", differences) if value]
    lattice = on_lattice(values)
    if lattice and len(values) * sum(map(abs, lattice[0])) <= SIGN_FLIP_OPERATIONS:
        return _exact_sign_flip(lattice[0])
    return _sampled_sign_flip(values)


def _exact_sign_flip(steps: Sequence[int]) -> float:
    """`chance[s]` is the probability that the differences with a minus sign sum to s; each difference halves and shifts it.

    Only sums up to (total - observed) / 2 are kept: they form the tail, and no larger sum leads back to them.
    """
    import numpy as np

    sizes, observed = sorted(map(abs, steps)), abs(sum(steps))
    if observed == 0:
        return 1.0
    limit, reach = (sum(sizes) - observed) // 2, 0
    chance = np.zeros(limit + 1)
    chance[0] = 1.0
    for size in sizes:
        reach = min(reach + size, limit)
        chance[: reach + 1] *= 0.5
        if size <= reach:
            chance[size : reach + 1] += chance[: reach + 1 - size].copy()
    return min(1.0, 2 * math.fsum(chance))


def _sampled_sign_flip(values: Sequence[float]) -> float:
    import numpy as np

    sizes, observed = np.sort(np.abs(values)), abs(math.fsum(values))
    generator = np.random.Generator(np.random.PCG64(RESAMPLING_SEED))
    threshold = observed - LATTICE_TOLERANCE * sizes.sum()
    signs = (generator.integers(0, 2, sizes.size) * 2.0 - 1.0 for _ in range(RESAMPLES))
    return (1 + sum(bool(abs((sign * sizes).sum()) >= threshold) for sign in signs)) / (1 + RESAMPLES)


def clustered_standard_error(scores: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """The cluster-robust standard error of the mean, CR1 (Miller 2024, appendix A).

    sqrt(sum_c (sum_{i in c} (s_i - mean))^2) / n * sqrt(C/(C-1)), for use with t of C-1 degrees of freedom. When every score is
    its own cluster, it is sd/sqrt(n). None for fewer than two clusters. ValueError for a missing cluster.
    """
    members = _members(scores, clusters)
    count = len(members)
    if count < 2:
        return None
    n, middle = sum(map(len, members)), mean(itertools.chain(*members))
    squares = math.fsum(math.fsum(value - middle for value in each) ** 2 for each in members)
    return math.sqrt(squares * count / (count - 1)) / n


def _members(scores: Sequence[float], clusters: Sequence[Hashable]) -> list[list[float]]:
    """The scores of each cluster. ValueError for a missing cluster."""
    values = checked_numbers("scores", scores)
    require_same_length(scores=values, clusters=clusters)
    members: dict[Hashable, list[float]] = {}
    for index, (value, cluster) in enumerate(zip(values, clusters, strict=True)):
        if cluster is None or cluster != cluster:
            raise ValueError(f"clusters[{index}] is missing, got {cluster!r}")
        members.setdefault(cluster, []).append(value)
    return list(members.values())


def cluster_bootstrap_interval(
    scores: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95
) -> Interval | None:
    """The percentile bootstrap interval of the mean, resampling whole clusters (Davison and Hinkley 1997, section 3.8).

    A draw of C clusters has the mean sum of their scores / sum of their sizes. Up to 9 clusters, every draw is counted with its
    probability (at most 24,310 distinct draws), without a seed; above, 10,000 draws with a fixed seed. With few clusters it is
    too narrow, as any interval from few independent values is. None for fewer than two clusters. ValueError for a missing
    cluster.
    """
    import numpy as np

    tails = tail_shares(confidence)
    totals = np.array(sorted((math.fsum(each), len(each)) for each in _members(scores, clusters)))
    if len(totals) < 2:
        return None
    drawn, chances = _cluster_draws(len(totals))
    sums = (drawn[:, :, None] * totals).sum(axis=1)
    means = sums[:, 0] / sums[:, 1]
    order = np.argsort(means, kind="stable")
    reached = np.cumsum(chances[order])
    low, high = (means[order][np.argmax(reached >= tail - LATTICE_TOLERANCE)] for tail in tails)
    return float(low), float(high)


@lru_cache(maxsize=16)
def _cluster_draws(count: int):
    """The count of each cluster in each draw, shape (draws, clusters), and the probability of each draw."""
    import numpy as np

    if count > MOST_ENUMERATED_CLUSTERS:
        generator = np.random.Generator(np.random.PCG64(RESAMPLING_SEED))
        return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES), np.full(RESAMPLES, 1 / RESAMPLES)
    draws = [Counter(draw) for draw in itertools.combinations_with_replacement(range(count), count)]
    orders = [math.factorial(count) / math.prod(map(math.factorial, draw.values())) for draw in draws]
    return np.array([[draw[each] for each in range(count)] for draw in draws]), np.array(orders) / count**count


# ---- Multiple comparisons and power ----------------------------------------------------------------------------------


def _p_values(p_values: Sequence[float]) -> list[float]:
    return [checked_within(f"p_values[{index}]", p, 0, 1) for index, p in enumerate(p_values)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the r-th smallest of m times m-r+1, made monotone (Holm 1979).

    They control the probability of any false claim in the family, under any dependence.
    """
    values = _p_values(p_values)
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """q-values in the order given: the smallest over j >= r of m p_(j) / j (Benjamini and Hochberg 1995).

    They control the expected share of false claims among those made.
    """
    values = _p_values(p_values)
    adjusted, smallest = [0.0] * len(values), 1.0
    order = sorted(range(len(values)), key=values.__getitem__)
    for rank in range(len(values), 0, -1):
        smallest = min(smallest, values[order[rank - 1]] * (len(values) / rank))
        adjusted[order[rank - 1]] = smallest
    return adjusted


def minimum_detectable_effect(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest true mean difference that n prompts detect with this power: (z_{1-alpha/2} + z_power) sd / sqrt(n).

    sd is the standard deviation of the differences; the result has their unit. None without prompts (n = 0).
    """
    sd, n = checked_within("sd", sd, 0, math.inf), checked_count("n", n)
    z = normal_quantile(1 - checked_share("alpha", alpha)) + NormalDist().inv_cdf(checked_share("power", power))
    return z * sd / math.sqrt(n) if n else None


# ---- Judge preferences, as AlpacaEval reports them -------------------------------------------------------------------


def _preferences(preferences: Sequence[float | None]) -> list[float | None]:
    """Preferences as the model's share y = p - 1 in [0, 1]; 0, an older code for a draw, counts as 1.5."""
    return [
        None if value is None else 0.5 if value == 0 else checked_within(f"preferences[{index}]", value, 1, 2) - 1
        for index, value in enumerate(preferences)
    ]


def pairwise_summary(preferences: Sequence[float | None]) -> dict[str, float | int | None]:
    """AlpacaEval's leaderboard fields.

    They are win_rate, standard_error, n_wins, n_wins_base, n_draws, n_total and discrete_win_rate.
    A preference lies in [1, 2]: 2 for the model, 1 for the baseline, 1.5 (or 0) for a draw. None is an unparsed verdict and
    does not count, so n_total is the number of parsed ones. The three rates are in percent: win_rate = 100 mean(p - 1),
    standard_error = 100 sd/sqrt(n), discrete_win_rate = 100 (wins + draws/2) / n. Rates are None when n_total = 0, the
    standard error when n_total < 2.
    """
    shares = [share for share in _preferences(preferences) if share is not None]
    n, draws, spread = len(shares), shares.count(0.5), deviation(shares)
    wins = sum(share > 0.5 for share in shares)
    return {
        "win_rate": 100 * math.fsum(shares) / n if n else None,
        "standard_error": None if spread is None else 100 * spread / math.sqrt(n),
        "n_wins": wins,
        "n_wins_base": n - wins - draws,
        "n_draws": draws,
        "n_total": n,
        "discrete_win_rate": 100 * (wins + draws / 2) / n if n else None,
    }


def length_controlled_win_rate(
    preferences: Sequence[float | None], lengths: Sequence[float], baseline_lengths: Sequence[float]
) -> dict[str, float | None]:
    """The win rate at equal length, {"estimate", "standard_error"} in percent: 100 sigma(a) from a logistic model.

    logit P(model wins) = t tanh(d / sd(d)) + a, d = baseline length - model length in characters, sd with n-1 over all
    rows, including unparsed ones; unpenalised, with soft labels y = p - 1. The error is HC0 by the delta method. It follows
    AlpacaEval 2 (arXiv 2404.04475), without its prompt difficulties and gamed baselines.

    A diagnostic, not a headline: where one model is nearly always longer, it extrapolates. Both values are None when the data
    do not determine the fit: fewer than three parsed rows, all d equal, or wins and losses separated by length.
    """
    shares = _preferences(preferences)
    model, baseline = checked_numbers("lengths", lengths), checked_numbers("baseline_lengths", baseline_lengths)
    require_same_length(preferences=shares, lengths=model, baseline_lengths=baseline)
    gaps = [theirs - ours for ours, theirs in zip(model, baseline, strict=True)]
    spread = deviation(gaps)
    rows = [(math.tanh(gap / spread), y) for gap, y in zip(gaps, shares, strict=True) if spread and y is not None]
    if len(rows) < 3 or _separated_by_length(rows):
        return {"estimate": None, "standard_error": None}
    intercept, variance = _fit_intercept(rows)
    rate = 0.5 * (1 + math.tanh(intercept / 2))
    return {"estimate": 100 * rate, "standard_error": 100 * rate * (1 - rate) * math.sqrt(variance)}


def _separated_by_length(rows: Sequence[tuple[float, float]]) -> bool:
    """Whether a threshold of x separates wins from losses, or all x are equal; the fit then has no finite maximum."""
    won = [x for x, y in rows if y > 0]
    lost = [x for x, y in rows if y < 1]
    if not won or not lost or len({x for x, _ in rows}) == 1:
        return True
    return min(won) >= max(lost) or min(lost) >= max(won)


def _fit_intercept(rows: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The intercept of the logistic regression of y on x, and its HC0 variance: H^-1 (sum of squared scores) H^-1."""
    import numpy as np

    x, y = np.array(sorted(rows)).T
    design = np.stack([np.ones_like(x), x])

    def derivatives(weights):
        logit = weights[0] + weights[1] * x
        chance = 0.5 * (1 + np.tanh(logit / 2))
        value = (y * logit - np.logaddexp(0, logit)).sum()
        return value, ((y - chance) * design).sum(axis=1), -_gram(design, chance * (1 - chance))

    weights = _newton(derivatives, np.zeros(2))
    residual = y - 0.5 * (1 + np.tanh((weights[0] + weights[1] * x) / 2))
    inverse = np.linalg.inv(derivatives(weights)[2])
    return float(weights[0]), float((inverse @ _gram(design, residual**2) @ inverse)[0, 0])


def _newton(derivatives: Callable, start):
    """The maximum of a concave function by Newton's method; a step is halved while it decreases the value.

    derivatives(x) -> value, gradient, Hessian. The caller ensures that a finite maximum exists.
    """
    import numpy as np

    x = start
    value, gradient, hessian = derivatives(x)
    for _ in range(200):
        step = -np.linalg.solve(hessian, gradient)
        while derivatives(x + step)[0] < value - 1e-12 * abs(value):
            step = step / 2
        x = x + step
        value, gradient, hessian = derivatives(x)
        if np.all(np.abs(step) <= 1e-12 * (1 + np.abs(x))):
            break
    return x


def _gram(design, weights):
    """sum_i w_i x_i x_i^T, summed in a fixed order that does not depend on the number of threads."""
    return (design[:, None, :] * design[None, :, :] * weights).sum(axis=2)
