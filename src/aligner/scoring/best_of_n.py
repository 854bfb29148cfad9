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
    hit_rate_gain and precision_gain are the differences to one sample, prompt by prompt.
    """
    entries = []
    first = [expected(samples, 1) for samples in prompts]
    for n in sizes:
        picked = [expected(samples, n) for samples in prompts]
        entry: dict[str, Any] = {"n": n, "kl": kl_of_best_of_n(n)}
        for name in MEASURES:
            entry[name] = difference_estimate([value for each in picked if (value := each[name]) is not None])
        for name in ("hit_rate", "precision"):
            known = [(now[name], then[name]) for now, then in zip(picked, first, strict=True)]
            both = [(now, then) for now, then in known if now is not None and then is not None]
            entry[f"{name}_gain"] = difference_estimate(differences([now for now, _ in both], [then for _, then in both]))
        entry["oracle_hit_rate"] = difference_estimate(
            [_number(expected(samples, n, by="hit_rate")["hit_rate"]) for samples in prompts]
        )
        entries.append(entry)
    return entries


SHOWN = ("reward", "hit_rate", "hit_rate_gain", "oracle_hit_rate", "precision", "precision_gain", "words", "repeats")


def figures_of(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of reports/best_of_n.json for the largest n, to four digits, and `curve`, the estimates of each n.

    best_n is the n with the highest hit rate. health is over-optimised if the hit rate or the precision of the largest n is below
    that of one sample beyond chance, although the reward, which picks the answers, is higher (Gao et al. 2022, arXiv 2210.10760);
    otherwise healthy.
    """
    last = entries[-1]
    figures: dict[str, Any] = {"n": last["n"]}
    for name in SHOWN:
        figures |= {name: last[name]["estimate"], f"{name}_low": last[name].get("low"), f"{name}_high": last[name].get("high")}
    highs = [figures[f"{name}_gain_high"] for name in ("hit_rate", "precision")]
    figures |= {
        "best_n": max(entries, key=lambda entry: entry["hit_rate"]["estimate"])["n"],
        "kl_per_answer_sampled": last["kl"],
    }
    shown = {name: round(value, 4) + 0.0 if isinstance(value, float) else value for name, value in figures.items()}  # no -0.0
    health = "over-optimised" if any(high is not None and high < 0 for high in highs) else "healthy"
    return shown | {"health": health, "curve": list(entries)}


def points(entries: Sequence[dict[str, Any]], series: dict[str, str]) -> Iterator[list[Any]]:
    """Rows (n, series, value, kl) for a plot; `series` maps measures to names."""
    for measure, name in series.items():
        for entry in entries:
            if entry[measure]["estimate"] is not None:
                yield [entry["n"], name, entry[measure]["estimate"], entry["kl"]]


def _number(value: float | None) -> float:
    assert value is not None, "rewards and hit rates are always defined"
    return value
