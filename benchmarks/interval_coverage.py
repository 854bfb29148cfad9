"""Coverage of 95 % intervals of the win rate, by exact enumeration: the reason why score shows Tango's interval.

For 18 truths (share of ties x net win rate) and n prompts, every possible (wins, ties, losses) is weighted by its trinomial
probability. The table shows mean and worst coverage and mean width beside the figures by which the methods were chosen. Those
came without a list of their 18 truths. A search fitted the grid below to the figures for n = 20 alone; it also reproduces those
for n = 40 and 80. Bonett and Price's interval is cut to [0, 1] here, which makes it .001 narrower at n = 20.

command PYTHONPATH=src python benchmarks/interval_coverage.py [N ...]          20, 40 and 80 by default; seconds
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator

import numpy as np

from aligner import intervals, statistics

TIES = (0, 0.2, 0.5, 0.8, 0.9)
NETS = (0, 0.1, 0.25, 0.5, 0.8)
TRUTHS = [(tie, net) for tie in TIES for net in NETS if net <= 1 - tie + 1e-9]
TOLERANCE = 1e-12

# method -> n -> mean coverage, worst coverage, mean width
EXPECTED = {
    "Wilson on W+T/2": {20: (0.979, 0.935, 0.372), 40: (0.982, 0.943, 0.274), 80: (0.979, 0.943, 0.198)},
    "paired t": {20: (0.940, 0.876, 0.314), 40: (0.945, 0.914, 0.217), 80: (0.941, 0.900, 0.151)},
    "percentile bootstrap": {20: (0.943, 0.876, 0.277), 40: (0.951, 0.914, 0.206), 80: (0.958, 0.953, 0.149)},
    "Bonett-Price": {20: (0.963, 0.936, 0.299), 40: (0.957, 0.930, 0.212), 80: (0.954, 0.943, 0.150)},
    "Tango": {20: (0.958, 0.935, 0.292), 40: (0.956, 0.943, 0.208), 80: (0.952, 0.943, 0.148)},
}


def main(sizes: list[int]) -> None:
    rows = [row for n in sizes for row in table(n)]
    print(f"{'method':22s}{'n':>4s}   {'mean / worst / width':24s}{'expected':24s}")
    for row in rows:
        expected = EXPECTED[row["method"]].get(row["n"])
        print(f"{row['method']:22s}{row['n']:4d}   {shown(row['found']):24s}{shown(expected) if expected else '':24s}")
    print(json.dumps(rows))


def shown(figures: tuple[float, ...]) -> str:
    return " / ".join(f"{figure:.3f}" for figure in figures)


def table(n: int) -> Iterator[dict]:
    """One row for every method: mean and worst coverage over the truths, and the mean width."""
    outcomes = [(wins, n - wins - losses, losses) for wins in range(n + 1) for losses in range(n + 1 - wins)]
    chances = [probabilities(outcomes, tie, net) for tie, net in TRUTHS]
    for name, interval in METHODS.items():
        low, high = np.array([interval(*outcome) for outcome in outcomes]).T
        covered, widths = [], []
        for (_, net), chance in zip(TRUTHS, chances, strict=True):
            truth = (1 + net) / 2
            holds = (low <= truth + TOLERANCE) & (truth - TOLERANCE <= high)
            covered.append(float(chance @ holds))
            widths.append(float(chance @ (high - low)))
        yield {"method": name, "n": n, "found": (float(np.mean(covered)), min(covered), float(np.mean(widths)))}


def probabilities(outcomes: list[tuple[int, int, int]], tie: float, net: float) -> np.ndarray:
    """n! / (w! t! l!) p^w tie^t q^l, by logarithms."""
    shares = ((1 - tie + net) / 2, tie, max(0.0, (1 - tie - net) / 2))
    return np.array([math.exp(sum(map(_log_term, counts, shares)) + math.lgamma(sum(counts) + 1)) for counts in outcomes])


def _log_term(count: int, probability: float) -> float:
    if count == 0:
        return 0.0
    return count * math.log(probability) - math.lgamma(count + 1) if probability > 1e-15 else -math.inf


def of_net(interval: Callable) -> Callable:
    return lambda *outcome: tuple((1 + bound) / 2 for bound in interval(*outcome))


def of_differences(interval: Callable) -> Callable:
    return of_net(lambda wins, ties, losses: interval([1.0] * wins + [0.0] * ties + [-1.0] * losses))


def bonett_price_interval(wins: int, ties: int, losses: int) -> intervals.Interval:
    """The adjusted Wald interval of (W-L)/n: p - q +- z sqrt((p + q - (p-q)^2) / (n+2)), cut to [-1, 1].

    p = (W+1)/(n+2), q = (L+1)/(n+2) (Bonett and Price 2012).
    """
    n, z = wins + ties + losses, intervals.normal_quantile()
    p, q = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


METHODS: dict[str, Callable] = {
    "Wilson on W+T/2": lambda wins, ties, losses: intervals.wilson_interval(wins + ties / 2, wins + ties + losses),
    "paired t": of_differences(statistics.paired_t_interval),
    "percentile bootstrap": of_differences(intervals.exact_bootstrap_interval),
    "Bonett-Price": of_net(bonett_price_interval),
    "Tango": of_net(intervals.tango_interval),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", metavar="N", type=int, nargs="*", help="numbers of prompts")
    main(parser.parse_args().sizes or [20, 40, 80])
