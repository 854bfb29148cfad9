"""Blind votes: the fingerprint of a run's answers, aliases that hide model names, and the side on which each model appears.

page.js computes the same `draw`, to the same 32 bits. `src/votes.py` uses it to check that the sides in a file of votes are the
ones that its seed drew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

VERSION = 1
VERDICTS = ("A", "B", "tie", "both bad")
SEEDS = 2**32


def answers_fingerprint(references: Sequence[Mapping[str, Any]], texts: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of all prompts with their ids and all models' answers, as canonical JSON."""
    rows = [
        {"id": reference["id"], "prompt": reference["prompt"], "answers": {name: given[number] for name, given in texts.items()}}
        for number, reference in enumerate(references)
    ]
    canonical = json.dumps(rows, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def alias(run: str, model: str) -> str:
    """The name of a model in the browser's storage while votes are cast."""
    return hashlib.sha256(f"{run}\n{model}".encode()).hexdigest()[:12]


def draw(seed: int, aliases: Sequence[str], id: str) -> int:
    """32 bits for one prompt: FNV-1a over the seed, both sorted aliases and the prompt's id, mixed as in MurmurHash3.

    They order the prompts, and the lowest bit decides which model is on the left.
    """
    bits = 0x811C9DC5
    for byte in "\n".join([str(seed), *sorted(aliases), id]).encode():
        bits = ((bits ^ byte) * 0x01000193) % SEEDS
    bits = ((bits ^ bits >> 16) * 0x85EBCA6B) % SEEDS
    bits = ((bits ^ bits >> 13) * 0xC2B2AE35) % SEEDS
    return bits ^ bits >> 16


def sides(seed: int, run: str, models: Sequence[str], id: str) -> tuple[str, str]:
    """(left, right) for one prompt; the order of `models` does not matter."""
    first, second = sorted(models, key=lambda model: alias(run, model))
    swapped = draw(seed, [alias(run, first), alias(run, second)], id) & 1
    return (second, first) if swapped else (first, second)
