"""aligner.statistics and aligner.intervals: golden cases, published examples, enumeration for small n, and the edges."""

import inspect
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import PHI2, TEXTBOOK, differences_of

from aligner import statistics
from aligner.intervals import (
    clopper_pearson_interval,
    exact_bootstrap_interval,
    normal_quantile,
    sign_test,
    tango_interval,
    wilson_interval,
)
from aligner.statistics import (
    benjamini_hochberg,
    cluster_bootstrap_interval,
    clustered_standard_error,
    holm,
    length_controlled_win_rate,
    median_interval,
    minimum_detectable_effect,
    newcombe_paired_interval,
    paired_t_interval,
    pairwise_summary,
    permutation_test,
    t_quantile,
)

COUNTS = st.integers(0, 60)
OUTCOMES = st.tuples(COUNTS, COUNTS, COUNTS).filter(any)
HALVES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), max_size=8)


# ---- The textbook cases ----------------------------------------------------------------------------------------------


def of_table(test):
    return lambda given: test(given["table"][0][1], given["table"][1][0])


def of_trinomial(interval):
    return lambda given: interval(given["b"], given["n"] - given["b"] - given["c"], given["c"])


def newcombe_with_estimate(given):
    (both, only_a), (only_b, neither) = given["table"]
    estimate = (only_a - only_b) / (both + only_a + only_b + neither)
    return estimate, *newcombe_paired_interval(both, only_a, only_b, neither)


def tango_with_estimate(given):
    return (given["b"] - given["c"]) / given["n"], *of_trinomial(tango_interval)(given)


def rejections_of_bonferroni_and_bh(given):
    p_values = given["p"]
    return sum(len(p_values) * p <= 0.05 for p in p_values), sum(q <= 0.05 for q in benjamini_hochberg(p_values))


CHECKS = {
    "wilson": lambda given: wilson_interval(given["k"], given["n"]),
    "clopper": lambda given: clopper_pearson_interval(given["k"], given["n"]),
    "sign_exact": lambda given: sign_test(given["wins"], given["losses"]),
    "mcnemar_exact": of_table(sign_test),
    "newcombe": newcombe_with_estimate,
    "tango": tango_with_estimate,
    "clustered_se": lambda given: clustered_standard_error(given["values"], given["clusters"]),
    "t975": lambda given: t_quantile(given["df"]),
    "bh1995": rejections_of_bonferroni_and_bh,
}
# Methods that the specification does not use: the Jeffreys interval and the asymptotic McNemar test.
UNUSED = {"jeffreys_13_16", "mcnemar_z_cavo"}


def as_list(value):
    return list(value) if isinstance(value, list | tuple) else [value]


def check_of(identity):
    (name,) = (name for name in CHECKS if identity.startswith(name))
    return CHECKS[name]


def test_every_textbook_case_has_its_one_check():
    """`check_of` fails otherwise; UNUSED names the methods that nothing uses."""
    assert set(TEXTBOOK) >= UNUSED and all(check_of(identity) for identity in set(TEXTBOOK) - UNUSED)


@pytest.mark.parametrize("identity", sorted(set(TEXTBOOK) - UNUSED))
def test_textbook_case(identity):
    case = TEXTBOOK[identity]
    published, computed = as_list(case["expected_published"]), as_list(case["computed"])
    result = as_list(check_of(identity)(case["input"]))[: len(published)]
    assert result == pytest.approx(published, abs=0.500001 * 10.0 ** -case["decimals"])
    if "note" not in case:
        assert result == pytest.approx(computed, abs=1e-11)


def test_textbook_adjusted_p_values():
    case = TEXTBOOK["bh1995_rejections"]
    assert benjamini_hochberg(case["input"]["p"]) == pytest.approx(case["computed_bh"], abs=1e-12)
    assert holm(case["input"]["p"]) == pytest.approx(case["computed_holm"], abs=1e-12)


