"""aligner.scoring.report: adjusted p-values and q-values, and a report that no order changes and no edge breaks."""

import json
import random

import pytest
from support.answers import EDGES, RULES, decision, models, random_hits, references, report_of
from support.scored import PAIRS, nulls

from aligner import statistics
from aligner.scoring.report import rounded, scoring_report


def test_report_adjusts_p_values_over_the_three_pairs_and_both_lengths():
    found = report_of(random_hits(60))["pairs"].values()
    claims = [*found, *(pair["equal_length"] for pair in found)]
    assert [claim["p_holm"] for claim in claims] == statistics.holm([claim["p"] for claim in claims])


def test_exploratory_q_values_cover_all_tests():
    kinds = ["new_concept", "new_wording"] * 10
    report = report_of(random_hits(20), kind=kinds)
    found = report["exploratory"]
    assert set(found["topics"]) == {"even", "odd"} and set(found["kinds"]) == {"new concept", "new wording"}
    tests = [each for part in ("kinds", "topics") for group in found[part].values() for each in group["pairs"].values()]
    tests += [each for signs in found["health"].values() for each in signs.values()]
    tests += [pair["similar_length"] for pair in report["pairs"].values()]
    assert [test["q"] for test in tests] == statistics.benjamini_hochberg([test["p"] for test in tests])
    assert "exploratory" in found["note"] and str(len(tests)) in found["note"]


def bytes_of(report):
    return json.dumps(rounded(report), allow_nan=False)


def test_report_ignores_the_order_of_prompts():
    n = 50
    hits, order = random_hits(n), random.Random(5).sample(range(50), n)
    columns = {"kind": [f"kind {i % 3}" for i in range(n)], "concept": [f"c{i // 2}" for i in range(n)]}
    given, asked = models(**hits), references(n, **columns)
    moved = {name: [values[i] for i in order] for name, values in given.items()}
    assert bytes_of(scoring_report(given, asked, PAIRS, RULES)) == bytes_of(
        scoring_report(moved, [asked[i] for i in order], PAIRS, RULES)
    )


def test_report_ignores_the_order_of_models():
    hits = random_hits(50)
    one, other = (report_of({name: hits[name] for name in order}) for order in (("base", "sft", "dpo"), ("dpo", "base", "sft")))
    for part in ("models", "pairs", "exploratory"):
        assert bytes_of(one[part]) == bytes_of(other[part])


@pytest.mark.parametrize("hits", EDGES.values(), ids=EDGES)
def test_report_of_small_and_even_data_has_numbers_or_reasons(hits):
    report = report_of(hits, concept=["x"] * len(hits["base"]))
    assert list(nulls(report)) == []
    json.dumps(rounded(report), allow_nan=False)
    for pair in report["pairs"].values():
        assert 0 <= pair["p_holm"] <= 1
        assert decision(pair) in ("better", "worse", "equivalent") or decision(pair).startswith("inconclusive (MDE ")
