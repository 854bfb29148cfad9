"""Canaries: four answers that know nothing, scored like any other answer on every run.

A score that rewards one of them does not measure knowledge. (One constant text wins 86.5 % on AlpacaEval's length-controlled
judge: Zheng et al. 2024, arXiv 2410.07137.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from aligner import text_health
from aligner.keywords.groups import KeywordGroup, keywords_of, option
from aligner.keywords.scorer import KeywordScore
from aligner.keywords.text import prepare
from aligner.run.errors import InputError
from aligner.scoring.answers import Control
from aligner.scoring.estimates import ROUNDING

COMMON_GROUPS = 3
CARRIER = (
    "There is a lot that one could say here, and much of it depends on what came before; in short, it has to do with "
    "{keywords}, as anyone who has looked into it for a while would agree, whatever else may have been asked."
)


def check_canaries(references: Sequence[dict[str, Any]], control: Control) -> dict[str, dict[str, Any]]:
    """The hit rates of the four canaries. Raises InputError, which names the first canary that gets more than it may.

    empty: no text. It must hit nothing on any prompt.
    prompt echo: the prompt itself. Its lines are removed as echo, so it must hit nothing, even where the prompt names a group.
    all keywords: the first keyword of each group of the prompt (except patterns, which are not words), one a line. Nearly all of
    it is keywords, so wherever it hits two groups it is stuffed and must get nothing. One hit must pass, since a lone keyword
    looks like a short right answer; on prompts of one group it therefore gets the full rate.
    constant: one sentence around the most common keywords, the same for all prompts. It may hit and is not stuffed. But an
    answer that ignores the prompt does as well on shuffled keywords: its rate must equal the control's.
    """
    constant = constant_text(control)
    totals = dict.fromkeys(("empty", "prompt echo", "all keywords", "constant"), 0.0)
    shuffled = []
    for prompt, reference in enumerate(references):
        texts = {"empty": "", "prompt echo": reference["prompt"], "all keywords": all_keywords(reference), "constant": constant}
        for name, text in texts.items():
            scored = control.scorers[prompt].score(text)
            _check_canary(name, scored, reference)
            totals[name] += scored.rate
        prepared = prepare(constant, reference["prompt"])
        shuffled.append(control.rate(prompt, prepared, text_health.degenerate(constant)))
    rates = {name: total / len(references) for name, total in totals.items()}
    known = [rate for rate in shuffled if rate is not None]  # all or, with a single prompt, none
    if known:
        _check_constant(rates["constant"], math.fsum(known) / len(references))
    return {name: {"hit_rate": rate, "prompts": len(references)} for name, rate in rates.items()}


def all_keywords(reference: dict[str, Any]) -> str:
    """The first keyword of each group. A full stop after each stops negation from reaching the next; a line end stops markup."""
    first = (_first_literal(group) for group in reference["keywords"])
    return "\n".join(f"{keyword}." for keyword in first if keyword)


def constant_text(control: Control) -> str:
    """The carrier sentence around the groups that the most prompts list; ties go to those that come first in the file."""
    order = sorted(range(len(control.asking)), key=lambda number: (-len(control.asking[number]), number))
    literals = (_first_literal(control.index.groups[number]) for number in order)
    return CARRIER.format(keywords=", ".join([keyword for keyword in literals if keyword][:COMMON_GROUPS]) or "much")


def _first_literal(group: KeywordGroup) -> str | None:
    """The group's first keyword on one line (a line break could make it a line of the prompt, an echo); None for a pattern."""
    return None if option(group, "match", None) == "regex" else " ".join(keywords_of(group)[0].split())


def _check_canary(name: str, scored: KeywordScore, reference: dict[str, Any]) -> None:
    allowed = {"empty": 0, "prompt echo": 0, "all keywords": 1}.get(name, scored.groups)
    if scored.hits > allowed:
        raise InputError(
            f"canary {name!r} hits {scored.hits} of {scored.groups} groups of prompt {reference['id']!r}, more than {allowed}: "
            "hit rates would reward answers that know nothing. Look at the prompt's keywords in the file of prepare.eval"
        )


def _check_constant(rate: float, shuffled: float) -> None:
    if abs(rate - shuffled) > ROUNDING:
        raise InputError(
            f"canary 'constant' has a hit rate of {rate:.6f} but {shuffled:.6f} on shuffled keywords. An answer that is the same "
            "for all prompts must get the same on both, so the shuffled control is wrong. Does a prompt contain the canary?"
        )