# ---- The phi-2 family ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PHI2["pairs"], ids=lambda pair: f"{pair['a']}_{pair['b']}")
def test_phi2_pair(pair):
    wins, ties, losses, n = pair["wins"], pair["ties"], pair["losses"], pair["n"]
    differences = differences_of(pair)
    assert math.fsum(differences) / n == pytest.approx(pair["mean_diff"], abs=1e-12)
    assert sign_test(wins, losses) == pytest.approx(pair["sign_test_exact_p"], rel=1e-12)
    assert permutation_test(differences) == pytest.approx(pair["exact_sign_flip_p"], rel=1e-9)
    assert paired_t_interval(differences) == pytest.approx(pair["ci95_t"], abs=1e-12)
    assert wilson_interval(wins + ties / 2, n) == pytest.approx(pair["wilson_win_rate_half_ties"], abs=1e-12)
    assert wilson_interval(wins, wins + losses) == pytest.approx(pair["wilson_decisive"], abs=1e-12)
    exact = exact_bootstrap_interval(differences)
    assert exact == pytest.approx(pair["exact_percentile_bootstrap_mean_diff"], abs=1e-12)
    outcomes = [1.0] * wins + [0.5] * ties + [0.0] * losses
    assert exact_bootstrap_interval(outcomes) == pytest.approx(pair["exact_percentile_bootstrap_win_rate"], abs=1e-12)
    assert clustered_standard_error(differences, range(n)) == pytest.approx(pair["se_paired"], abs=1e-12)


def test_phi2_adjusted_p_values():
    p_values = [pair["sign_test_exact_p"] for pair in PHI2["pairs"]]
    assert holm(p_values) == pytest.approx(PHI2["holm"], rel=1e-12)
    assert benjamini_hochberg(p_values) == pytest.approx(PHI2["bh"], rel=1e-12)


# ---- Intervals -------------------------------------------------------------------------------------------------------


def test_signatures_of_public_functions():
    assert list(inspect.signature(tango_interval).parameters) == ["wins", "ties", "losses", "confidence"]
    assert list(inspect.signature(wilson_interval).parameters) == ["successes", "n", "confidence"]


def test_numpy_and_scipy_are_imported_lazily():
    lines = Path(statistics.__file__).read_text(encoding="utf-8").splitlines()
    libraries = ("import numpy", "import scipy", "from numpy", "from scipy")
    assert [line for line in lines if line.startswith(libraries)] == []


def test_interval_of_no_data_is_none():
    assert wilson_interval(0, 0) is None
    assert clopper_pearson_interval(0, 0) is None
    assert tango_interval(0, 0, 0) is None
    assert newcombe_paired_interval(0, 0, 0, 0) is None
    assert paired_t_interval([]) is paired_t_interval([1.0]) is None
    assert exact_bootstrap_interval([]) is exact_bootstrap_interval([1.0]) is None
    assert clustered_standard_error([], []) is clustered_standard_error([1, 2], ["a", "a"]) is None
    assert minimum_detectable_effect(0.5, 0) is None


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_proportion_intervals_hold_the_estimate_and_mirror(counts):
    k, n = counts
    for interval in (wilson_interval, clopper_pearson_interval):
        low, high = interval(k, n)
        assert 0 <= low <= k / n <= high <= 1
        assert interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wider = clopper_pearson_interval(k, n)
    assert wider[0] <= low and wider[1] >= high


@given(OUTCOMES)
def test_tango_lies_in_range_and_mirrors(outcomes):
    wins, ties, losses = outcomes
    low, high = tango_interval(wins, ties, losses)
    assert -1 <= low < high <= 1
    assert tango_interval(losses, ties, wins) == pytest.approx((-high, -low), abs=1e-12)
    narrower = tango_interval(wins, ties, losses, 0.8)
    assert low <= narrower[0] and narrower[1] <= high


INTERVALS = {
    "wilson": lambda wins, ties, losses, level: wilson_interval(wins, wins + ties + losses, level),
    "clopper_pearson": lambda wins, ties, losses, level: clopper_pearson_interval(wins, wins + ties + losses, level),
    "tango": tango_interval,
    "newcombe": lambda wins, ties, losses, level: newcombe_paired_interval(ties, wins, losses, 0, level),
    "paired_t": lambda wins, ties, losses, level: paired_t_interval(outcomes_of(wins, ties, losses), level),
    "bootstrap": lambda wins, ties, losses, level: exact_bootstrap_interval(outcomes_of(wins, ties, losses), level),
}


def outcomes_of(wins, ties, losses):
    return [1.0] * wins + [0.0] * ties + [-1.0] * losses


