"""Preference measures on held-out pairs: implicit rewards, losses, ranking accuracy, and a one-word health check."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from aligner import intervals
from aligner.run.params import Kto

RANKING_COLUMNS = ["group", "model", "ranking_accuracy", "low", "high", "prompts", "better", "worse", "p"]
# By what is compared, then by model: 1, 0 or 1/2 for each held-out pair.
Ranks = dict[str, dict[str, list[float]]]
BEFORE = {"base": None, "sft": "base", "dpo": "sft"}  # the model that each one came from


# ---- Rewards and ranks ----------------------------------------------------------------------------------------------


def preference_metrics(policy: list[tuple[float, float]], reference: list[tuple[float, float]], beta: float) -> dict[str, float]:
    """Measures of a policy on held-out pairs, from the sequence log-probabilities (chosen, rejected) of policy and reference.

    reward = beta * (log policy - log reference); margin = reward(chosen) - reward(rejected). loss = -log sigmoid(margin) for
    every dpo.loss_type: the log-loss of sigmoid(margin) as a forecast that the chosen answer is preferred. brier =
    (1 - sigmoid(margin))^2, another proper score of that forecast; 1/4 if the policy equals its reference. accuracy counts a
    margin of exactly 0 as one half (Rafailov et al. 2023, section 5.1).
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


def kto_metrics(
    policy: list[tuple[float, float]], reference: list[tuple[float, float]], labels: list[bool], kto: Kto
) -> dict[str, float]:
    """KTO's own loss on held-out rows, and z0, its estimate of the KL divergence from the reference (equations: src/kto.py).

    policy and reference: log-probabilities (of the row's own completion, of the rotated one), in nats. Unlike training, which
    estimates z0 in each batch, this takes one z0 from all rows.
    """
    pairs = list(zip(policy, reference, strict=True))
    z0 = max(0.0, _mean([p[1] - r[1] for p, r in pairs])) if kto.loss_type == "kto" else 0.0
    losses = []
    for (p, r), good in zip(pairs, labels, strict=True):
        value = kto.beta * (p[0] - r[0] - z0) * (1 if good else -1)
        weight = kto.desirable_weight if good else kto.undesirable_weight
        losses.append(weight * math.exp(-_softplus(value)))
    return {"validation_loss": _mean(losses), "validation_kl": z0}


def orpo_metrics(policy: list[tuple[float, float]], rows: list[dict[str, Any]], beta: float) -> dict[str, float]:
    """ORPO's own measures on held-out pairs, from log-probabilities (chosen, rejected) in nats.

    With P the mean log-probability of an answer's tokens and log odds = P - log(1 - e^P): log_odds_ratio = log odds(chosen) - log
    odds(rejected), odds_loss = -log sigmoid(log_odds_ratio), loss = nll + beta odds_loss. nll is the chosen answers' loss per
    token; in training TRL's also covers the prompts (src/orpo.py). brier scores sigmoid(log_odds_ratio) as a forecast that the
    chosen answer is preferred. A reward is beta P.
    """
    means = [(c / len(row["chosen_ids"]), r / len(row["rejected_ids"])) for (c, r), row in zip(policy, rows, strict=True)]
    ratios = [_log_odds(chosen) - _log_odds(rejected) for chosen, rejected in means]
    nll = -sum(chosen for chosen, _ in policy) / sum(len(row["chosen_ids"]) for row in rows)
    odds_loss = _mean([_softplus(-ratio) for ratio in ratios])
    return {
        "validation_loss": nll + beta * odds_loss,
        "validation_nll": nll,
        "validation_odds_loss": odds_loss,
        "validation_log_odds_ratio": _mean(ratios),
        "validation_brier": _mean([math.exp(-2 * _softplus(ratio)) for ratio in ratios]),
        "validation_reward_chosen": beta * _mean([chosen for chosen, _ in means]),
        "validation_reward_rejected": beta * _mean([rejected for _, rejected in means]),
        "validation_margin": beta * _mean([chosen - rejected for chosen, rejected in means]),
        "validation_accuracy": _mean([_order(chosen, rejected) for chosen, rejected in means]),
    }


def _log_odds(mean_logp: float) -> float:
    """log(p / (1 - p)) for p = e^mean_logp; a p that rounds to 1 counts as the largest number below it."""
    return mean_logp - math.log(-math.expm1(min(mean_logp, -(2.0**-53))))


