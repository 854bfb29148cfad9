"""Comparison of each pair of models by the judge: win rates, biases, agreement with others, and reliability of the replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aligner import intervals, statistics
from aligner.intervals import mean
from aligner.judging.agreement import agreement, balances, cohen_kappa
from aligner.judging.verdicts import (
    CHOICES,
    EQUAL,
    FIRST,
    SECOND,
    TIE,
    Duel,
    Judgement,
    Order,
    Replies,
    Verdict,
    nulls,
    orders_of,
    outcome_of,
)
from aligner.judging.votes import Vote
from aligner.keywords.scorer import Scorer
from aligner.run.params import Score
from aligner.scoring.estimates import Estimate, detectable, difference_estimate, proportion, undefined
from aligner.scoring.inputs import PAIRS
from aligner.scoring.pairs import FEWEST_OPPOSITE, Outcome, compare, pair_name, verdict, win_rate

LARGEST_LENGTH_CORRECTION = 0.1  # of a win rate; a larger one gets a warning


def compare_pair(duels: Sequence[Duel], replies: Replies) -> tuple[dict[str, Any], list[Judgement]]:
    """Compares two models on all prompts. `pair_reports` adds what needs the other pairs or other raters."""
    judgements = [EQUAL if duel.equal else replies.judgement(duel) for duel in duels]
    asked = [judgement for duel, judgement in zip(duels, judgements, strict=True) if not duel.equal]
    outcome = outcome_of(judgements)
    verdicts = list(map(replies.verdict, orders_of(duels)))
    return {
        **win_rate(outcome),
        "null": nulls(judgements),
        "equal_answers": len(duels) - len(asked),
        "preference": mean_preference(judgements),
        "p": intervals.sign_test(outcome.wins, outcome.losses),
        "consistency": proportion(judgement.consistent for judgement in asked if judgement.choice),
        "first_position": first_position(verdicts),
        "parse_failures": parse_failures(verdicts),
        "length": length_bias_of_verdicts(duels, judgements),
    }, judgements


def mean_preference(judgements: Iterable[Judgement]) -> Estimate:
    """The first model's mean share over prompts, with a t or exact bootstrap interval over prompts, cut to [0, 1]."""
    found = difference_estimate([each.preference for each in judgements if each.preference is not None])
    if found.get("low") is not None:
        found |= {"low": max(0.0, found["low"]), "high": min(1.0, found["high"])}
    return found


def first_position(verdicts: Iterable[Verdict]) -> Estimate:
    """How often the answer shown first wins, ties aside. Each duel is shown in both orders, so 0.5 means no position bias.

    Wilson's interval assumes independent replies, which the two orders of one duel are not.
    """
    return proportion(verdict.letter == "A" for verdict in verdicts if verdict.letter in ("A", "B"))


def parse_failures(verdicts: Iterable[Verdict]) -> Estimate:
    """The share of requests without a verdict, whatever the reason."""
    return proportion(verdict.letter is None for verdict in verdicts)