@pytest.mark.parametrize("name", INTERVALS)
@given(st.tuples(*[st.integers(0, 12)] * 3).filter(lambda counts: sum(counts) > 1), st.floats(0.5, 0.99), st.floats(0.5, 0.99))
@settings(max_examples=60, deadline=None)
def test_higher_confidence_never_narrows_an_interval(name, counts, one, other):
    low, high = sorted([one, other])
    narrow, wide = INTERVALS[name](*counts, low), INTERVALS[name](*counts, high)
    assert wide[0] <= narrow[0] + 1e-9 and narrow[1] <= wide[1] + 1e-9


@pytest.mark.parametrize("name", ["tango", "paired_t", "newcombe"])
@given(st.tuples(*[st.integers(0, 40)] * 3).filter(lambda counts: sum(counts) > 1))
def test_difference_intervals_contain_the_estimate(name, counts):
    low, high = INTERVALS[name](*counts, 0.95)
    assert low - 1e-9 <= (counts[0] - counts[2]) / sum(counts) <= high + 1e-9


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95]))
def test_clopper_pearson_ends_have_tails_of_half_alpha(counts, confidence):
    """P(X >= k | low) = P(X <= k | high) = alpha / 2, with the tails summed term by term."""
    k, n = counts
    low, high = clopper_pearson_interval(k, n, confidence)

    def chance(ks, p):
        return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in ks)

    assert low == 0 if k == 0 else chance(range(k, n + 1), low) == pytest.approx((1 - confidence) / 2, rel=1e-6)
    assert high == 1 if k == n else chance(range(k + 1), high) == pytest.approx((1 - confidence) / 2, rel=1e-6)


@given(OUTCOMES)
def test_tango_ends_have_a_score_statistic_of_z(outcomes):
    wins, ties, losses = outcomes
    n, z = sum(outcomes), normal_quantile(0.95)
    for end, sign in zip(tango_interval(wins, ties, losses), (1, -1), strict=True):
        if -1 < end < 1:
            q = most_likely_loss(wins, losses, n, end)
            score = (wins - losses - n * end) / math.sqrt(n * (2 * q + end * (1 - end)))
            assert score == pytest.approx(sign * z, abs=1e-6)


def most_likely_loss(wins, losses, n, difference):
    """The loss probability that maximises W log(q + D) + L log q + T log(1 - 2q - D), by golden-section search."""

    def likelihood(q):
        cells = ((wins, q + difference), (losses, q), (n - wins - losses, 1 - 2 * q - difference))
        return sum(count * math.log(max(share, 1e-300)) for count, share in cells if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(200):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if likelihood(left) >= likelihood(right) else (left, high)
    return (low + high) / 2


def test_tango_of_only_ties_or_only_wins():
    z = normal_quantile(0.95)
    assert tango_interval(0, 20, 0) == pytest.approx((-(z**2) / (20 + z**2), z**2 / (20 + z**2)), abs=1e-12)
    low, high = tango_interval(20, 0, 0)
    assert 0 < low < 1 and high == 1.0


@pytest.mark.parametrize("net", [0.0, 0.2])
def test_tango_coverage_at_n_40(net):
    """Exact coverage of the 95 % interval at 40 % ties, over all outcomes of 40 prompts; the published worst case is .943."""
    n, tie = 40, 0.4
    win, loss = (1 - tie + net) / 2, (1 - tie - net) / 2
    covered = 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            low, high = tango_interval(wins, n - wins - losses, losses)
            if low <= net <= high:
                ways = math.comb(n, wins) * math.comb(n - wins, losses)
                covered += ways * win**wins * loss**losses * tie ** (n - wins - losses)
    assert 0.94 < covered < 0.98


@given(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS).filter(any))
def test_newcombe_contains_the_estimate_and_mirrors(table):
    both, only_a, only_b, neither = table
    low, high = newcombe_paired_interval(both, only_a, only_b, neither)
    assert -1 - 1e-12 <= low <= (only_a - only_b) / sum(table) <= high <= 1 + 1e-12
    assert newcombe_paired_interval(both, only_b, only_a, neither) == pytest.approx((-high, -low), abs=1e-12)


# ---- Tests -----------------------------------------------------------------------------------------------------------


def test_p_of_ties_alone_is_one():
    assert sign_test(0, 0) == permutation_test([]) == permutation_test([0.0, 0.0]) == 1.0


