"""aligner.scoring.best_of_n: expectations over all draws, the curve, and over-optimisation."""

import itertools
import math
import random

import pytest

from aligner.scoring.best_of_n import curves, expected, figures_of, kl_of_best_of_n, pick_probabilities, points


def sample(reward, hit_rate, precision=1.0):
    return {"reward": reward, "hit_rate": hit_rate, "precision": precision, "words": 10.0, "repeats": 0.0}


def test_the_divergence_of_gao_et_al():
    """log 4 - 3/4; one sample is the policy itself."""
    assert kl_of_best_of_n(1) == 0
    assert kl_of_best_of_n(4) == pytest.approx(math.log(4) - 0.75)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_expectation_is_the_mean_over_all_draws(n):
    source = random.Random(n)
    samples = [sample(source.random(), source.random()) for _ in range(5)]
    draws = [max(draw, key=lambda each: each["reward"]) for draw in itertools.combinations(samples, n)]
    found = expected(samples, n)
    for name in ("reward", "hit_rate"):
        assert found[name] == pytest.approx(sum(each[name] for each in draws) / len(draws))
    assert sum(pick_probabilities(n, 5)) == pytest.approx(1)


def test_a_measure_that_some_samples_lack_is_the_mean_of_the_others():
    samples = [sample(1, 0.5, None), sample(2, 0.5, 0.4), sample(3, 0.5, 0.8)]
    assert expected(samples, 1)["precision"] == pytest.approx(0.6)
    assert expected([sample(1, 0.5, None)], 1)["precision"] is None


def prompts(hit_of_reward, n=12):
    """Samples whose hit rates follow from their rewards 1 to 4."""
    return [
        [sample(reward + number / 100, hit_of_reward(reward) + number / 1000) for reward in (1, 2, 3, 4)] for number in range(n)
    ]


def test_a_reward_that_agrees_with_the_hit_rate_is_as_good_as_the_oracle():
    entries = curves(prompts(lambda reward: reward / 5), [1, 2, 4])
    figures = figures_of(entries)
    assert figures["hit_rate"] == pytest.approx(figures["oracle_hit_rate"], abs=1e-4) and figures["best_n"] == 4
    assert figures["hit_rate_gain_low"] > 0 and figures["health"] == "healthy"
    assert figures["kl_per_answer_sampled"] == pytest.approx(kl_of_best_of_n(4), abs=1e-4)


def test_a_reward_that_grows_while_the_hit_rate_falls_is_over_optimised():
    figures = figures_of(curves(prompts(lambda reward: 0.8 - reward / 10), [1, 4]))
    assert figures["health"] == "over-optimised" and figures["best_n"] == 1 and figures["hit_rate_gain_high"] < 0


def test_the_points_of_a_plot_leave_out_what_is_undefined():
    entries = curves([[sample(1, 0.5, None), sample(2, 0.5, None)]] * 3, [1, 2])
    shown = points(entries, {"hit_rate": "hit rate", "precision": "precision"})
    assert [row[:2] for row in shown] == [[1, "hit rate"], [2, "hit rate"]]