def rankings(held_out: dict[str, list[tuple[float, float]]], rows: list[dict[str, Any]]) -> Ranks:
    """For each pair, whether a model finds the chosen answer likelier than the rejected one: 1, 0, or 1/2 for a tie.

    This needs no reference (Chen et al. 2024, arXiv 2405.19534). It compares log p of whole answers, which is lower for longer
    ones, and log p per token. held_out: (chosen, rejected) log-probabilities by model.
    """
    lengths = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    ways = {"whole answer": [(1, 1)] * len(rows), "per token": lengths}
    return {
        way: {
            name: [_order(logps[0] / by[0], logps[1] / by[1]) for logps, by in zip(pairs, divisors, strict=True)]
            for name, pairs in held_out.items()
        }
        for way, divisors in ways.items()
    }


def ranking_rows(rankings: Ranks) -> Iterator[list[Any]]:
    """Rows of RANKING_COLUMNS, one per model: its ranking accuracy with Wilson's interval and the number of pairs.

    Against the model that it was trained from: how many pairs it ranks better and worse, and the p-value of McNemar's exact test.
    """
    for way, ranks in rankings.items():
        for name, before in BEFORE.items():
            n, right = len(ranks[name]), sum(ranks[name])
            compared = mcnemar(ranks[name], ranks[before]) if before else [None] * 3
            yield [way, name, right / n, *_wilson(right, n), n, *compared]


def mcnemar(first: Sequence[float], second: Sequence[float]) -> tuple[int, int, float]:
    """How many pairs the first model ranks better and worse than the second, and the exact p-value of no difference."""
    better = sum(a > b for a, b in zip(first, second, strict=True))
    worse = sum(a < b for a, b in zip(first, second, strict=True))
    return better, worse, intervals.sign_test(better, worse)


def preference_figures(
    model: str,
    measured: dict[str, float],
    ranks: Ranks,
    kl: dict[str, float | None],
    fit: dict[str, float | None],
    validation: list[dict[str, Any]],
) -> dict[str, float | str | None]:
    """The figures of reports/<model>.json, on held-out pairs; only `fit`, perplexity and bits per byte, on held-out SFT answers.

    reward_accuracy_low and _high are Wilson's 95 % interval. longer_is_chosen is the accuracy of the rule "the longer answer is
    the chosen one". Changes of log-probability are means in nats per answer, and per token over all tokens.
    """
    n, longer = len(validation), _mean([_order(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in validation])
    low, high = _wilson(measured["validation_accuracy"] * n, n)
    chosen, rejected = (_mean([len(row[side]) for row in validation]) for side in ("chosen_ids", "rejected_ids"))
    named: dict[str, float | None] = {
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
        "ranking_accuracy": _mean(ranks["whole answer"][model]),
        "ranking_accuracy_per_token": _mean(ranks["per token"][model]),
        **fit,
        "longer_is_chosen": longer,
    }
    rounded = {name: None if value is None else round(value, 4) for name, value in named.items()}
    return {**rounded, "validation_pairs": n, "health": preference_health(measured, longer)}


def preference_health(measured: dict[str, float], longer_is_chosen: float) -> str:
    """One word for the held-out pairs, the worst that applies.

    not learning: the reward accuracy does not exceed chance, or a rule by length alone (the longer, or the shorter, is chosen).
    displaced: margins grow, but the chosen answers become less likely (likelihood displacement: Razin et al. 2024,
    arXiv 2410.08847; Pal et al. 2024, arXiv 2402.13228). Otherwise: healthy.
    """
    if measured["validation_accuracy"] <= max(0.5, longer_is_chosen, 1 - longer_is_chosen):
        return "not learning"
    return "displaced" if measured["chosen_change"] < 0 < measured["validation_margin"] else "healthy"


def _order(chosen: float, rejected: float) -> float:
    """1 if the chosen value is larger, 1/2 for a tie, else 0."""
    return 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0


def _wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval, for n > 0."""
    interval = intervals.wilson_interval(successes, n)
    assert interval is not None, "a rate needs at least one pair"
    return interval


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _softplus(x: float) -> float:
    """log(1 + e^x) without overflow; -log sigmoid(m) = softplus(-m)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
