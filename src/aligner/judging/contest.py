"""What the judgements show: each pair of models with its intervals, biases and agreement, and how reliable the replies are."""

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
from aligner.scoring.pairs import Outcome, compare, pair_name, verdict, win_rate

FEWEST_OPPOSITE = 0.1  # of the prompts, for a length-controlled win rate
EXTREME_CHANGE = 0.1  # by length control, from which on it is marked


def contest(duels: Sequence[Duel], replies: Replies) -> tuple[dict[str, Any], list[Judgement]]:
    """One pair of models on all prompts, but for what takes the other pairs or other raters."""
    judgements = [EQUAL if duel.equal else replies.judgement(duel) for duel in duels]
    asked = [judgement for duel, judgement in zip(duels, judgements, strict=True) if not duel.equal]
    outcome = outcome_of(judgements)
    verdicts = list(map(replies.verdict, orders_of(duels)))
    return {
        **win_rate(outcome),
        "null": nulls(judgements),
        "equal_answers": len(duels) - len(asked),
        "preference": preference(judgements),
        "p": intervals.sign_test(outcome.wins, outcome.losses),
        "consistency": proportion(judgement.consistent for judgement in asked if judgement.choice),
        "first_position": first_position(verdicts),
        "parse_failures": parse_failures(verdicts),
        "length": lengths(duels, judgements),
    }, judgements


def preference(judgements: Iterable[Judgement]) -> Estimate:
    """The mean share of the first model over prompts; t or the exact bootstrap over prompts, within [0, 1]."""
    found = difference_estimate([each.preference for each in judgements if each.preference is not None])
    if found.get("low") is not None:
        found |= {"low": max(0.0, found["low"]), "high": min(1.0, found["high"])}
    return found


def first_position(verdicts: Iterable[Verdict]) -> Estimate:
    """How often the answer shown first wins where one does; as each duel is shown in both orders, 0.5 is no position bias.

    Wilson's interval takes replies for independent, which the two orders of one duel are not.
    """
    return proportion(verdict.letter == "A" for verdict in verdicts if verdict.letter in ("A", "B"))


def parse_failures(verdicts: Iterable[Verdict]) -> Estimate:
    """How many requests brought no verdict, whatever the reason."""
    return proportion(verdict.letter is None for verdict in verdicts)


