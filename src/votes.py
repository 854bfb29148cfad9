"""votes: check the blind votes that people exported from reports/index.html, say what they show, and make pairs of them.

reads   files of votes (JSON lines), data/prepared/references.jsonl and data/generated/*.jsonl
writes  with --pairs, preference pairs in the format of prepare.pairs
command python src/votes.py votes-ann.jsonl votes-bob.jsonl
        python src/votes.py votes-*.jsonl --pairs data/raw/voted_pairs.jsonl

A vote counts for the run whose answers it judged: the one that lies in data/generated, or another by --run FINGERPRINT.

What is evaluated cannot be trained on: prepare refuses pairs whose prompts are eval prompts. So vote on prompts of their own,
and evaluate on others:

    dvc exp run -S prepare.eval=data/raw/eval_prompts_dev.jsonl
    (vote in reports/index.html, and export)
    python src/votes.py votes-*.jsonl --pairs data/raw/voted_pairs.jsonl
    python src/prepare.py --check data/raw/voted_pairs.jsonl
    cat data/raw/dpo_pairs.jsonl data/raw/voted_pairs.jsonl > data/raw/all_pairs.jsonl
    dvc exp run -S prepare.pairs=data/raw/all_pairs.jsonl -S prepare.eval=data/raw/eval_prompts.jsonl

The prompts that were voted on have then been trained on, and serve no longer to choose hyperparameters.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from aligner import blind
from aligner.data.lines import BadRow, decode_line, parse_object, physical_lines
from aligner.evaluation import Estimate, Outcome, share, undefined, win_rate
from aligner.files import read_jsonl, write_jsonl
from aligner.markdown import with_interval
from aligner.run.errors import InputError
from aligner.run.terminal import printable, shown, write_line

REFERENCES = Path("data/prepared/references.jsonl")
GENERATED = Path("data/generated")
TEXTS = ("run", "rater", "id", "prompt", "left_answer", "right_answer", "left_model", "right_model", "verdict")
KEYS = ("version", "seed", *TEXTS)
MAY_BE_EMPTY = ("left_answer", "right_answer")
HEX = frozenset("0123456789abcdef")


class Vote(NamedTuple):
    """One rater's verdict on two answers to one prompt; where it stands, for messages."""

    place: str
    run: str
    rater: str
    seed: int
    id: str
    prompt: str
    left_answer: str
    right_answer: str
    left_model: str
    right_model: str
    verdict: str

    @property
    def pair(self) -> tuple[str, str]:
        """Both models in alphabetical order, whatever their sides."""
        return tuple(sorted((self.left_model, self.right_model)))

    @property
    def winner(self) -> str | None:
        """The model whose answer is better; None for a tie and for both bad."""
        return {"A": self.left_model, "B": self.right_model}.get(self.verdict)

    @property
    def choice(self) -> str:
        """The verdict in terms of models, so that raters who saw other sides can be compared."""
        return self.winner or self.verdict


class Judged(NamedTuple):
    """The run that votes are about: every prompt's text, and every model's answer to it, by the prompt's id."""

    run: str
    prompts: dict[str, str]
    answers: dict[str, dict[str, str]]


def main(arguments: argparse.Namespace, out: TextIO) -> int:
    """The exit code: 0, or 1 where a vote is bad."""
    judged = read_run() if arguments.run is None else None
    votes, problems = read_votes(arguments.files, arguments.run or judged.run, judged)
    for problem in problems:
        write_line(out, problem)
    if problems or not votes:
        write_line(out, f"{len(problems)} problems, {len(votes)} good votes; nothing was counted")
        return 1
    for line in report(votes):
        write_line(out, line)
    if arguments.pairs:
        pairs, left_out = preference_pairs(votes)
        if not pairs:
            raise InputError(f"no vote prefers an answer, so there is no pair to write ({told(left_out)})")
        write_jsonl(arguments.pairs, pairs)
        write_line(out, f"{arguments.pairs}: {len(pairs)} pairs; left out: {told(left_out)}")
    return 0


def told(counts: Counter) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


# ---- Reading -----------------------------------------------------------------------------------------------------------


def read_run() -> Judged:
    """The answers that lie in data/generated, as the page was made from them."""
    references = list(read_jsonl(REFERENCES))
    answers = {path.stem: {row["id"]: row["answer"] for row in read_jsonl(path)} for path in sorted(GENERATED.glob("*.jsonl"))}
    try:
        texts = {name: [given[reference["id"]] for reference in references] for name, given in answers.items()}
    except KeyError as missing:
        raise InputError(f"{GENERATED} does not answer prompt {missing} of {REFERENCES}. Run: dvc repro") from None
    if not answers:
        raise InputError(f"{GENERATED} holds no answers. Run: dvc repro; or name the run of the votes: --run FINGERPRINT")
    prompts = {reference["id"]: reference["prompt"] for reference in references}
    return Judged(blind.fingerprint(references, texts), prompts, answers)