@given(COUNTS, COUNTS)
def test_sign_test_is_symmetric(wins, losses):
    assert sign_test(wins, losses) == sign_test(losses, wins)
    assert 0 < sign_test(wins, losses) <= 1


@given(st.integers(0, 10).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_sign_test_equals_enumeration(counts):
    """Two-sided: both tails at least as extreme as the observation."""
    wins, n = counts
    heads = [sum(sequence) for sequence in itertools.product((0, 1), repeat=n)]
    far = max(wins, n - wins)
    as_far = sum(max(h, n - h) >= far for h in heads) / 2**n
    assert sign_test(wins, n - wins) == pytest.approx(as_far, abs=1e-12)


@pytest.mark.parametrize(
    ("alpha", "fewest"),
    [(0.05, [6, 8, 10, 12, 13, 15, 17, 18, 20, 21, 23]), (0.05 / 3, [7, 10, 12, 14, 16, 18, 19, 21, 22, 24, 26])],
)
def test_fewest_wins_that_can_be_significant(alpha, fewest):
    found = [next(w for w in range(losses, 99) if sign_test(w, losses) < alpha) for losses in range(11)]
    assert found == fewest


@given(HALVES)
def test_permutation_equals_enumeration(differences):
    observed = abs(sum(differences))
    flips = list(itertools.product((1, -1), repeat=len(differences)))
    extreme = sum(abs(sum(s * d for s, d in zip(flip, differences, strict=True))) >= observed for flip in flips)
    assert permutation_test(differences) == pytest.approx(extreme / len(flips), abs=1e-12)
    assert permutation_test([-d for d in differences]) == permutation_test(differences)
    assert permutation_test(differences[::-1]) == permutation_test(differences)


@given(COUNTS, COUNTS)
def test_permutation_of_whole_steps_is_the_sign_test(wins, losses):
    assert permutation_test([1] * wins + [-1] * losses) == pytest.approx(sign_test(wins, losses), rel=1e-9)


def test_permutation_off_the_lattice_is_sampled_and_repeatable():
    rng = random.Random(1)
    differences = [rng.gauss(0.3, 1) for _ in range(40)]
    p = permutation_test(differences)
    assert p == permutation_test(differences[::-1]) == permutation_test([-d for d in differences])
    near = permutation_test([round(d, 2) for d in differences])
    assert p == pytest.approx(near, abs=4 * math.sqrt(near * (1 - near) / 10_000) + 0.002)


def test_lattice_of_unequal_numbers_of_groups():
    assert permutation_test([1 / 3, 1 / 3, 1 / 4]) == pytest.approx(0.25, abs=1e-12)
    assert permutation_test([1 / 3, -1 / 3]) == 1.0


# ---- Bootstrap and standard errors -----------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 1 / 3, 0.5, 1.0]), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_bootstrap_equals_enumeration(scores):
    n = len(scores)
    means = np.sort([math.fsum(resample) / n for resample in itertools.product(scores, repeat=n)])
    expected = [means[math.ceil(tail * n**n - 1e-6) - 1] for tail in (0.025, 0.975)]
    assert exact_bootstrap_interval(scores) == pytest.approx(expected, abs=1e-12)


def test_bootstrap_of_equal_scores_has_no_width():
    assert exact_bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    assert paired_t_interval([0.25] * 9) == (0.25, 0.25)


def test_bootstrap_off_the_lattice_is_sampled_and_near_the_lattice_one():
    rng = random.Random(2)
    scores = [rng.random() for _ in range(60)]
    sampled = exact_bootstrap_interval(scores)
    assert sampled == exact_bootstrap_interval(scores[::-1])
    assert sampled == pytest.approx(exact_bootstrap_interval([round(score, 2) for score in scores]), abs=0.006)


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=30))
@settings(deadline=None)
def test_mean_intervals_mirror(steps):
    differences = [step / 4 for step in steps]
    for interval in (paired_t_interval, exact_bootstrap_interval):
        low, high = interval(differences)
        assert low <= high
        assert interval([-d for d in differences]) == pytest.approx((-high, -low), abs=1e-12)