def lengths(duels: Sequence[Duel], judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Which model writes more characters, whether the longer answer wins, and the win rate at equal length."""
    judged_gaps = [
        (len(duel.one) - len(duel.other), judgement.choice)
        for duel, judgement in zip(duels, judgements, strict=True)
        if judgement.choice
    ]
    return {
        "share_longer": proportion(gap > 0 for gap, _ in judged_gaps),
        "share_shorter": proportion(gap < 0 for gap, _ in judged_gaps),
        "longer_wins": proportion((gap > 0) == (choice == FIRST) for gap, choice in judged_gaps if gap and choice != TIE),
        "length_controlled": length_controlled(duels, judgements),
    }


def length_controlled(duels: Sequence[Duel], judgements: Sequence[Judgement]) -> Estimate:
    """AlpacaEval's win rate at equal length, without its difficulties and gamed baselines: a diagnostic, no result.

    Where one model is nearly always the longer one the fit extrapolates, so it is refused there.
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
    if abs(rate - mean(value for *_, value in known)) > EXTREME_CHANGE:
        made["warning"] = "more than 10 pp from the mean preference: do not trust it"
    return made


def beside_keywords(
    judgements: Sequence[Judgement], rates: tuple[Sequence[float], Sequence[float]], tie_threshold: float
) -> dict[str, Any]:
    """How the judge agrees with the hit rates of both models, prompt by prompt."""
    hit = [CHOICES[compare([one], [other], tie_threshold).index(1)] for one, other in zip(*rates, strict=True)]
    return agreed([(own, choice) for given, choice in zip(judgements, hit, strict=True) if (own := given.choice)])


def beside_people(
    pair: tuple[str, str], judgements: Sequence[Judgement], references: Sequence[dict], votes: Sequence[Vote]
) -> dict[str, Any]:
    """How the judge agrees with people's votes, by the majority on each prompt; both bad is a tie."""
    balance = balances(pair, [vote for vote in votes if vote.pair == tuple(sorted(pair))])
    chosen = {id: FIRST if value > 0 else SECOND if value < 0 else TIE for id, value in balance.items()}
    given = {row["id"]: judgement.choice for row, judgement in zip(references, judgements, strict=True)}
    return agreed([(own, choice) for id, choice in sorted(chosen.items()) if (own := given.get(id))])


def agreed(ratings: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"agreement": agreement(ratings), "kappa": cohen_kappa(ratings)}


def decided(found: dict[str, dict], judgements: Mapping[str, Sequence[Judgement]], rules: Score) -> None:
    """Adds Holm's p over the three pairs, and the verdict in score's words; differences are those of the preference from 1/2."""
    adjusted = statistics.holm([each["p"] for each in found.values()])
    for (name, each), p_holm in zip(found.items(), adjusted, strict=True):
        gaps = [given.preference - 0.5 for given in judgements[name] if given.preference is not None]
        outcome = Outcome(each["wins"], each["ties"], each["losses"])
        decision = verdict(gaps, outcome, p_holm, rules)
        each |= {"p_holm": p_holm, "decision": decision, "detectable": detectable(gaps, rules.alpha)}


def pair_duels(pair: tuple[str, str], references: Sequence[dict], texts: Mapping[str, list[str]]) -> list[Duel]:
    one, other = (texts[name] for name in pair)
    return [Duel(row["prompt"], *answers) for row, *answers in zip(references, one, other, strict=True)]


def pair_reports(
    duels: Mapping[str, Sequence[Duel]],
    replies: Replies,
    references: Sequence[dict],
    rates: Mapping[str, list[float]],
    votes: Sequence[Vote] | None,
    rules: Score,
) -> dict[str, Any]:
    found, judgements = {}, {}
    for pair in PAIRS:
        name = pair_name(pair)
        found[name], judgements[name] = contest(duels[name], replies)
        both = rates[pair[0]], rates[pair[1]]
        found[name]["keywords"] = beside_keywords(judgements[name], both, rules.tie_threshold)
        if votes is not None:
            found[name]["people"] = beside_people(pair, judgements[name], references, votes)
    decided(found, judgements, rules)
    return found


def hit_rates(references: Sequence[dict], texts: Mapping[str, list[str]]) -> dict[str, list[float]]:
    """Each model's hit rate, prompt by prompt, as score computes it."""
    scorers = [Scorer(row["keywords"], row.get("forbidden", ()), row["prompt"]) for row in references]
    return {name: [scorer.score(text).rate for scorer, text in zip(scorers, given, strict=True)] for name, given in texts.items()}


# ---- The replies -----------------------------------------------------------------------------------------------------


def reply_report(orders: Iterable[Order], replies: Replies) -> dict[str, Any]:
    """How many requests gave a verdict, why the others gave none, and how sure the judge was of saying one of the three."""
    verdicts = [replies.verdict(order) for order in orders]
    masses = [verdict.mass for verdict in verdicts if verdict.mass is not None]
    return {
        "parse_failures": parse_failures(verdicts),
        "reasons": dict(Counter(verdict.fault for verdict in verdicts if verdict.fault)),
        "soft": len(masses),
        "token_mass": {"mean": mean(masses), "smallest": min(masses)} if masses else None,
    }


def self_agreement(orders: Iterable[Order], replies: Replies, repeats: int) -> Estimate:
    """The share of requests to which the same judge gave the same verdict every time."""
    if repeats < 2:
        return undefined("every request was sent once; send it more often by --repeats", n=0)
    given = [{replies.verdict(order, repeat).letter for repeat in range(repeats)} for order in orders]
    return proportion(len(letters) == 1 for letters in given if None not in letters)
