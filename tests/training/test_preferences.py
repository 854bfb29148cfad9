"""Preferences: rewards, losses, ranks and health against golden cases and plain arithmetic."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import DPO_REWARDS as GOLDEN
from support.policies import swapped

from aligner import intervals
from aligner.training.preferences import (
    RANKING_COLUMNS,
    mcnemar,
    preference_figures,
    preference_health,
    preference_metrics,
    ranking_rows,
    rankings,
)

NAMES = {
    "validation_loss": "loss",
    "validation_reward_chosen": "reward_chosen",
    "validation_reward_rejected": "reward_rejected",
    "validation_margin": "margin",
    "validation_accuracy": "correct",
    "validation_logp_chosen": "policy_chosen",
    "validation_logp_rejected": "policy_rejected",
}


def measured(cases, beta):
    policy = [(case["policy_chosen"], case["policy_rejected"]) for case in cases]
    reference = [(case["ref_chosen"], case["ref_rejected"]) for case in cases]
    return preference_metrics(policy, reference, beta)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"margin {case['margin']:g}")
def test_golden_pair(case):
    found = measured([case], case["beta"])
    assert {NAMES[name]: found[name] for name in NAMES} == {
        name: pytest.approx(case[name], rel=1e-12, abs=1e-12) for name in NAMES.values()
    }
    assert found["chosen_fell"] == (case["chosen_logp_drop"] > 0)


def test_golden_pairs_together_are_the_mean_of_each():
    cases = [case for case in GOLDEN if case["beta"] == 0.1]
    found = measured(cases, 0.1)
    for name, golden in NAMES.items():
        assert found[name] == pytest.approx(math.fsum(case[golden] for case in cases) / len(cases), rel=1e-12)
    assert found["chosen_fell"] == sum(case["chosen_logp_drop"] > 0 for case in cases) / len(cases)


def test_a_margin_of_exactly_zero_counts_as_one_half():
    """Margins +0.1, 0, 0 and -0.1 at beta 0.1: (1 + 1/2 + 1/2 + 0) / 4 = 0.5."""
    policy = [(-9, -10), (-10, -10), (-12, -12), (-11, -10)]
    assert preference_metrics(policy, [(-10, -10)] * 4, 0.1)["validation_accuracy"] == 0.5


LOG_PROBABILITIES = st.lists(st.tuples(*[st.integers(-4000, 0).map(lambda n: n / 8)] * 4), min_size=1, max_size=12)


@given(LOG_PROBABILITIES, st.sampled_from([0.0625, 0.5, 1]))
@settings(deadline=None)
def test_swapping_chosen_and_rejected_mirrors_the_measures(pairs, beta):
    """loss(margin) - loss(-margin) = -margin: softplus(-m) - softplus(m) = -m."""
    policy, reference = ([(p[i], p[i + 1]) for p in pairs] for i in (0, 2))
    mirrored_policy, mirrored_reference = ([pair[::-1] for pair in side] for side in (policy, reference))
    one, other = (
        preference_metrics(policy, reference, beta),
        preference_metrics(mirrored_policy, mirrored_reference, beta),
    )
    assert other["validation_margin"] == pytest.approx(-one["validation_margin"], abs=1e-9)
    assert other["validation_accuracy"] == pytest.approx(1 - one["validation_accuracy"])
    assert other["validation_reward_chosen"] == one["validation_reward_rejected"]
    assert other["validation_logp_rejected"] == one["validation_logp_chosen"]
    assert one["validation_loss"] - other["validation_loss"] == pytest.approx(-one["validation_margin"], abs=1e-9)


def test_brier_and_log_loss_by_hand():
    """Margins ln 3, 0, -ln 3 forecast 3/4, 1/2, 1/4: brier (1/16 + 4/16 + 9/16) / 3 = 7/24, loss (ln 4/3 + ln 2 + ln 4) / 3."""
    policy = [(-5, -5 - math.log(3)), (-5, -5), (-5 - math.log(3), -5)]
    found = preference_metrics(policy, [(-5, -5)] * 3, 1)
    assert found["validation_brier"] == pytest.approx(7 / 24)
    assert found["validation_loss"] == pytest.approx((math.log(4 / 3) + math.log(2) + math.log(4)) / 3)


@given(LOG_PROBABILITIES, st.sampled_from([0.0625, 0.5, 1]))
@settings(deadline=None)
def test_a_forecast_and_its_mirror(pairs, beta):
    """With s = sigmoid(m): (1 - s)^2 - s^2 = 1 - 2 s, so that brier - mirrored brier = mean(1 - 2 s); each is in [0, 1]."""
    policy, reference = ([(p[i], p[i + 1]) for p in pairs] for i in (0, 2))
    one = preference_metrics(policy, reference, beta)["validation_brier"]
    other = preference_metrics([p[::-1] for p in policy], [r[::-1] for r in reference], beta)["validation_brier"]
    margins = [beta * (p[0] - r[0] - p[1] + r[1]) for p, r in zip(policy, reference, strict=True)]
    assert one - other == pytest.approx(math.fsum(-math.tanh(m / 2) for m in margins) / len(margins), abs=1e-9)
    assert 0 <= one <= 1


def test_a_policy_that_is_its_reference_forecasts_nothing():
    pairs = [(-3.5, -7.25), (-11, -2), (-4, -4)]
    found = preference_metrics(pairs, pairs, 0.1)
    assert (found["validation_brier"], found["validation_loss"]) == (0.25, math.log(2))


KL = {"kl_per_token_teacher_forced": 0.01234, "kl_per_token_sampled": 0.02, "samples_cut": 0.25}


FIT = {"perplexity": 3.5, "bits_per_byte": 0.75}


RANKS = {"whole answer": {"dpo": [1.0, 0.5, 0.5]}, "per token": {"dpo": [1.0, 1.0, 1.0]}}


def test_preference_figures_count_and_round():
    """Chosen is longer, equal, shorter: (1 + 1/2 + 0) / 3 = 0.5; Wilson for 3 of 3 begins at 3 / (3 + 1.96^2); four decimals.

    The chosen answers gain 3 nats on 3 + 2 + 1 tokens, 0.5 a token.
    """
    rows = [{"chosen_ids": [1] * chosen, "rejected_ids": [1] * 2} for chosen in (3, 2, 1)]
    numbers = preference_figures("dpo", preference_metrics([(-1, -2.5)] * 3, [(-2, -2.5)] * 3, 0.1), RANKS, KL, FIT, rows)
    loss, brier = round(math.log1p(math.exp(-0.1)), 4), round((1 - 1 / (1 + math.exp(-0.1))) ** 2, 4)
    assert numbers == {
        "validation_loss": loss,
        "brier": brier,
        "reward_accuracy": 1,
        "reward_accuracy_low": 0.4385,
        "reward_accuracy_high": 1,
        "reward_margin": 0.1,
        "chosen_reward": 0.1,
        "chosen_logp_change": 1,
        "rejected_logp_change": 0,
        "chosen_logp_change_per_token": 0.5,
        "rejected_logp_change_per_token": 0,
        "chosen_fell": 0,
        "kl_per_token_teacher_forced": 0.0123,
        "kl_per_token_sampled": 0.02,
        "samples_cut": 0.25,
        "ranking_accuracy": 0.6667,
        "ranking_accuracy_per_token": 1,
        "perplexity": 3.5,
        "bits_per_byte": 0.75,
        "longer_is_chosen": 0.5,
        "validation_pairs": 3,
        "health": "healthy",
    }


def test_preference_figures_that_are_undefined_are_null():
    rows = [{"chosen_ids": [1], "rejected_ids": [1]}]
    measured = preference_metrics([(-1, -2)], [(-1, -2)], 0.1)
    numbers = preference_figures("dpo", measured, RANKS, KL | {"kl_per_token_sampled": None}, FIT | {"bits_per_byte": None}, rows)
    assert [name for name, value in numbers.items() if value is None] == ["kl_per_token_sampled", "bits_per_byte"]


# Lengths of chosen and rejected answers, and log-probabilities by model.
RANKED_ROWS = [
    {"chosen_ids": [1] * chosen, "rejected_ids": [1] * rejected} for chosen, rejected in ((2, 2), (2, 4), (4, 2), (3, 3))
]


SAID = {
    "base": [(-2, -3), (-4, -4), (-4, -3), (-5, -2)],
    "sft": [(-2, -3), (-2, -4), (-4, -3), (-2, -2)],
    "dpo": [(-2, -3), (-1, -4), (-2, -3), (-2, -9)],
}


def test_ranks_by_hand():
    """Whole answers: base right, tied, wrong, wrong; sft right, right, wrong, tied; dpo all right.

    Per token: base -1 > -1.5, -2 < -1, -1 > -1.5, wrong; sft right, -1 = -1, right, tied; dpo right, -0.5 > -1, right, right.
    """
    assert rankings(SAID, RANKED_ROWS) == {
        "whole answer": {"base": [1, 0.5, 0, 0], "sft": [1, 1, 0, 0.5], "dpo": [1, 1, 1, 1]},
        "per token": {"base": [1, 0, 1, 0], "sft": [1, 0.5, 1, 0.5], "dpo": [1, 1, 1, 1]},
    }


def test_accuracies_have_an_interval_and_are_compared_with_the_model_before():
    """Whole answers, 1.5, 2.5 and 4 of 4: sft is better on the second and the fourth pair, dpo on the others, p = 2/4 each."""
    rows = [dict(zip(RANKING_COLUMNS, row, strict=True)) for row in ranking_rows(rankings(SAID, RANKED_ROWS))]
    assert [(row["group"], row["model"]) for row in rows] == [
        (way, name) for way in ("whole answer", "per token") for name in ("base", "sft", "dpo")
    ]
    assert [row["ranking_accuracy"] for row in rows] == [1.5 / 4, 2.5 / 4, 1, 2 / 4, 3 / 4, 1]
    assert (rows[1]["low"], rows[1]["high"]) == intervals.wilson_interval(2.5, 4) and rows[1]["prompts"] == 4
    compared = [(row["better"], row["worse"], row["p"]) for row in rows]
    assert compared[:3] == [(None, None, None), (2, 0, 0.5), (2, 0, 0.5)]
    assert mcnemar([1.0, 0.0, 0.5], [0.0, 0.5, 0.0]) == (2, 1, 1.0)


@given(LOG_PROBABILITIES)
@settings(deadline=None)
def test_ranks_of_swapped_pairs_and_of_equal_models(pairs):
    """Swapped labels give 1 - accuracy, for whole answers and per token; equal models have equal ranks."""
    said = {"base": [pair[:2] for pair in pairs], "sft": [pair[2:] for pair in pairs], "dpo": [pair[2:] for pair in pairs]}
    rows = [{"chosen_ids": [1] * (1 + place % 3), "rejected_ids": [1] * (1 + place % 2)} for place in range(len(pairs))]
    found = rankings(said, rows)
    mirrored = rankings({name: [pair[::-1] for pair in given] for name, given in said.items()}, swapped(rows))
    for way, ranks in found.items():
        assert mirrored[way] == {name: [1 - rank for rank in each] for name, each in ranks.items()}
        assert ranks["dpo"] == ranks["sft"] and mcnemar(ranks["dpo"], ranks["sft"]) == (0, 0, 1.0)


HEALTH = [
    ((0.9, 0.2, 0.3), 0.5, "healthy"),
    ((0.9, -0.2, 0.3), 0.5, "displaced"),
    ((0.5, 0.2, 0.3), 0.5, "not learning"),
    ((0.7, 0.2, 0.3), 0.7, "not learning"),
    ((0.7, 0.2, 0.3), 0.3, "not learning"),
    ((0.71, 0.2, 0.3), 0.3, "healthy"),
    ((0.4, -0.2, -0.1), 0.5, "not learning"),
    ((0.9, -0.2, -0.1), 0.5, "healthy"),
]


@pytest.mark.parametrize(("measures", "longer", "word"), HEALTH)
def test_health_in_words(measures, longer, word):
    """Accuracy must exceed chance and both rules of length; chosen answers that fall while the margin grows are displaced."""
    names = ("validation_accuracy", "chosen_change", "validation_margin")
    assert preference_health(dict(zip(names, measures, strict=True)), longer) == word
