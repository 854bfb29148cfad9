"""reports/judged.html: the page of a run with the verdicts of people and of a judge above its own.

    write_votes(run, votes, rules)      # reports/votes.json
    write_page()                        # the page with all verdicts that are about its run

reports/index.html itself stays as score wrote it: it is an output of a stage, which depends on the stage's inputs only. What a
judge or people said came later and from elsewhere, so it goes into a copy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aligner import intervals, statistics
from aligner.files import read_json, write_json, write_text
from aligner.judging.agreement import balances, majority_outcome
from aligner.judging.votes import Vote
from aligner.markdown import figure, interval
from aligner.report.page import harmless
from aligner.run.params import Score
from aligner.scoring.inputs import PAIRS
from aligner.scoring.pairs import pair_name, verdict, win_rate
from aligner.scoring.report import rounded

INDEX = Path("reports/index.html")
JUDGED = Path("reports/judged.html")
JUDGE = Path("reports/judge.json")
VOTES = Path("reports/votes.json")
RUN = re.compile(r'"run":"([0-9a-f]{64})"')
HEADING = re.compile(r'(<div id="report">\s*<h1>.*?</h1>(?:\s*<p class="lead">.*?</p>)+)', re.S)
SECTION = """
<section id="verdicts-of-others" aria-labelledby="verdicts-of-others-title">
<h2 id="verdicts-of-others-title">Verdicts of people and of a judge</h2>
<p>Whole answers, compared blind. A verdict follows the same rules as those by key ideas; a tie counts half.</p>
<div class="scroll" role="region" tabindex="0" aria-label="Verdicts of people and of a judge"><table>
<thead><tr><th scope="col">comparison</th><th scope="col">by</th><th scope="col">won, tied, lost</th>
<th scope="col">win rate</th><th scope="col">adjusted p</th><th scope="col">verdict</th></tr></thead>
<tbody>{% for row in rows %}<tr><th scope="row">{{ row.pair }}</th><td>{{ row.by }}</td><td>{{ row.counts }}</td>
<td><b>{{ row.rate }}</b> <span class="range">{{ row.interval }}</span></td><td>{{ row.p }}</td><td>{{ row.verdict }}</td></tr>
{% endfor %}</tbody></table></div>
</section>
"""


class Judges(NamedTuple):
    """Who compared the answers, in words, and what they found for each pair of models."""

    by: str
    pairs: dict[str, Any]


# ---- People ----------------------------------------------------------------------------------------------------------


def vote_verdicts(votes: Sequence[Vote], rules: Score) -> dict[str, dict[str, Any]]:
    """For each pair of models with votes: prompts won, tied and lost by majority, and the verdict by score's rules.

    A prompt counts -1/2, 0 or 1/2 in the mean difference; p is the sign test's, adjusted over the pairs (Holm).
    """
    found: dict[str, dict[str, Any]] = {}
    for pair in ordered_pairs(votes):
        outcome = majority_outcome(pair, [vote for vote in votes if set(vote.pair) == set(pair)])
        found[pair_name(pair)] = win_rate(outcome) | {"p": intervals.sign_test(outcome.wins, outcome.losses)}
    adjusted = statistics.holm([each["p"] for each in found.values()])
    for pair, each, p_holm in zip(ordered_pairs(votes), found.values(), adjusted, strict=True):
        of_pair = [vote for vote in votes if set(vote.pair) == set(pair)]
        shares = [((value > 0) - (value < 0)) / 2 for value in balances(pair, of_pair).values()]
        each |= {"p_holm": p_holm, "decision": verdict(shares, majority_outcome(pair, of_pair), p_holm, rules)}
    return found


def ordered_pairs(votes: Sequence[Vote]) -> list[tuple[str, str]]:
    """The pairs that were voted on, the later stage first as in the report; others in alphabetical order."""
    there = {vote.pair for vote in votes}
    usual = [pair for pair in PAIRS if tuple(sorted(pair)) in there]
    return usual + sorted(there - {tuple(sorted(pair)) for pair in usual})


def write_votes(run: str, votes: Sequence[Vote], rules: Score) -> None:
    raters = len({vote.rater for vote in votes})
    found = {"run": run, "votes": len(votes), "raters": raters, "pairs": vote_verdicts(votes, rules)}
    write_json(VOTES, rounded(found))


# ---- The page --------------------------------------------------------------------------------------------------------


def write_page() -> Path | None:
    """Writes the page with all verdicts that are about its run; None, and no page, if there is no page or no such verdict."""
    text = INDEX.read_text(encoding="utf-8") if INDEX.is_file() else ""
    run = RUN.search(text)
    if run is None or HEADING.search(text) is None:
        return None
    rows = [row for judges in judges_of(run[1]) for row in rows_of(judges)]
    if not rows:
        return None
    section = rendered(rows)
    write_text(JUDGED, HEADING.sub(lambda heading: heading[1] + section, text, count=1))
    return JUDGED


def judges_of(run: str) -> list[Judges]:
    """People's and the judge's findings, as far as they are about this run. A judge that failed a canary is no evidence."""
    found = []
    votes, judge = (read_json(path) if path.is_file() else {} for path in (VOTES, JUDGE))
    if votes.get("run") == run:
        raters = f"{votes['raters']} {'person' if votes['raters'] == 1 else 'people'}, {votes['votes']} votes"
        found.append(Judges(raters, votes["pairs"]))
    if judge.get("run") == run:
        trusted = "" if judge["evidence"]["canaries_passed"] else ", which failed a canary: no evidence"
        found.append(Judges(f"judge {judge['judge']['model']}{trusted}", judge["pairs"]))
    return found


def rows_of(judges: Judges) -> list[dict[str, str]]:
    return [
        {
            "pair": name.replace("_vs_", " over "),
            "by": judges.by,
            "counts": f"{found['wins']}, {found['ties']}, {found['losses']}",
            "rate": figure(found["win_rate"]["estimate"]),
            "interval": interval(found["win_rate"]) or "undefined",
            "p": figure(found["p_holm"]),
            "verdict": found["decision"]["verdict"],
        }
        for name, found in judges.pairs.items()
    ]


def rendered(rows: list[dict[str, str]]) -> str:
    """The section as HTML; every value is escaped, as on the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, finalize=harmless, undefined=StrictUndefined)
    return environment.from_string(SECTION).render(rows=rows)
