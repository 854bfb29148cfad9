"""Rows with one good or bad completion each, in the order and with the rotated answers that TRL's KTOTrainer needs."""

from __future__ import annotations

import math
import random
from typing import Any

# TRL's columns: the row's own completion, and the completion that its KL term is estimated on.
COLUMNS = ("completion_ids", "KL_completion_ids")


def in_training_order(rows: list[dict[str, Any]], epochs: float, seed: int) -> list[dict[str, Any]]:
    """The rows of all epochs one after the other, each epoch in a random order of its own; the last may be a part.

    Never empty: a fraction of an epoch that holds no row takes one.
    """
    passes = [random.Random(f"{seed} epoch {epoch}").sample(rows, len(rows)) for epoch in range(math.ceil(epochs))]
    return [row for one in passes for row in one][: max(1, round(epochs * len(rows)))]


def with_rotated_answers(rows: list[dict[str, Any]], batch_size: int, by: int = 1) -> list[dict[str, Any]]:
    """Adds to each row the answer of the row `by` places before it in its batch, the first ones those of the last (TRL: 1).

    The log-probabilities of these mismatched answers estimate KTO's z0. They hold for batches of exactly these rows.
    """
    rotated = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        others = [batch[(place - by) % len(batch)] for place in range(len(batch))]
        rotated += [{**row, "KL_completion_ids": other["completion_ids"]} for row, other in zip(batch, others, strict=True)]
    return rotated
