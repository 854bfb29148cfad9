"""What a blind vote rests on, said once: the run's fingerprint, names that tell nothing, and the side that each model stands on.

The page (page.js) computes `draw` too, to the same 32 bits; `src/votes.py` checks with it that the sides of a votes file are
those that its seed drew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

VERSION = 1
VERDICTS = ("A", "B", "tie", "both bad")
SEEDS = 2**32


def fingerprint(references: Sequence[Mapping[str, Any]], texts: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of the answers data: every prompt with its id and all models' answers to it, as canonical JSON."""
    rows = [
        {"id": reference["id"], "prompt": reference["prompt"], "answers": {name: given[place] for name, given in texts.items()}}
        for place, reference in enumerate(references)
    ]
    canonical = json.dumps(rows, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def alias(run: str, model: str) -> str:
    """The name under which a model stands in the browser's storage while votes are cast."""
    return hashlib.sha256(f"{run}\n{model}".encode()).hexdigest()[:12]


def draw(seed: int, aliases: Sequence[str], id: str) -> int:
    """32 bits for one prompt: FNV-1a over seed, both aliases in order and the prompt's id, mixed as in MurmurHash3.

    They order the prompts, and the last of them tells which model stands on the left.
    """
    bits = 0x811C9DC5
    for byte in "\n".join([str(seed), *sorted(aliases), id]).encode():
        bits = ((bits ^ byte) * 0x01000193) % SEEDS
    bits = ((bits ^ bits >> 16) * 0x85EBCA6B) % SEEDS
    bits = ((bits ^ bits >> 13) * 0xC2B2AE35) % SEEDS
    return bits ^ bits >> 16


def sides(seed: int, run: str, models: Sequence[str], id: str) -> tuple[str, str]:
    """(left, right) for one prompt, whatever the order in which the two models were named."""
    first, second = sorted(models, key=lambda model: alias(run, model))
    swapped = draw(seed, [alias(run, first), alias(run, second)], id) & 1
    return (second, first) if swapped else (first, second)