def read_votes(paths: Sequence[str], run: str, judged: Judged | None) -> tuple[list[Vote], list[str]]:
    """All good votes, and a line `file:line: kind: reason` for each bad one."""
    votes, problems = [], []
    seen: dict[Hashable, str] = {}
    seeds: dict[Hashable, Vote] = {}
    for place, raw in lines_of(paths):
        try:
            text = decode_line(raw)
            if text and not text.isspace():
                vote = read_vote(parse_object(text), place)
                check_run(vote, run, judged)
                check_new(vote, seen, seeds)
                votes.append(vote)
        except BadRow as bad:
            problems.append(f"{place}: {bad.problem.kind}: {bad.problem.reason}")
    return votes, problems


def lines_of(paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
    """Every physical line of these files, and where it stands."""
    for path in paths:
        for line, raw in enumerate(physical_lines(path), start=1):
            yield f"{printable(path)}:{line}", raw


def read_vote(row: dict[str, Any], place: str) -> Vote:
    """The vote of an object that holds exactly the keys of the format; raises BadRow."""
    for key in KEYS:
        if key not in row:
            raise BadRow("missing_key", f"`{key}` is missing; export the votes anew")
    if unknown := sorted(set(row) - {*KEYS, "comment"}):
        raise BadRow("unknown_key", f"{shown(unknown[0])} is no key of a vote")
    if type(row["version"]) is not int or row["version"] != blind.VERSION:
        raise BadRow("other_version", f"`version` is {shown(str(row['version']))}, but this program reads {blind.VERSION}")
    if type(row["seed"]) is not int or not 0 <= row["seed"] < blind.SEEDS:
        raise BadRow("bad_seed", f"`seed` must be a whole number from 0 to {blind.SEEDS - 1}")
    for key in (*TEXTS, *(["comment"] if "comment" in row else [])):
        if type(row[key]) is not str or not (row[key].strip() or key in MAY_BE_EMPTY):
            raise BadRow("wrong_type", f"`{key}` must be a text" + ("" if key in MAY_BE_EMPTY else " with something in it"))
    vote = Vote(place, **{key: row[key] for key in KEYS if key != "version"})
    check_vote(vote)
    return vote


def check_vote(vote: Vote) -> None:
    """What must hold of a vote by itself; the sides are those that its seed draws."""
    if len(vote.run) != 64 or not HEX.issuperset(vote.run):
        raise BadRow("bad_run", f"`run` must be a SHA-256 of 64 hex digits, not {shown(vote.run)}")
    if vote.verdict not in blind.VERDICTS:
        raise BadRow("unknown_verdict", f"`verdict` is {shown(vote.verdict)}; known are {', '.join(blind.VERDICTS)}")
    if vote.left_model == vote.right_model:
        raise BadRow("same_model", f"both sides are {shown(vote.left_model)}")
    if vote.left_answer == vote.right_answer:
        raise BadRow("same_answer", "both answers are the same; the page does not ask about these")
    if (vote.left_model, vote.right_model) != blind.sides(vote.seed, vote.run, vote.pair, vote.id):
        raise BadRow("wrong_sides", f"seed {vote.seed} puts the models on the other sides; was the file edited?")


def check_run(vote: Vote, run: str, judged: Judged | None) -> None:
    """Whether the vote is about the answers at hand, and about these very texts."""
    if vote.run != run:
        where = GENERATED if judged else "--run"
        raise BadRow("other_run", f"a vote on run {vote.run[:12]}…, not on {run[:12]}… ({where}); accept it by --run {vote.run}")
    if judged is None:
        return
    if vote.id not in judged.prompts:
        raise BadRow("unknown_prompt", f"no prompt has the id {shown(vote.id)}")
    if judged.prompts[vote.id] != vote.prompt:
        raise BadRow("other_prompt", f"`prompt` is not the text of {shown(vote.id)}")
    for side, model, answer in (("left", vote.left_model, vote.left_answer), ("right", vote.right_model, vote.right_answer)):
        if model not in judged.answers:
            raise BadRow("unknown_model", f"`{side}_model` is {shown(model)}; there are {', '.join(judged.answers)}")
        if judged.answers[model][vote.id] != answer:
            raise BadRow("other_answer", f"`{side}_answer` is not what {shown(model)} answered to {shown(vote.id)}")


def check_new(vote: Vote, seen: dict[Hashable, str], seeds: dict[Hashable, Vote]) -> None:
    """One vote for each rater, pair of models and prompt, and one seed for all prompts of a rater's pair."""
    key = (vote.rater, vote.pair, vote.id)
    if key in seen:
        raise BadRow("duplicate_vote", f"{shown(vote.rater)} voted on {shown(vote.id)} before, at {seen[key]}; keep one of them")
    first = seeds.setdefault((vote.rater, vote.pair), vote)
    if first.seed != vote.seed:
        raise BadRow("other_seed", f"seed {vote.seed}, but {first.seed} at {first.place}; one rater has one seed for two models")
    seen[key] = vote.place


# ---- What the votes show -----------------------------------------------------------------------------------------------


def report(votes: Sequence[Vote]) -> Iterator[str]:
    raters = sorted({vote.rater for vote in votes})
    yield f"{len(votes)} votes by {len(raters)} raters on {len({vote.id for vote in votes})} prompts"
    for pair in sorted({vote.pair for vote in votes}):
        of_pair = [vote for vote in votes if vote.pair == pair]
        yield ""
        yield from pair_report(pair, of_pair)
    yield ""
    yield f"left side chosen: {estimate(left_side(votes))} of the votes for one answer; 0.5 without position bias"
    yield "verdicts: " + ", ".join(f"{name} {sum(vote.verdict == name for vote in votes)}" for name in blind.VERDICTS)


def pair_report(pair: tuple[str, str], votes: Sequence[Vote]) -> Iterator[str]:
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
    """Prompts won, tied and lost by the first model: each by the balance of its votes, both bad being a tie."""
    balance = balances(pair, votes)
    wins, losses = sum(value > 0 for value in balance.values()), sum(value < 0 for value in balance.values())
    return Outcome(wins, len(balance) - wins - losses, losses)


def balances(pair: tuple[str, str], votes: Sequence[Vote]) -> Counter[str]:
    """For each prompt that was voted on, the votes for the first model less those for the second."""
    balance: Counter[str] = Counter()
    for vote in votes:
        balance[vote.id] += {pair[0]: 1, pair[1]: -1}.get(vote.winner, 0)
    return balance


def left_side(votes: Sequence[Vote]) -> Estimate:
    """How often the left answer is chosen where one is, with Wilson's interval."""
    return share(vote.verdict == "A" for vote in votes if vote.winner)


def shared_ratings(by_rater: Sequence[Sequence[Vote]]) -> list[tuple[str, ...]]:
    """The choices of all these raters on each prompt that all of them judged, in the order of raters."""
    choices = [{vote.id: vote.choice for vote in votes} for votes in by_rater]
    shared = set(choices[0]).intersection(*choices[1:])
    return [tuple(given[id] for given in choices) for id in sorted(shared)]


def agreement(ratings: Sequence[tuple[str, ...]]) -> Estimate:
    """The share of prompts on which all raters chose the same, with Wilson's interval."""
    return share(len(set(choices)) == 1 for choices in ratings)


def cohen_kappa(ratings: Sequence[tuple[str, str]]) -> Estimate:
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
    """Agreement of m raters beyond chance (Fleiss 1971): mean_i sum_k n_ik (n_ik - 1) / m(m-1) against sum_k p_k^2."""
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


def estimate(found: Estimate) -> str:
    return with_interval(found) + ("" if found["estimate"] is None else f", n = {found['n']}")


def wins_shown(outcome: Outcome) -> str:
    found = win_rate(outcome)
    return f"win rate {estimate(found['win_rate'])} prompts; {outcome.wins} won, {outcome.ties} tied, {outcome.losses} lost"


def agreement_shown(ratings: Sequence[tuple[str, ...]], kappa: Estimate, name: str) -> str:
    return f"{estimate(agreement(ratings))}; {name}'s kappa {estimate(kappa)}"


# ---- Pairs -------------------------------------------------------------------------------------------------------------


def preference_pairs(votes: Sequence[Vote]) -> tuple[list[dict[str, str]], Counter]:
    """A pair for each prompt and two answers of which more raters prefer one; what gives none, by reason.

    Two models may have given the same answer, so votes are gathered by text. Empty answers cannot be trained on.
    """
    tallies: dict[tuple[str, str, str], Counter[str]] = {}
    left_out: Counter = Counter()
    for vote in votes:
        texts = tuple(sorted((vote.left_answer.strip(), vote.right_answer.strip())))
        preferred = {"A": vote.left_answer, "B": vote.right_answer}.get(vote.verdict)
        tallies.setdefault((vote.prompt, *texts), Counter()).update([] if preferred is None else [preferred.strip()])
    pairs = []
    for (prompt, one, other), tally in tallies.items():
        if not tally:
            left_out["tied or both bad"] += 1
        elif tally[one] == tally[other]:
            left_out["contradicting"] += 1
        elif not one or not other or one == other:
            left_out["without two different texts"] += 1
        else:
            chosen, rejected = (one, other) if tally[one] > tally[other] else (other, one)
            digest = hashlib.sha256("\n".join([prompt, one, other]).encode()).hexdigest()[:12]
            pairs.append({"id": f"vote-{digest}", "prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs, left_out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="votes, as the page exports them")
    parser.add_argument("--pairs", type=Path, metavar="OUT", help="write preference pairs for prepare.pairs")
    parser.add_argument("--run", metavar="FINGERPRINT", help="the run that the votes are about, if not that of data/generated")
    try:
        raise SystemExit(main(parser.parse_args(), sys.stdout))
    except InputError as error:
        raise SystemExit(f"votes: {error}") from None
