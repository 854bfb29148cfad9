"""aligner.scoring.estimates: quantiles, the choice of interval, and clustered standard errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.answers import random_hits, report_of

from aligner import intervals, statistics
from aligner.scoring import estimates


def test_quantiles_are_interpolated():
    """Of 0 to 20: the 5th percentile is 1, the median 10, the 95th 19."""
    assert estimates.quantiles(range(20, -1, -1)) == {"p5": 1, "p50": 10, "p95": 19, "mean": 10}


def test_difference_interval_changes_at_a_hundred_prompts():
    gaps = [0.5, 0.0, -0.25, 0.25] * 25
    small, large = (estimates.difference_estimate(each) for each in (gaps[:99], gaps))
    assert (small["low"], small["high"]) == intervals.exact_bootstrap_interval(gaps[:99])
    assert (large["low"], large["high"]) == statistics.paired_t_interval(gaps)
    assert small["method"] != large["method"]


def test_clustered_error_of_duplicated_prompts():
    """sum over clusters of squares is 4 times as large, n^2 too; C stays."""
    n, hits = 30, random_hits(30)
    once = report_of(hits, concept=[f"c{i}" for i in range(n)])
    twice = report_of({name: values * 2 for name, values in hits.items()}, concept=[f"c{i}" for i in range(n)] * 2)
    for name in hits:
        before, after = (each["models"][name]["hit_rate"] for each in (once, twice))
        assert after["clustered"]["standard_error"] == pytest.approx(before["standard_error"], rel=1e-12)
        assert after["estimate"] == pytest.approx(before["estimate"])
        assert after["standard_error"] < 0.75 * before["standard_error"]
    before, after = (each["pairs"]["dpo_vs_base"]["mean_difference"] for each in (once, twice))
    assert after["clustered"]["standard_error"] == pytest.approx(before["standard_error"], rel=1e-12)


def test_clustered_error_is_undefined_where_prompts_lack_a_concept():
    found = report_of(random_hits(3), concept=["x", None, "y"])["models"]["base"]["hit_rate"]["clustered"]
    assert found["estimate"] is None and found["reason"] == "1 of 3 prompts name no concept"


def test_interval_coverage_of_the_benchmark():
    """The benchmark, run for n = 20: Tango's interval covers .958 on average and .935 at worst; the t interval falls to .876."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, root / "benchmarks" / "interval_coverage.py", "20"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    found = {row["method"]: row["found"] for row in json.loads(done.stdout.splitlines()[-1])}
    assert found["Tango"] == pytest.approx([0.958, 0.935, 0.292], abs=0.0006)
    assert found["paired t"] == pytest.approx([0.940, 0.876, 0.314], abs=0.0006)
    assert found["Wilson on W+T/2"] == pytest.approx([0.979, 0.935, 0.372], abs=0.0006)
    assert found["percentile bootstrap"] == pytest.approx([0.943, 0.876, 0.277], abs=0.0006)
    assert found["Bonett-Price"] == pytest.approx([0.963, 0.936, 0.298], abs=0.0006)