@given(
    st.lists(st.integers(-4, 4), min_size=2, max_size=20).flatmap(lambda steps: st.tuples(st.just(steps), st.permutations(steps)))
)
@settings(max_examples=60, deadline=None)
def test_order_of_prompts_changes_no_figure(both):
    for measure in (permutation_test, paired_t_interval, exact_bootstrap_interval):
        one, other = (measure([step / 4 for step in steps]) for steps in both)
        assert one == pytest.approx(other, abs=1e-12)


def test_clustered_error_of_duplicated_prompts_is_unchanged():
    scores = [0.0, 0.5, 1.0, 0.25, 0.75]
    once = clustered_standard_error(scores, range(5))
    assert clustered_standard_error(scores * 2, list(range(5)) * 2) == pytest.approx(once, abs=1e-15)
    assert once == pytest.approx(np.std(scores, ddof=1) / math.sqrt(5), abs=1e-15)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_cluster_is_an_error(missing):
    with pytest.raises(ValueError, match=r"clusters\[1\] is missing, got"):
        clustered_standard_error([0.0, 1.0], ["a", missing])
    with pytest.raises(ValueError, match=r"clusters\[1\] is missing, got"):
        cluster_bootstrap_interval([0.0, 1.0], ["a", missing])


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=3), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_cluster_bootstrap_equals_enumeration(members):
    """Every ordered draw of C clusters is equally likely; its mean is over all of its scores."""
    count = len(members)
    means = []
    for draw in itertools.product(members, repeat=count):
        scores = [score for each in draw for score in each]
        means.append(math.fsum(scores) / len(scores))
    expected = [sorted(means)[math.ceil(tail * count**count - 1e-6) - 1] for tail in (0.025, 0.975)]
    scores = [score for each in members for score in each]
    clusters = [number for number, each in enumerate(members) for _ in each]
    assert cluster_bootstrap_interval(scores, clusters) == pytest.approx(expected, abs=1e-9)


def test_cluster_bootstrap_of_single_scores_is_the_plain_bootstrap():
    scores = [0.0, 0.5, 0.5, 1.0, 0.25, 0.0, 1.0, 0.75, 0.5]
    assert cluster_bootstrap_interval(scores, range(9)) == pytest.approx(exact_bootstrap_interval(scores), abs=1e-12)
    assert cluster_bootstrap_interval(scores, ["one"] * 9) is cluster_bootstrap_interval([], []) is None


def test_cluster_bootstrap_of_many_clusters_is_seeded_and_ignores_order():
    """Forty clusters of one score each: within .01 of the exact bootstrap."""
    rng = random.Random(5)
    scores = [rng.randrange(5) / 4 for _ in range(40)]
    found = cluster_bootstrap_interval(scores, range(40))
    assert found == cluster_bootstrap_interval(scores[::-1], range(40))
    assert found == pytest.approx(exact_bootstrap_interval(scores), abs=0.01)


@pytest.mark.parametrize(("n", "rank"), [(5, None), (6, 1), (8, 1), (9, 2), (20, 6), (100, 40)])
def test_median_interval_at_tabled_ranks(n, rank):
    """The ranks in Conover's and Lehmann's tables for 95 %: the 6th from both ends of 20 values, the 40th of 100."""
    values = random.Random(n).sample(range(1, n + 1), n)
    assert median_interval(values) == (rank and (rank, n + 1 - rank))


@given(st.integers(6, 60), st.sampled_from([0.8, 0.9, 0.95]))
@settings(deadline=None, max_examples=60)
def test_median_interval_has_the_largest_valid_rank(n, confidence):
    """P(X < k), with X of n values below the median, by counting."""
    low, high = median_interval(range(1, n + 1), confidence)
    below = [sum(math.comb(n, i) for i in range(rank)) / 2**n for rank in (int(low), int(low) + 1)]
    assert low + high == n + 1
    assert 2 * below[0] <= 1 - confidence + 1e-12 < 2 * below[1] + 2e-12


