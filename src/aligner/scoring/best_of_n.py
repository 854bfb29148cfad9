"""Best-of-n curves: the best of n samples by a reward model, and what the measures of score say about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from aligner.scoring.estimates import difference_estimate, differences

Sample = dict[str, float | None]
MEASURES = ("reward", "hit_rate", "precision", "words", "repeats")


def kl_of_best_of_n(n: int) -> float:
    """log n - (n - 1) / n nats: KL(best-of-n || one sample), which no draw exceeds (Beirami et al. 2024, arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def pick_probabilities(n: int, samples: int) -> list[float]:
    """For each of `samples` samples in ascending order of reward, the probability that it is the best of n of them."""
    return [math.comb(rank, n - 1) / math.comb(samples, n) for rank in range(samples)]


def expected(samples: Sequence[Sample], n: int, by: str = "reward") -> Sample:
    """The expected measures of the sample with the highest `by` among n of `samples`, over all ways to draw n of them.

    Of equal samples, the earlier one is picked last. A measure that some samples lack is the mean over those that have it; None
    if all of them lack it.
    """
    ordered = sorted(samples, key=lambda sample: _number(sample[by]))
    picked = pick_probabilities(n, len(ordered))
    means: Sample = {}
    for measure in MEASURES:
        values = [sample[measure] for sample in ordered]
        known = [(p, value) for p, value in zip(picked, values, strict=True) if value is not None]
        total = math.fsum(p for p, _ in known)
        means[measure] = math.fsum(p * value for p, value in known) / total if total else None
    return means


def curves(prompts: Sequence[Sequence[Sample]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """One entry per n: `n`, `kl`, and each measure as an Estimate over prompts, with its 95 % interval.

    oracle_hit_rate is that of the best of n picked by the hit rate itself: what a perfect reward model would reach.
    hit_rate_gain is the difference to one sample, prompt by prompt.
    """
    first = [_number(expected(samples, 1)["hit_rate"]) for samples in prompts]
    entries = []
    for n in sizes:
        picked = [expected(samples, n) for samples in prompts]
        best = [_number(expected(samples, n, by="hit_rate")["hit_rate"]) for samples in prompts]
        hits = [_number(each["hit_rate"]) for each in picked]
        means = {name: difference_estimate([v for each in picked if (v := each[name]) is not None]) for name in MEASURES}
        gain = difference_estimate(differences(hits, first))
        entry = {"n": n, "kl": kl_of_best_of_n(n), **means, "oracle_hit_rate": difference_estimate(best), "hit_rate_gain": gain}
        entries.append(entry)
    return entries


def figures_of(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of reports/best_of_n.json for the largest n, and `curve`, the estimates of each n.

    best_n is the n with the highest hit rate. over_optimised: its hit rate is above that of the largest n although the reward
    still grew (Gao et al. 2022, arXiv 2210.10760).
    """
    last, best = entries[-1], max(entries, key=lambda entry: entry["hit_rate"]["estimate"])
    shown = ("reward", "hit_rate", "hit_rate_gain", "oracle_hit_rate", "precision", "words", "repeats")
    figures: dict[str, Any] = {"n": last["n"]}
    for name in shown:
        figures[name] = last[name]["estimate"]
        figures |= {f"{name}_{end}": last[name].get(end) for end in ("low", "high")}
    grew = last["reward"]["estimate"] > best["reward"]["estimate"]
    return figures | {
        "best_n": best["n"],
        "over_optimised": grew and best["hit_rate"]["estimate"] > last["hit_rate"]["estimate"],
        "kl_per_answer_sampled": last["kl"],
        "curve": list(entries),
    }


def points(entries: Sequence[dict[str, Any]], series: dict[str, str]) -> Iterator[list[Any]]:
    """Rows (kl, series, value, n) for a plot; `series` maps measures to names."""
    for measure, name in series.items():
        for entry in entries:
            if entry[measure]["estimate"] is not None:
                yield [entry["kl"], name, entry[measure]["estimate"], entry["n"]]


def _number(value: float | None) -> float:
    assert value is not None, "rewards and hit rates are always defined"
    return value
