"""Scores of all answers. Those to prompts without keywords have lengths and text health, but no hit rate and no verdict."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aligner import text_health
from aligner.keywords.scorer import KeywordScore, Scorer
from aligner.keywords.text import prepare
from aligner.scoring.answers import REPETITION_ORDER, Answer, Control, examine
from aligner.scoring.concepts import Catalogue
from aligner.scoring.estimates import Estimate, proportion, undefined
from aligner.scoring.models import UNITS, Answers
from aligner.scoring.pairs import Pair, median_difference

REASON = "no eval prompt has keywords; ask people (src/votes.py) or a judge (src/judge.py)"
FIGURES = (
    *("hit_rate", "micro_hit_rate", "all_hit_rate", "weighted_hit_rate", "novel_hit_rate", "shuffled_hit_rate", "lift"),
    *("precision", "hits_per_100_words"),
)


def with_keywords(references: Sequence[Mapping[str, Any]]) -> list[int]:
    """The numbers of the prompts that have keywords."""
    return [number for number, reference in enumerate(references) if reference["keywords"]]


def score_answers(
    rows: dict[str, list[dict[str, Any]]], references: Sequence[dict[str, Any]], control: Control, catalogue: Catalogue
) -> dict[str, list[Answer]]:
    """Scores every model's answers, prompt by prompt. `control` holds only the prompts with keywords."""
    scored = itertools.count()
    examined = []
    for number, reference in enumerate(references):
        given = {name: of_model[number] for name, of_model in rows.items()}
        if reference["keywords"]:
            examined.append(examine(next(scored), reference, given, control, catalogue))
        else:
            examined.append(examine_unscored(reference, given, catalogue))
    return {name: [answers[name] for answers in examined] for name in rows}


def examine_unscored(reference: dict[str, Any], rows: dict[str, dict[str, Any]], catalogue: Catalogue) -> dict[str, Answer]:
    """All models' answers to a prompt without keywords."""
    answers = {name: _examined(row, reference) for name, row in rows.items()}
    concept = reference.get("concept")
    if concept is None or concept not in catalogue:
        return answers
    texts = {name: prepare(row["answer"], reference["prompt"]) for name, row in rows.items()}
    return {name: answer._replace(ideas=catalogue.ideas(concept, texts[name])) for name, answer in answers.items()}


def _examined(row: dict[str, Any], reference: dict[str, Any]) -> Answer:
    text = row["answer"]
    return Answer(
        text=text,
        stop=row["stop"],
        words=len(text.split()),
        tokens=row["answer_tokens"],
        keyword=no_score(text, reference),
        loop=text_health.loop(text) is not None,
        compression=text_health.compression_ratio(text),
        repetition=text_health.repetition(text, REPETITION_ORDER),
        shuffled=None,
        cut={},
        refusal=text_health.refusal(text),
        repeats=text_health.repeats(text),
    )


def no_score(text: str, reference: Mapping[str, Any]) -> KeywordScore:
    """The flags of an answer (empty, echo, degenerate, forbidden) with no group. A group that is thrown away takes the search."""
    found = Scorer(["-"], reference.get("forbidden", ()), reference["prompt"]).score(text)
    counts = replace(found, hits=0, groups=0, matched=(), weighted_hits=0.0, total_weight=0.0)
    return replace(counts, novel_hits=None, novel_groups=None, density=None)


def unmeasured(**known: Any) -> Estimate:
    return undefined(REASON, n=0, low=None, high=None, **known)


def undefined_figures() -> dict[str, Estimate]:
    """Every figure of a model that needs keywords, undefined."""
    return {name: unmeasured() for name in FIGURES}


def undefined_comparisons(answers: Answers, pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """Every pair without a comparison: only the answers' lengths are compared."""
    return {f"{first}_vs_{second}": _undefined_pair(answers[first], answers[second]) for first, second in pairs}


def _undefined_pair(first: Sequence[Answer], second: Sequence[Answer]) -> dict[str, Any]:
    words = [one.words - other.words for one, other in zip(first, second, strict=True)]
    length = {
        "median_difference": {unit: median_difference(first, second, measured) for unit, measured in UNITS.items()},
        "share_longer": proportion(more > 0 for more in words),
        "share_shorter": proportion(more < 0 for more in words),
        "longer_wins": unmeasured(),
        "length_controlled": unmeasured(standard_error=None),
    }
    similar = {"wins": 0, "ties": 0, "losses": 0, "n": 0, "win_rate": unmeasured(), "mean_difference": unmeasured()}
    return undefined_claim() | {"length": length, "equal_length": undefined_claim(), "similar_length": similar}


def undefined_claim() -> dict[str, Any]:
    counts = {"wins": 0, "ties": 0, "losses": 0, "n": 0}
    decision = {"verdict": "not measured", "reason": REASON}
    estimates = {"win_rate": unmeasured(), "mean_difference": unmeasured()}
    return counts | estimates | {"p": None, "p_holm": None, "reason": REASON, "decision": decision}
