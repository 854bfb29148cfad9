"""What a policy prefers on held-out pairs: implicit rewards, ranks, and their health in a word."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from aligner import intervals

RANKING_COLUMNS = ["group", "model", "ranking_accuracy", "low", "high", "prompts", "better", "worse", "p"]
BEFORE = {"base": None, "sft": "base", "dpo": "sft"}  # the model that each one came from


# ---- Rewards and ranks ----------------------------------------------------------------------------------------------


def preference_metrics(policy: list[tuple[float, float]], reference: list[tuple[float, float]], beta: float) -> dict[str, float]:
    """What the policy thinks of held-out pairs, from sequence log-probabilities (chosen, rejected) of both models.

    reward = beta * (log policy - log reference); margin = reward(chosen) - reward(rejected); loss = -log sigmoid(margin), always
    the sigmoid's, whatever dpo.loss_type: the log-loss of the forecast sigmoid(margin) that the chosen answer is preferred.
    brier = (1 - sigmoid(margin))^2, another proper score of that forecast: 1/4 where the policy is its reference.
    accuracy counts a margin of exactly 0 as one half (Rafailov et al. 2023, section 5.1).
    """
    pairs = list(zip(policy, reference, strict=True))
    chosen = [beta * (p[0] - r[0]) for p, r in pairs]
    rejected = [beta * (p[1] - r[1]) for p, r in pairs]
    margins = [w - l for w, l in zip(chosen, rejected, strict=True)]
    return {
        "validation_loss": _mean([_softplus(-margin) for margin in margins]),
        "validation_brier": _mean([math.exp(-2 * _softplus(margin)) for margin in margins]),
        "validation_reward_chosen": _mean(chosen),
        "validation_reward_rejected": _mean(rejected),
        "validation_margin": _mean(margins),
        "validation_accuracy": _mean([_order(margin, 0) for margin in margins]),
        "validation_logp_chosen": _mean([p[0] for p in policy]),
        "validation_logp_rejected": _mean([p[1] for p in policy]),
        "chosen_change": _mean([p[0] - r[0] for p, r in pairs]),
        "rejected_change": _mean([p[1] - r[1] for p, r in pairs]),
        "chosen_fell": _mean([float(p[0] < r[0]) for p, r in pairs]),
    }


def rankings(held_out: dict[str, list[tuple[float, float]]], rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Whether each model finds a pair's chosen answer likelier than the rejected one: 1, 0, or 1/2 for a tie, pair by pair.

    No reference takes part (Chen et al. 2024, arXiv 2405.19534). By log p of the whole answer, which is lower for a longer one;
    and per token, by log p divided by the answer's length. held_out: (chosen, rejected) log-probabilities by model.
    """
    lengths = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    ways = {"whole answer": [(1, 1)] * len(rows), "per token": lengths}
    return {
        way: {
            name: [_order(said[0] / by[0], said[1] / by[1]) for said, by in zip(pairs, divisors, strict=True)]
            for name, pairs in held_out.items()
        }
        for way, divisors in ways.items()
    }


def ranking_rows(rankings: dict[str, dict[str, list[float]]]) -> Iterator[list[Any]]:
    """For each model its ranking accuracy, Wilson's interval and n; and against the model that it came from, pair by pair: how
    many it ranks better, how many worse, and the p-value of McNemar's exact test."""
    for way, ranks in rankings.items():
        for name, before in BEFORE.items():
            n, right = len(ranks[name]), sum(ranks[name])
            compared = mcnemar(ranks[name], ranks[before]) if before else (None, None, None)
            yield [way, name, right / n, *intervals.wilson_interval(right, n), n, *compared]


def mcnemar(first: Sequence[float], second: Sequence[float]) -> tuple[int, int, float]:
    """How many pairs the first ranks better than the second, how many worse, and the p-value of no difference."""
    better = sum(a > b for a, b in zip(first, second, strict=True))
    worse = sum(a < b for a, b in zip(first, second, strict=True))
    return better, worse, intervals.sign_test(better, worse)


def summary(
    measured: dict[str, float],
    ranks: dict[str, dict[str, list[float]]],
    kl: dict[str, float | None],
    fit: dict[str, float | None],
    validation: list[dict[str, Any]],
) -> dict[str, float | str | None]:
    """What reports/dpo.json holds: held-out measures with n and an interval, what moved, and the health in words.

    reward_accuracy_low and _high are Wilson's 95 % interval; longer_is_chosen is the accuracy of the rule "the longer answer is
    the chosen one"; changes of log-probability are means in nats per answer, and per token over all of them. `fit`, perplexity
    and bits per byte, is of the held-out SFT answers, all else of the held-out pairs.
    """
    n, longer = len(validation), _mean([_order(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in validation])
    low, high = intervals.wilson_interval(measured["validation_accuracy"] * n, n)
    chosen, rejected = (_mean([len(row[side]) for row in validation]) for side in ("chosen_ids", "rejected_ids"))
    named = {
        "validation_loss": measured["validation_loss"],
        "brier": measured["validation_brier"],
        "reward_accuracy": measured["validation_accuracy"],
        "reward_accuracy_low": low,
        "reward_accuracy_high": high,
        "reward_margin": measured["validation_margin"],
        "chosen_reward": measured["validation_reward_chosen"],
        "chosen_logp_change": measured["chosen_change"],
        "rejected_logp_change": measured["rejected_change"],
        "chosen_logp_change_per_token": measured["chosen_change"] / chosen,
        "rejected_logp_change_per_token": measured["rejected_change"] / rejected,
        "chosen_fell": measured["chosen_fell"],
        **kl,
        "ranking_accuracy": _mean(ranks["whole answer"]["dpo"]),
        "ranking_accuracy_per_token": _mean(ranks["per token"]["dpo"]),
        **fit,
        "longer_is_chosen": longer,
    }
    rounded = {name: None if value is None else round(value, 4) for name, value in named.items()}
    return {**rounded, "validation_pairs": n, "health": health(measured, longer)}


def health(measured: dict[str, float], longer_is_chosen: float) -> str:
    """One word on held-out pairs, the worst that applies.

    not learning: the reward accuracy is not above chance, nor above what the lengths alone tell (longer, or shorter, is chosen).
    displaced: margins grow, but the chosen answers became less likely too (likelihood displacement: Razin et al. 2024,
    arXiv 2410.08847; Pal et al. 2024, arXiv 2402.13228).
    """
    if measured["validation_accuracy"] <= max(0.5, longer_is_chosen, 1 - longer_is_chosen):
        return "not learning"
    return "displaced" if measured["chosen_change"] < 0 < measured["validation_margin"] else "healthy"


def _order(chosen: float, rejected: float) -> float:
    """1 where the chosen answer comes first, 1/2 for a tie."""
    return 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _softplus(x: float) -> float:
    """log(1 + e^x) without overflow; -log sigmoid(m) = softplus(-m)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