# ---- Many comparisons, power -----------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), max_size=8), st.randoms())
def test_adjusted_p_values_keep_order_and_bounds(p_values, rng):
    order = list(range(len(p_values)))
    rng.shuffle(order)
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust(p_values)
        assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
        assert adjust([p_values[index] for index in order]) == [adjusted[index] for index in order]
    assert all(q <= p for q, p in zip(benjamini_hochberg(p_values), holm(p_values), strict=True))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_equals_closed_bonferroni_testing(p_values):
    """The adjusted p of a hypothesis is the largest |S| min(p of S) over all sets S that contain it, at most 1."""
    numbers = range(len(p_values))
    sets = [each for size in range(1, len(p_values) + 1) for each in itertools.combinations(numbers, size)]
    worst = [max(len(each) * min(p_values[i] for i in each) for each in sets if number in each) for number in numbers]
    assert holm(p_values) == pytest.approx([min(1, p) for p in worst], abs=1e-12)


@pytest.mark.parametrize(
    ("sd", "n", "points"),
    [(0.432, 20, 27), (0.432, 805, 4.3), (0.575, 80, 18), (0.575, 2000, 3.6)],
)
def test_minimum_detectable_effect_matches_published_values(sd, n, points):
    assert 100 * minimum_detectable_effect(sd, n) == pytest.approx(points, abs=0.51 if points >= 10 else 0.051)


# ---- Judge preferences -----------------------------------------------------------------------------------------------


def test_pairwise_summary_by_hand():
    """Shares 1, .5, .5, .2, 0: mean .44, sd .3912, one win, two draws, two losses; the null does not count."""
    summary = pairwise_summary([2, 1.5, 0, 1.2, None, 1])
    assert summary == {
        "win_rate": pytest.approx(44.0, abs=1e-12),
        "standard_error": pytest.approx(100 * np.std([1, 0.5, 0.5, 0.2, 0], ddof=1) / math.sqrt(5), abs=1e-12),
        "n_wins": 1,
        "n_wins_base": 2,
        "n_draws": 2,
        "n_total": 5,
        "discrete_win_rate": 40.0,
    }


def test_pairwise_summary_of_nothing():
    assert pairwise_summary([None]) == pairwise_summary([])
    empty = pairwise_summary([])
    assert empty["win_rate"] is empty["standard_error"] is empty["discrete_win_rate"] is None
    assert empty["n_total"] == 0
    assert pairwise_summary([2])["standard_error"] is None


@pytest.mark.parametrize("value", [0.5, 2.1, -1, float("nan"), float("inf"), "A"])
def test_preference_out_of_range_is_an_error(value):
    with pytest.raises(ValueError, match=r"preferences\[1\] must"):
        pairwise_summary([1.0, value])


def length_data(seed=3, n=200):
    rng = random.Random(seed)
    lengths = [rng.randint(50, 900) for _ in range(n)]
    baseline = [rng.randint(200, 700) for _ in range(n)]
    chances = (1 / (1 + math.exp(-0.4 - (ours - theirs) / 200)) for ours, theirs in zip(lengths, baseline, strict=True))
    return [1 + 0.9 * (rng.random() < chance) + 0.1 * rng.random() for chance in chances], lengths, baseline


def test_length_controlled_win_rate_solves_the_likelihood_equations():
    """Compares with another solver, and with HC0 from its definition: B^-1 M B^-1, with B and M summed in loops."""
    from scipy.optimize import minimize

    preferences, lengths, baseline = length_data()
    gaps = np.array(baseline) - np.array(lengths)
    x, y = np.tanh(gaps / np.std(gaps, ddof=1)), np.array(preferences) - 1

    def loss(weights):
        logit = weights[0] + weights[1] * x
        return (np.logaddexp(0, logit) - y * logit).sum()

    a, t = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x
    chance = 1 / (1 + np.exp(-(a + t * x)))
    bread, meat = np.zeros((2, 2)), np.zeros((2, 2))
    for xi, yi, pi in zip(x, y, chance, strict=True):
        row = np.array([1.0, xi])
        bread += pi * (1 - pi) * np.outer(row, row)
        meat += (yi - pi) ** 2 * np.outer(row, row)
    variance = (np.linalg.inv(bread) @ meat @ np.linalg.inv(bread))[0, 0]
    rate = 1 / (1 + math.exp(-a))
    result = length_controlled_win_rate(preferences, lengths, baseline)
    assert result["estimate"] == pytest.approx(100 * rate, abs=1e-4)
    assert result["standard_error"] == pytest.approx(100 * rate * (1 - rate) * math.sqrt(variance), abs=1e-4)


