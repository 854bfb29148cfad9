"""Blind votes on answers to a person's own prompts, in the format that src/votes.py reads.

The models' fingerprint is the `run` of a vote, a seed decides which answer is shown where (aligner/report/blind.py), and a choice
among three answers becomes one vote for each pair of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

from aligner.report import blind

MOST_MODELS = 3
LETTERS = "ABC"
VERDICTS = (*LETTERS, "tie", "both bad")


def run_fingerprint(models: dict[str, str], settings: dict[str, Any]) -> str:
    """SHA-256 of what answers here: each model's fingerprint by name, and the decoding."""
    return hashlib.sha256(json.dumps([models, settings], sort_keys=True).encode()).hexdigest()


def prompt_id(prompt: str, number: int) -> str:
    """The id of the rater's prompt number `number`; the same prompt asked twice is two prompts."""
    return f"chat-{number}-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}"


def order(seed: int, run: str, models: list[str], id: str) -> list[str]:
    """The models in the order in which their answers are shown: for two, the sides that votes.py checks."""
    if len(models) == 2:
        return list(blind.sides(seed, run, models, id))
    return sorted(models, key=lambda model: (blind.draw(seed, [blind.alias(run, model)], id), model))


def votes(
    run: str, rater: str, seed: int, id: str, prompt: str, answers: dict[str, str], shown: list[str], choice: str
) -> list[dict[str, Any]]:
    """The votes that follow from one choice: A, B or C of the models `shown` in this order, "tie", or "both bad" (all of them).

    Equal answers give no vote, since nobody could tell them apart.
    """
    best = shown[LETTERS.index(choice)] if choice in LETTERS else None
    rows = []
    for pair in itertools.combinations(shown, 2):
        left, right = blind.sides(seed, run, pair, id)
        if answers[left] == answers[right] or (best and best not in pair):
            continue
        verdict = choice if best is None else "AB"[(left, right).index(best)]
        rows.append(
            {
                **{"version": blind.VERSION, "run": run, "rater": rater, "seed": seed, "id": id, "prompt": prompt},
                **{"left_answer": answers[left], "right_answer": answers[right], "left_model": left, "right_model": right},
                "verdict": verdict,
            }
        )
    return rows
