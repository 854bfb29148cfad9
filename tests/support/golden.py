"""The golden files: cases with known results that several test modules use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden"


def read(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


TEXTBOOK = {case["id"]: case for case in read("textbook.json")["cases"]}
DPO_REWARDS = read("textbook.json")["dpo_reward_cases"]
PHI2 = read("paired_phi2.json")
TEXTS = read("text_metrics.json")
KEYWORDS = read("keyword_cases.json")["cases"]


def differences_of(pair):
    """The multiset of differences in {-1, -.5, 0, .5, 1} with the pair's counts, mean and standard error.

    W1 and L1, the numbers of +1 and -1, follow from W1 - L1 = 2 sum - W + L and W1 + L1 = (sum of squares - (W+L)/4) / (3/4).
    """
    n, wins, losses = pair["n"], pair["wins"], pair["losses"]
    total = pair["mean_diff"] * n
    squares = pair["se_paired"] ** 2 * n * (n - 1) + n * pair["mean_diff"] ** 2
    gap, both = 2 * total - wins + losses, (squares - (wins + losses) / 4) / 0.75
    whole_wins, whole_losses = round((both + gap) / 2), round((both - gap) / 2)
    counts = {1.0: whole_wins, 0.5: wins - whole_wins, 0.0: pair["ties"], -1.0: whole_losses}
    counts[-0.5] = losses - whole_losses
    return [value for value, count in counts.items() for _ in range(count)]