def test_length_control_mirrors_and_ignores_order():
    preferences, lengths, baseline = length_data()
    result = length_controlled_win_rate(preferences, lengths, baseline)
    mirrored = length_controlled_win_rate([3 - p for p in preferences], baseline, lengths)
    assert mirrored["estimate"] == pytest.approx(100 - result["estimate"], abs=1e-9)
    assert mirrored["standard_error"] == pytest.approx(result["standard_error"], abs=1e-9)
    reverse = length_controlled_win_rate(preferences[::-1], lengths[::-1], baseline[::-1])
    assert reverse == pytest.approx(result, abs=1e-12)


def test_length_control_uses_unparsed_rows_for_the_scale_only():
    preferences, lengths, baseline = length_data()
    more = length_controlled_win_rate([*preferences, None], [*lengths, 5000], [*baseline, 10])
    result = length_controlled_win_rate(preferences, lengths, baseline)
    assert more["estimate"] != result["estimate"]
    assert more["estimate"] == pytest.approx(result["estimate"], abs=5)


@pytest.mark.parametrize(
    ("preferences", "lengths", "baseline"),
    [
        ([], [], []),
        ([2, 1], [5, 9], [7, 7]),
        ([None, None, None], [1, 2, 3], [3, 2, 2]),
        ([2, 1, 2, 1], [5, 5, 5, 5], [7, 7, 7, 7]),
        ([2, 2, 2, 2], [5, 9, 7, 1], [7, 7, 7, 7]),
        ([1, 1, 2, 2], [1, 2, 8, 9], [5, 5, 5, 5]),
    ],
)
def test_length_control_is_none_where_data_do_not_determine_it(preferences, lengths, baseline):
    result = length_controlled_win_rate(preferences, lengths, baseline)
    assert result == {"estimate": None, "standard_error": None}


# ---- Wrong input -----------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(NAN, 10), "successes must be a finite number, got nan"),
        (lambda: wilson_interval(11, 10), r"successes must lie in \[0, 10\], got 11"),
        (lambda: wilson_interval(1, -1), "n must be a whole number >= 0, got -1"),
        (lambda: wilson_interval(1, 2, 95), "confidence must lie between 0 and 1, got 95"),
        (lambda: clopper_pearson_interval(1.5, 10), "successes must be a whole number >= 0, got 1.5"),
        (lambda: tango_interval(1, -2, 3), "ties must be a whole number >= 0, got -2"),
        (lambda: tango_interval(1, 2, NAN), "losses must be a whole number >= 0, got nan"),
        (lambda: newcombe_paired_interval(1, 2, "3", 4), "only_b must be a whole number >= 0, got '3'"),
        (lambda: sign_test(True, 2), "wins must be a whole number >= 0, got True"),
        (lambda: permutation_test([0.5, NAN]), r"differences\[1\] must be a finite number, got nan"),
        (lambda: paired_t_interval([0.5, None]), r"differences\[1\] must be a finite number, got None"),
        (lambda: exact_bootstrap_interval([math.inf, 1]), r"scores\[0\] must be a finite number, got inf"),
        (lambda: clustered_standard_error([1, 2], ["a"]), "lists must be of one length, got"),
        (lambda: holm([0.5, 1.5]), r"p_values\[1\] must lie in \[0, 1\], got 1.5"),
        (lambda: benjamini_hochberg([NAN]), r"p_values\[0\] must be a finite number, got nan"),
        (lambda: minimum_detectable_effect(-1, 10), "sd must lie in"),
        (lambda: minimum_detectable_effect(1, 10, power=1), "power must lie between 0 and 1, got 1"),
        (lambda: t_quantile(0), "degrees must be > 0, got 0"),
        (lambda: length_controlled_win_rate([1], [2], [3, 4]), "lists must be of one length, got"),
        (lambda: length_controlled_win_rate([1], [NAN], [3]), r"lengths\[0\] must be a finite number, got nan"),
    ],
)
def test_wrong_input_is_named_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(st.lists(st.floats(-8192, 8192, width=16), min_size=2, max_size=12))
@settings(max_examples=40, deadline=None)
def test_any_finite_scores_give_finite_intervals(scores):
    for interval in (exact_bootstrap_interval, paired_t_interval):
        assert all(math.isfinite(end) for end in interval(scores))
    assert 0 < permutation_test(scores) <= 1