def length_bias_of_verdicts(duels: Sequence[Duel], judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Which model writes more characters, whether the longer answer wins, and the win rate at equal length."""
    differences = [
        (len(duel.one) - len(duel.other), judgement.choice)
        for duel, judgement in zip(duels, judgements, strict=True)
        if judgement.choice
    ]
    return {
        "share_longer": proportion(gap > 0 for gap, _ in differences),
        "share_shorter": proportion(gap < 0 for gap, _ in differences),
        "longer_wins": proportion((gap > 0) == (choice == FIRST) for gap, choice in differences if gap and choice != TIE),
        "length_controlled": length_controlled(duels, judgements),
    }


def length_controlled(duels: Sequence[Duel], judgements: Sequence[Judgement]) -> Estimate:
    """AlpacaEval's win rate at equal length, without its difficulties and gamed baselines: a diagnostic, not a result.

    If one model's answer is nearly always the longer one, the fit would extrapolate, so there is none.
    """
    own, others = [len(duel.one) for duel in duels], [len(duel.other) for duel in duels]
    shares = [judgement.preference for judgement in judgements]
    known = [(one, other, value) for one, other, value in zip(own, others, shares, strict=True) if value is not None]
    opposite = min(sum(one > other for one, other, _ in known), sum(one < other for one, other, _ in known))
    if not known or opposite < FEWEST_OPPOSITE * len(known):
        return undefined("on fewer than 10% of the prompts the other model is longer: the fit would extrapolate", n=len(known))
    found = statistics.length_controlled_win_rate([None if value is None else 1 + value for value in shares], own, others)
    if found["estimate"] is None or found["standard_error"] is None:
        return undefined("the judgements do not determine the fit", n=len(known))
    rate = found["estimate"] / 100
    made: Estimate = {"estimate": rate, "standard_error": found["standard_error"] / 100, "n": len(known), "prior": None}
    if abs(rate - mean(value for *_, value in known)) > LARGEST_LENGTH_CORRECTION:
        made["warning"] = "more than 10 pp from the mean preference: do not trust it"
    return made


def agreement_with_hit_rates(
    judgements: Sequence[Judgement], rates: tuple[Sequence[float | None], Sequence[float | None]], tie_threshold: float
) -> dict[str, Any]:
    """The judge's agreement with the order of both models' hit rates, on each prompt with keywords."""
    rated = [
        (judgement.choice, CHOICES[compare([one], [other], tie_threshold).index(1)])
        for judgement, one, other in zip(judgements, *rates, strict=True)
        if one is not None and other is not None
    ]
    return agreement_report([(own, choice) for own, choice in rated if own])


def agreement_with_votes(
    pair: tuple[str, str], judgements: Sequence[Judgement], references: Sequence[dict], votes: Sequence[Vote]
) -> dict[str, Any]:
    """The judge's agreement with the majority of people's votes on each prompt; "both bad" counts as a tie."""
    balance = balances(pair, [vote for vote in votes if vote.pair == tuple(sorted(pair))])
    chosen = {id: FIRST if value > 0 else SECOND if value < 0 else TIE for id, value in balance.items()}
    of_judge = {row["id"]: judgement.choice for row, judgement in zip(references, judgements, strict=True)}
    return agreement_report([(own, choice) for id, choice in sorted(chosen.items()) if (own := of_judge.get(id))])


def agreement_report(ratings: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"agreement": agreement(ratings), "kappa": cohen_kappa(ratings)}


def add_decisions(found: dict[str, dict], judgements: Mapping[str, Sequence[Judgement]], rules: Score) -> None:
    """Adds Holm's p over the three pairs and score's verdict, by the preferences' differences from 1/2."""
    adjusted = statistics.holm([each["p"] for each in found.values()])
    for (name, each), p_holm in zip(found.items(), adjusted, strict=True):
        differences = [one.preference - 0.5 for one in judgements[name] if one.preference is not None]
        outcome = Outcome(each["wins"], each["ties"], each["losses"])
        decision = verdict(differences, outcome, p_holm, rules)
        each |= {"p_holm": p_holm, "decision": decision, "detectable": detectable(differences, rules.alpha)}


def pair_duels(pair: tuple[str, str], references: Sequence[dict], texts: Mapping[str, list[str]]) -> list[Duel]:
    one, other = (texts[name] for name in pair)
    return [Duel(row["prompt"], *answers) for row, *answers in zip(references, one, other, strict=True)]


def pair_reports(
    duels: Mapping[str, Sequence[Duel]],
    replies: Replies,
    references: Sequence[dict],
    rates: Mapping[str, list[float | None]],
    votes: Sequence[Vote] | None,
    rules: Score,
) -> dict[str, Any]:
    found, judgements = {}, {}
    for pair in PAIRS:
        name = pair_name(pair)
        found[name], judgements[name] = compare_pair(duels[name], replies)
        both = rates[pair[0]], rates[pair[1]]
        found[name]["keywords"] = agreement_with_hit_rates(judgements[name], both, rules.tie_threshold)
        if votes is not None:
            found[name]["people"] = agreement_with_votes(pair, judgements[name], references, votes)
    add_decisions(found, judgements, rules)
    return found


def hit_rates(references: Sequence[dict], texts: Mapping[str, list[str]]) -> dict[str, list[float | None]]:
    """Each model's hit rate, prompt by prompt, as score computes it; None for a prompt without keywords."""
    scorers = [
        Scorer(row["keywords"], row.get("forbidden", ()), row["prompt"]) if row["keywords"] else None for row in references
    ]
    return {
        name: [scorer.score(text).rate if scorer else None for scorer, text in zip(scorers, given, strict=True)]
        for name, given in texts.items()
    }


# ---- The replies -----------------------------------------------------------------------------------------------------


def reply_report(orders: Iterable[Order], replies: Replies) -> dict[str, Any]:
    """How many requests gave no verdict and why, and the probability that the judge gave to the three verdicts together."""
    verdicts = [replies.verdict(order) for order in orders]
    masses = [verdict.mass for verdict in verdicts if verdict.mass is not None]
    return {
        "parse_failures": parse_failures(verdicts),
        "reasons": dict(Counter(verdict.fault for verdict in verdicts if verdict.fault)),
        "soft": len(masses),
        "token_mass": {"mean": mean(masses), "smallest": min(masses)} if masses else None,
    }


def self_agreement(orders: Iterable[Order], replies: Replies, repeats: int) -> Estimate:
    """The share of requests that the judge answered with the same verdict every time."""
    if repeats < 2:
        return undefined("each request was sent once; --repeats sends it more often", n=0)
    repeated = [{replies.verdict(order, repeat).letter for repeat in range(repeats)} for order in orders]
    return proportion(len(letters) == 1 for letters in repeated if None not in letters)
