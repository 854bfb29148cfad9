"""Canaries: four answers that know nothing, scored like any other on every run.

A score that rewards one of them does not measure knowledge. (One constant text wins 86.5 % on AlpacaEval's length-controlled
judge: Zheng et al. 2024, arXiv 2410.07137.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from aligner import text_health
from aligner.keywords.groups import KeywordGroup
from aligner.keywords.scorer import KeywordScore
from aligner.keywords.text import prepare
from aligner.run.errors import InputError
from aligner.scoring.answers import ROUNDING, Control

COMMON_GROUPS = 3
CARRIER = (
    "There is a lot that one could say here, and much of it depends on what came before; in short, it has to do with "
    "{keywords}, as anyone who has looked into it for a while would agree, whatever else may have been asked."
)


# ---- Canaries --------------------------------------------------------------------------------------------------------


def check_canaries(references: Sequence[dict[str, Any]], control: Control) -> dict[str, dict[str, Any]]:
    """The hit rates of four answers that know nothing; InputError names the first that gets what it must not.

    empty: no text. It must hit nothing on any prompt.
    prompt echo: the prompt itself. Its lines are taken away as echo, so it must hit nothing, even where the prompt names a group.
    all keywords: the first keyword of every group of the prompt (but patterns, which are no words), one a line. Nearly all of
    it is keywords, so wherever it hits two groups it is stuffed and must get nothing. One single hit must be let pass: a
    keyword alone cannot be told from a short right answer. On prompts of one group it therefore gets the full rate.
    constant: one and the same sentence around the most common keywords, for all prompts. It may hit, and is not stuffed; but
    an answer that does not depend on the prompt does as well on shuffled keywords: its rate must equal the control's.
    """
    constant = _constant(control)
    totals = dict.fromkeys(("empty", "prompt echo", "all keywords", "constant"), 0.0)
    shuffled = []
    for place, reference in enumerate(references):
        given = {"empty": "", "prompt echo": reference["prompt"], "all keywords": _joined(reference), "constant": constant}
        for name, text in given.items():
            found = control.scorers[place].score(text)
            _check_canary(name, found, reference)
            totals[name] += found.rate
        prepared = prepare(constant, reference["prompt"])
        shuffled.append(control.rate(place, prepared, text_health.degenerate(constant)))
    rates = {name: total / len(references) for name, total in totals.items()}
    if None not in shuffled:
        _check_constant(rates["constant"], math.fsum(shuffled) / len(references))
    return {name: {"hit_rate": rate, "prompts": len(references)} for name, rate in rates.items()}


def _joined(reference: dict[str, Any]) -> str:
    """A stop after each keyword, so that no negation reaches the next, and a line end, so that no markup does."""
    first = (_first_literal(group) for group in reference["keywords"])
    return "\n".join(f"{keyword}." for keyword in first if keyword)


def _constant(control: Control) -> str:
    """The carrier sentence around the groups that most prompts ask for; of equals, those that come first in the file."""
    order = sorted(range(len(control.asking)), key=lambda number: (-len(control.asking[number]), number))
    literals = (_first_literal(control.index.groups[number]) for number in order)
    return CARRIER.format(keywords=", ".join([keyword for keyword in literals if keyword][:COMMON_GROUPS]) or "much")


def _first_literal(group: KeywordGroup) -> str | None:
    """In one line, since a line of its own could be a line of the prompt, and so be taken for its echo."""
    if isinstance(group, str):
        return " ".join(group.split())
    return None if group.get("match") == "regex" else " ".join(str(group["any"][0]).split())


def _check_canary(name: str, found: KeywordScore, reference: dict[str, Any]) -> None:
    allowed = {"empty": 0, "prompt echo": 0, "all keywords": 1}.get(name, found.groups)
    if found.hits > allowed:
        raise InputError(
            f"canary {name!r} hits {found.hits} of {found.groups} groups of prompt {reference['id']!r}, more than {allowed}: "
            "hit rates would reward answers that know nothing. Look at the prompt's keywords in the file of prepare.eval"
        )


def _check_constant(rate: float, shuffled: float) -> None:
    if abs(rate - shuffled) > ROUNDING:
        raise InputError(
            f"canary 'constant' has a hit rate of {rate:.6f} but {shuffled:.6f} on shuffled keywords: they must be equal for an "
            "answer that is the same for all prompts, so the shuffled control is wrong. Does a prompt hold the canary's sentence?"
        )
