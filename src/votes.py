"""votes: checks the blind votes that people exported from reports/index.html, reports their results, and makes pairs of them.

reads   files of votes (JSON lines), data/prepared/references.jsonl, data/generated/*.jsonl and params.yaml (score)
writes  reports/votes.json (verdicts), reports/judged.html (the run's page with them); with --pairs, preference pairs in the
        format of prepare.pairs
command python src/votes.py votes-ann.jsonl votes-bob.jsonl
        python src/votes.py votes-*.jsonl --pairs data/raw/voted_pairs.jsonl

A vote counts for the run whose answers it judged: the one in data/generated, or another by --run FINGERPRINT. Votes on the page
of a league (reports/league.html) name its models: --models sft kto orpo.

Prompts for evaluation cannot be trained on: prepare refuses pairs whose prompts are eval prompts. So vote on separate prompts,
and evaluate on others:

    dvc exp run -S prepare.eval=data/raw/eval_prompts_dev.jsonl
    (vote in reports/index.html, and export)
    python src/votes.py votes-*.jsonl --pairs data/raw/voted_pairs.jsonl
    python src/prepare.py --check data/raw/voted_pairs.jsonl
    cat data/raw/dpo_pairs.jsonl data/raw/voted_pairs.jsonl > data/raw/all_pairs.jsonl
    dvc exp run -S prepare.pairs=data/raw/all_pairs.jsonl -S prepare.eval=data/raw/eval_prompts.jsonl

The model has then trained on the prompts with votes, so they can no longer serve to choose hyperparameters.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from aligner.files import read_json, write_jsonl
from aligner.judging import page
from aligner.judging.agreement import vote_report
from aligner.judging.votes import Vote, preference_pairs, read_run, read_votes
from aligner.markdown import figure
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.terminal import write_line


def main(arguments: argparse.Namespace, out: TextIO) -> int:
    """Returns the exit code: 0, or 1 if a vote is invalid."""
    judged = read_run(arguments.models) if arguments.run is None else None
    votes, problems = read_votes(arguments.files, judged.run if judged else arguments.run, judged)
    for problem in problems:
        write_line(out, problem)
    if problems or not votes:
        write_line(out, f"{len(problems)} problems, {len(votes)} good votes; nothing was counted")
        return 1
    for line in vote_report(votes):
        write_line(out, line)
    if judged and not arguments.models:
        for line in verdicts(judged.run, votes):
            write_line(out, line)
    if arguments.pairs:
        pairs, left_out = preference_pairs(votes)
        if not pairs:
            raise InputError(f"no vote prefers an answer, so there is no pair to write ({listed(left_out)})")
        write_jsonl(arguments.pairs, pairs)
        write_line(out, f"{arguments.pairs}: {len(pairs)} pairs; left out: {listed(left_out)}")
    return 0


def verdicts(run: str, votes: list[Vote]) -> Iterator[str]:
    """Writes the verdicts on the run at hand, and says them."""
    page.write_votes(run, votes, parameters.load(["score"]).score)
    for name, found in read_json(page.VOTES)["pairs"].items():
        decided = f"{found['decision']['verdict']}, adjusted p {figure(found['p_holm'])}, n = {found['n']}"
        yield f"{name.replace('_vs_', ' over ')}: {decided} ({page.VOTES})"
    if made := page.write_page():
        yield f"{made}: the page with these verdicts"


def listed(counts: Counter) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="votes, as the page exports them")
    parser.add_argument("--pairs", type=Path, metavar="OUT", help="write preference pairs for prepare.pairs")
    parser.add_argument("--run", metavar="FINGERPRINT", help="the run that the votes are about, if not that of data/generated")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="the models of the page, if it is not reports/index.html")
    try:
        raise SystemExit(main(parser.parse_args(), sys.stdout))
    except InputError as error:
        raise SystemExit(f"votes: {error}") from None
