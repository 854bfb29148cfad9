"""Results of blind votes: who wins each prompt by majority, and how far raters agree beyond chance."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from aligner.judging.votes import Vote
from aligner.markdown import with_interval
from aligner.report import blind
from aligner.run.terminal import printable
from aligner.scoring.estimates import Estimate, proportion, undefined
from aligner.scoring.pairs import Outcome, win_rate


def vote_report(votes: Sequence[Vote]) -> Iterator[str]:
    raters = sorted({vote.rater for vote in votes})
    yield f"{len(votes)} votes by {len(raters)} raters on {len({vote.id for vote in votes})} prompts"
    for pair in sorted({vote.pair for vote in votes}):
        of_pair = [vote for vote in votes if vote.pair == pair]
        yield ""
        yield from pair_lines(pair, of_pair)
    yield ""
    yield f"left side chosen: {with_count(left_side(votes))} of the votes for one answer; 0.5 without position bias"
    yield "verdicts: " + ", ".join(f"{name} {sum(vote.verdict == name for vote in votes)}" for name in blind.VERDICTS)


def pair_lines(pair: tuple[str, str], votes: Sequence[Vote]) -> Iterator[str]:
    first, second = pair
    outcome = majority_outcome(pair, votes)
    yield f"{first} over {second}: {wins_shown(outcome)}; a prompt counts once, by the majority of its raters"
    raters = sorted({vote.rater for vote in votes})
    by_rater = {rater: [vote for vote in votes if vote.rater == rater] for rater in raters}
    for rater in raters if len(raters) > 1 else []:
        yield f"  {printable(rater)}: {wins_shown(majority_outcome(pair, by_rater[rater]))}"
    for one, other in itertools.combinations(raters, 2):
        ratings = shared_ratings([by_rater[one], by_rater[other]])
        yield f"  {printable(one)} and {printable(other)} agree: {agreement_shown(ratings, cohen_kappa(ratings), 'Cohen')}"
    if len(raters) > 2:
        ratings = shared_ratings(list(by_rater.values()))
        yield f"  all {len(raters)} raters agree: {agreement_shown(ratings, fleiss_kappa(ratings), 'Fleiss')}"


def majority_outcome(pair: tuple[str, str], votes: Sequence[Vote]) -> Outcome:
    """Prompts won, tied and lost by the first model, each by the balance of its votes; "both bad" counts as a tie."""
    balance = balances(pair, votes)
    wins, losses = sum(value > 0 for value in balance.values()), sum(value < 0 for value in balance.values())
    return Outcome(wins, len(balance) - wins - losses, losses)


def balances(pair: tuple[str, str], votes: Sequence[Vote]) -> Counter[str]:
    """For each prompt with votes, those for the first model minus those for the second."""
    balance: Counter[str] = Counter()
    for vote in votes:
        balance[vote.id] += {pair[0]: 1, pair[1]: -1}.get(vote.winner or "", 0)
    return balance


def left_side(votes: Sequence[Vote]) -> Estimate:
    """The share of votes for the left answer among those for either answer, with Wilson's interval."""
    return proportion(vote.verdict == "A" for vote in votes if vote.winner)


def shared_ratings(by_rater: Sequence[Sequence[Vote]]) -> list[tuple[str, ...]]:
    """The raters' choices, in their order, on each prompt that all of them judged."""
    choices = [{vote.id: vote.choice for vote in votes} for votes in by_rater]
    shared = set(choices[0]).intersection(*choices[1:])
    return [tuple(of_rater[id] for of_rater in choices) for id in sorted(shared)]


def agreement(ratings: Sequence[tuple[str, ...]]) -> Estimate:
    """The share of prompts on which all raters agree, with Wilson's interval."""
    return proportion(len(set(choices)) == 1 for choices in ratings)


def cohen_kappa(ratings: Sequence[tuple[str, ...]]) -> Estimate:
    """(p_o - p_e) / (1 - p_e): agreement of two raters beyond chance, p_e = sum_k p_1k p_2k (Cohen 1960)."""
    n = len(ratings)
    if n == 0:
        return undefined("no prompt was judged by both", n=0)
    counts = [Counter(choices[rater] for choices in ratings) for rater in (0, 1)]
    expected = math.fsum(counts[0][choice] * counts[1][choice] for choice in counts[0]) / n**2
    if expected == 1:
        return undefined("both always chose the same one verdict, so chance alone agrees", n=n)
    return {"estimate": (sum(one == other for one, other in ratings) / n - expected) / (1 - expected), "n": n}


def fleiss_kappa(ratings: Sequence[tuple[str, ...]]) -> Estimate:
    """Agreement of m raters beyond chance (Fleiss 1971): mean_i sum_k n_ik (n_ik - 1) / m(m-1), corrected by sum_k p_k^2."""
    n = len(ratings)
    if n == 0:
        return undefined("no prompt was judged by all", n=0)
    m = len(ratings[0])
    pairs = sum(count * (count - 1) for choices in ratings for count in Counter(choices).values())
    total = Counter(itertools.chain.from_iterable(ratings))
    if len(total) == 1:
        return undefined("all always chose the same one verdict, so chance alone agrees", n=n)
    expected = math.fsum((count / (n * m)) ** 2 for count in total.values())
    return {"estimate": (pairs / (n * m * (m - 1)) - expected) / (1 - expected), "n": n}


def with_count(value: Estimate) -> str:
    return with_interval(value) + ("" if value["estimate"] is None else f", n = {value['n']}")


def wins_shown(outcome: Outcome) -> str:
    counts = f"{outcome.wins} won, {outcome.ties} tied, {outcome.losses} lost"
    return f"win rate {with_count(win_rate(outcome)['win_rate'])} prompts; {counts}"


def agreement_shown(ratings: Sequence[tuple[str, ...]], kappa: Estimate, name: str) -> str:
    return f"{with_count(agreement(ratings))}; {name}'s kappa {with_count(kappa)}"
