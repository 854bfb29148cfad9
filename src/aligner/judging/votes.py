"""Blind votes: lines of a file that people exported from the page -> checked votes, and preference pairs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from aligner.data.lines import BadRow, decode_line, parse_object, physical_lines
from aligner.files import read_jsonl
from aligner.report import blind
from aligner.run.errors import InputError
from aligner.run.terminal import printable, shown
from aligner.scoring.inputs import GENERATED, MODELS, REFERENCES

TEXTS = ("run", "rater", "id", "prompt", "left_answer", "right_answer", "left_model", "right_model", "verdict")
KEYS = ("version", "seed", *TEXTS)
MAY_BE_EMPTY = ("left_answer", "right_answer")
HEX = frozenset("0123456789abcdef")


class Vote(NamedTuple):
    """One rater's verdict on two answers to one prompt; `place` is file:line, for messages."""

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
        first, second = sorted((self.left_model, self.right_model))
        return first, second

    @property
    def winner(self) -> str | None:
        """The model whose answer is better; None for a tie and for both bad."""
        return {"A": self.left_model, "B": self.right_model}.get(self.verdict)

    @property
    def choice(self) -> str:
        """The verdict in terms of models, comparable between raters who saw the answers on different sides."""
        return self.winner or self.verdict


class Judged(NamedTuple):
    """The run that votes are about: each prompt's text, and each model's answer to it, by the prompt's id."""

    run: str
    prompts: dict[str, str]
    answers: dict[str, dict[str, str]]


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read_run(models: Sequence[str] | None = None) -> Judged:
    """The run in data/generated, from which a page was made: by default reports/index.html, else one that shows `models`."""
    references = list(read_jsonl(REFERENCES))
    paths = [GENERATED / f"{name}.jsonl" for name in sorted(models or MODELS)]
    answers = {path.stem: {row["id"]: row["answer"] for row in read_jsonl(path)} for path in paths if models or path.is_file()}
    try:
        texts = {name: [by_id[reference["id"]] for reference in references] for name, by_id in answers.items()}
    except KeyError as missing:
        raise InputError(f"{GENERATED} does not answer prompt {missing} of {REFERENCES}. Run: dvc repro") from None
    if not answers:
        raise InputError(f"{GENERATED} has no answers. Run: dvc repro; or name the run of the votes: --run FINGERPRINT")
    prompts = {reference["id"]: reference["prompt"] for reference in references}
    return Judged(blind.answers_fingerprint(references, texts), prompts, answers)


def read_votes(paths: Sequence[str], run: str, judged: Judged | None) -> tuple[list[Vote], list[str]]:
    """All valid votes, and a line `file:line: kind: reason` for each invalid one."""
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


def all_votes(files: Sequence[str]) -> list[Vote] | None:
    """All votes of these files, which must be about the answers at hand; None without files."""
    if not files:
        return None
    run = read_run()
    votes, problems = read_votes(files, run.run, run)
    if problems:
        raise InputError(f"{len(problems)} bad votes, the first: {problems[0]}. See them all: python src/votes.py FILES")
    return votes


def lines_of(paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
    """Each physical line of the files, with its file:line."""
    for path in paths:
        for line, raw in enumerate(physical_lines(path), start=1):
            yield f"{printable(path)}:{line}", raw


def read_vote(row: dict[str, Any], place: str) -> Vote:
    """The vote in an object with exactly the keys of the format; raises BadRow for any other."""
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
    """Checks one vote by itself; its sides must be those that its seed draws."""
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
    """Checks that the vote is about this run, and about its very texts."""
    if vote.run != run:
        source = GENERATED if judged else "--run"
        raise BadRow("other_run", f"a vote on run {vote.run[:12]}…, not on {run[:12]}… ({source}); accept it by --run {vote.run}")
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
    """Checks that a rater votes once on a prompt and pair of models, and with one seed on all prompts of a pair."""
    key = (vote.rater, vote.pair, vote.id)
    if key in seen:
        raise BadRow("duplicate_vote", f"{shown(vote.rater)} voted on {shown(vote.id)} before, at {seen[key]}; keep one of them")
    first = seeds.setdefault((vote.rater, vote.pair), vote)
    if first.seed != vote.seed:
        raise BadRow("other_seed", f"seed {vote.seed}, but {first.seed} at {first.place}; one rater has one seed for two models")
    seen[key] = vote.place


# ---- Pairs -----------------------------------------------------------------------------------------------------------


def preference_pairs(votes: Sequence[Vote]) -> tuple[list[dict[str, str]], Counter]:
    """A pair for each prompt and two answers of which most raters prefer one; and the number of others, by reason.

    Votes are counted by text, since two models may have given the same answer. Empty answers cannot be trained on.
    """
    tallies: dict[tuple[str, str, str], Counter[str]] = {}
    left_out: Counter = Counter()
    for vote in votes:
        one, other = sorted((vote.left_answer.strip(), vote.right_answer.strip()))
        preferred = {"A": vote.left_answer, "B": vote.right_answer}.get(vote.verdict)
        tallies.setdefault((vote.prompt, one, other), Counter()).update([] if preferred is None else [preferred.strip()])
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
