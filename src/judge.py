"""judge: a language model compares the answers of base, SFT and DPO, two at a time, in both orders. Off by default.

reads   data/prepared/{references,concepts}.jsonl, data/generated/{base,sft,dpo}.jsonl, params.yaml (score); with --votes, votes
writes  reports/judge.json, reports/judge.md, reports/judged.html (the run's page with the verdicts); each reply, as it arrives,
        in .cache/judge
command python src/judge.py --endpoint http://localhost:8000/v1 --judge NAME
        python src/judge.py --endpoint https://api.example.com/v1 --judge NAME --key-variable OPENAI_API_KEY

Prompts and answers go to the endpoint, which must offer OpenAI's chat completions, and to no one else; without --endpoint nothing
is sent. A key comes only from the environment variable that --key-variable names. A second run sends only the requests without a
stored reply; if all have one, it sends nothing and writes the same bytes.

The judge sees each two answers in both orders, at temperature 0. A model wins a prompt if both orders say so; if they disagree,
the prompt is a tie (Zheng et al. 2023, arXiv 2306.05685). The preference is the mean of both orders' probabilities, if the
endpoint gives log-probabilities, else of their verdicts. A reply without a verdict is null; it is counted, and never a tie.

The judge also gets four canaries: an answer beside itself, which must come out as exactly one half; and a right answer beside one
that says nothing, one that tells the judge what to decide, and its own words in disorder, all of which it must beat. If one
fails, the exit code is 1 and the report says that this judge is no evidence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from aligner.files import read_jsonl, write_json, write_text
from aligner.judging import canaries, contest, page, report, verdicts
from aligner.judging.endpoint import Endpoint, ask_missing, key_of
from aligner.judging.replies import Failure, Reply, open_cache, stored
from aligner.judging.votes import all_votes
from aligner.report.blind import answers_fingerprint
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.terminal import printable, write_line
from aligner.scoring.inputs import CONCEPTS, MODELS, PAIRS, read_answers, read_references
from aligner.scoring.pairs import pair_name
from aligner.scoring.report import rounded

CACHE = Path(".cache/judge")
REPORT = Path("reports/judge.json")
PAGE = Path("reports/judge.md")


def main(arguments: argparse.Namespace, out: TextIO) -> int:
    """Returns the exit code: 0, or 1 if a canary failed."""
    rules = parameters.load(["score"]).score
    references = read_references()
    texts = {name: [row["answer"] for row in read_answers(path, references)] for name, path in MODELS.items()}
    votes = all_votes(arguments.votes)
    tests = canaries.canary_duels(references, {row["concept"]: row for row in read_jsonl(CONCEPTS)})
    duels = {pair_name(pair): contest.pair_duels(pair, references, texts) for pair in PAIRS}
    tested = dict.fromkeys(order for of_name in tests.values() for duel in of_name for order in duel.orders)
    orders = dict.fromkeys(order for of_pair in duels.values() for order in verdicts.orders_of(of_pair))
    if not (arguments.endpoint and arguments.judge):
        raise InputError(report.unconfigured(len(references), len(tested | orders)))

    endpoint = Endpoint(arguments.endpoint, key_of(arguments.key_variable), arguments.timeout)
    judge = verdicts.Judge(endpoint.url, arguments.judge, arguments.logprobs)
    bodies = verdicts.requests(judge, tested, orders, arguments.repeats)
    replies = verdicts.Replies(judge, gather(endpoint, bodies, arguments, out))
    found: dict[str, Any] = {
        "run": answers_fingerprint(references, texts),
        "judge": report.judge_identity(judge, replies),
        "settings": report.judge_settings(rules, arguments.repeats),
        "canaries": canaries.canary_report(tests, replies),
        "replies": contest.reply_report(tested | orders, replies),
        "first_position": contest.first_position(map(replies.verdict, orders)),
        "self_agreement": contest.self_agreement(orders, replies, arguments.repeats),
        "pairs": contest.pair_reports(duels, replies, references, contest.hit_rates(references, texts), votes, rules),
    }
    found["evidence"] = canaries.evidence(found["canaries"])
    write_json(REPORT, rounded(found))
    write_text(PAGE, report.report_page(found))
    page.write_page()
    for line in report.summary_lines(found):
        write_line(out, line)
    write_line(out, f"{found['evidence']['verdict']} ({PAGE})")
    return 0 if found["evidence"]["canaries_passed"] else 1


def gather(endpoint: Endpoint, bodies: dict[str, dict], arguments: argparse.Namespace, out: TextIO) -> dict[str, Reply | Failure]:
    """The outcome of each request, from the cache or from the endpoint."""
    with open_cache(CACHE) as cache:
        outcomes: dict[str, Reply | Failure] = {key: reply for key in bodies if (reply := stored(cache, key))}
        missing = {key: body for key, body in bodies.items() if key not in outcomes}
        key_note = f"with the key of {printable(arguments.key_variable)}" if arguments.key_variable else "without a key"
        counts = f"{len(bodies)} requests, {len(outcomes)} of them answered in {CACHE}; {len(missing)} go to"
        write_line(out, f"{counts} {endpoint.url} ({printable(arguments.judge)}, {key_note})")
        return outcomes | ask_missing(endpoint, missing, arguments.parallel, cache)


def within(kind: type[int] | type[float], most: float) -> Callable[[str], float]:
    """A parser of command-line values above 0 and up to `most`."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"must be above 0 and at most {most}, got {text}")
        return value

    return number


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--endpoint", metavar="URL", help="the address before /chat/completions; without it nothing is sent")
    add("--judge", metavar="NAME", help="the model's name at that endpoint")
    add("--key-variable", metavar="NAME", help="environment variable that holds the key; without it none is sent")
    add("--no-logprobs", dest="logprobs", action="store_false", help="for endpoints that refuse log-probabilities")
    add("--repeats", type=within(int, 100), default=1, metavar="K", help="send each request K times (default 1)")
    add("--parallel", type=within(int, 64), default=4, metavar="K", help="requests at once (default 4)")
    add("--timeout", type=within(float, 3600), default=60, metavar="SECONDS", help="for one try (default 60)")
    add("--votes", nargs="+", default=[], metavar="FILE", help="people's blind votes, to compare the judge with")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        raise SystemExit(main(parse(), sys.stdout))
    except InputError as error:
        raise SystemExit(f"judge: {error}") from None
    except KeyboardInterrupt:
        print(f"\njudge: interrupted; all replies so far are in {CACHE}. To continue, run the same command", file=sys.stderr)
        raise SystemExit(130) from None
