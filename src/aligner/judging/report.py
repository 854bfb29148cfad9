"""The judge's report for people: reports/judge.md and the last lines on the terminal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from aligner.judging.verdicts import MAX_TOKENS, SYSTEM, TEMPERATURE, TOP_LOGPROBS, USER, Judge, Replies
from aligner.markdown import figure, interval, markdown, outcome_table, table, with_interval
from aligner.run.params import Score
from aligner.scoring.estimates import Estimate
from aligner.scoring.inputs import MODELS


def judge_identity(judge: Judge, replies: Replies) -> dict[str, Any]:
    """Everything that must be equal for an equal result."""
    return {
        "endpoint": judge.url,
        "model": judge.model,
        "replied_as": replies.models(),
        "temperature": TEMPERATURE,
        "max_tokens": MAX_TOKENS,
        "top_logprobs": TOP_LOGPROBS if judge.logprobs else None,
        "prompt_sha256": hashlib.sha256(f"{SYSTEM}\n{USER}".encode()).hexdigest(),
    }


def judge_settings(rules: Score, repeats: int) -> dict[str, Any]:
    return {
        "win": "both orders name the same answer; a tie where they disagree or both say tie; null where one says nothing",
        "preference": "mean of both orders' (P(A) + P(tie)/2) / (P(A) + P(B) + P(tie)), or of their verdicts alone",
        "p": "exact sign test of wins against losses; p_holm, over the three pairs, decides with the preference's interval",
        "confidence": 0.95,
        "alpha": rules.alpha,
        "equivalence_margin": rules.equivalence_margin,
        "repeats": repeats,
    }


def unconfigured(prompts: int, count: int) -> str:
    return (
        "no judge is configured, so nothing was sent. With one, "
        f"{prompts} prompts and the answers of {', '.join(MODELS)} would go to its endpoint, in {count} requests. Name both: "
        "python src/judge.py --endpoint http://localhost:8000/v1 --judge NAME (where it asks for a key, the environment variable "
        "that holds it: --key-variable OPENAI_API_KEY)"
    )


def summary_lines(report: dict[str, Any]) -> Iterator[str]:
    for name, found in report["pairs"].items():
        rate = f"win rate {figure(found['win_rate']['estimate'])} ({interval(found['win_rate']) or 'undefined'})"
        yield f"{name.replace('_vs_', ' over ')}: {rate}, n = {found['n']}, {found['decision']['verdict']}"
    if report["replies"]["reasons"]:
        yield "without a verdict: " + reasons(report["replies"]["reasons"])


def reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def report_page(report: dict[str, Any]) -> str:
    judge, evidence = report["judge"], report["evidence"]["verdict"]
    names = ", ".join(map(markdown, judge["replied_as"])) or "no name"
    asked = f"Judge: {markdown(judge['model'])}, which replied as {names}, at temperature {judge['temperature']}, in both orders."
    wins = "A win needs both orders; if they disagree, it is a tie. Rates have 95% intervals; kappa has none here."
    parts = [
        "# A language model's verdict on the answers",
        f"**{evidence[0].upper()}{evidence[1:]}.**",
        f"{asked} The prompt's SHA-256 begins with {judge['prompt_sha256'][:12]}. {wins}",
        outcome_table(report["pairs"]),
        preference_table(report["pairs"]),
        "## The judge itself",
        f"First position: {cell(report['first_position'])} of the verdicts for one answer; 0.5 without position bias. The same "
        f"verdict on every repeat: {cell(report['self_agreement'])}. Without a verdict, which counts nowhere: "
        f"{cell(report['replies']['parse_failures'])} requests ({reasons(report['replies']['reasons']) or 'none'}). "
        f"Probability of the three verdicts together: {mass(report['replies']['token_mass'])}.",
        reliability_table(report["pairs"]),
        canary_table(report["canaries"]),
    ]
    return "\n\n".join(parts) + "\n"


def mass(found: dict[str, float] | None) -> str:
    if found is None:
        return "unknown, since the endpoint gives no log-probabilities"
    return f"{found['mean']:.3f} on average, {found['smallest']:.3f} at least"


def preference_table(pairs: dict[str, Any]) -> str:
    rows = []
    for name, found in pairs.items():
        counts = [str(found["null"]), str(found["equal_answers"])]
        rows.append([name.replace("_vs_", " over "), cell(found["preference"]), *counts, controlled(found)])
    return table(["comparison", "mean preference", "null", "equal answers", "at equal length (diagnostic)"], rows)


def controlled(found: dict[str, Any]) -> str:
    rate = found["length"]["length_controlled"]
    if rate["estimate"] is None:
        return rate["reason"]
    error = f"{rate['estimate']:.3f}, standard error {rate['standard_error']:.3f}"
    return error + (f"; {rate['warning']}" if "warning" in rate else "")


def reliability_table(pairs: dict[str, Any]) -> str:
    people = any("people" in found for found in pairs.values())
    rows = []
    for name, found in pairs.items():
        kappas = [found["keywords"]["kappa"], *([found["people"]["kappa"]] if people else [])]
        rates = [found[key] for key in ("consistency", "first_position", "parse_failures")] + [found["length"]["longer_wins"]]
        rows.append([name.replace("_vs_", " over "), *map(cell, rates), *map(cell, kappas)])
    columns = ["comparison", "same in both orders", "first position wins", "parse failures", "longer wins"]
    return table([*columns, "kappa with hit rates", *(["kappa with people"] if people else [])], rows)


def canary_table(canaries: dict[str, Any]) -> str:
    rows = [
        [name, found["must"], canary_cell(found), str(found["null"]), "passed" if found["passed"] else "**failed**"]
        for name, found in canaries.items()
    ]
    return table(["canary", "must", "got", "null", ""], rows)


def canary_cell(found: dict[str, Any]) -> str:
    if "win_rate" in found:
        return f"win rate of the right answer {cell(found['win_rate'])}"
    return "undefined" if found["preference"] is None else f"{found['preference']:.3f}; n = {found['n']}"


def cell(found: Estimate) -> str:
    return with_interval(found) + ("" if found["estimate"] is None else f"; n = {found['n']}")
