"""aligner.scoring.models: rates, precision, health and diversity of answers counted by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.answers import answer, report_of
from support.scored import nulls

from aligner import intervals
from aligner.scoring import estimates
from aligner.scoring import models as scoring_models
from aligner.scoring.concepts import Foreign, Ideas
from aligner.scoring.report import rounded


def test_rates_of_one_model_by_hand():
    """Hits 4, 2, 0 of 4: macro 1/2 with sd 1/2, micro 6/12, all hit 1/3; own minus shuffled .9, .4, -.1: lift .4."""
    found = report_of({"base": [4, 2, 0], "sft": [4, 2, 0], "dpo": [4, 2, 0]})["models"]["base"]
    assert found["hit_rate"]["estimate"] == 0.5
    assert found["hit_rate"]["standard_error"] == pytest.approx(0.5 / math.sqrt(3))
    assert found["micro_hit_rate"]["estimate"] == 0.5
    assert found["micro_hit_rate"]["standard_error"] == pytest.approx(math.sqrt(3 / 2 * 8) / 12)
    assert (found["all_hit_rate"]["count"], found["all_hit_rate"]["n"]) == (1, 3)
    assert found["lift"]["estimate"] == pytest.approx(0.4)
    assert found["weighted_hit_rate"]["estimate"] is None
    assert found["lengths"]["words"] == {"p5": 10, "p50": 10, "p95": 10, "mean": 10}


def test_health_estimates_count_bad_signs():
    given = [
        answer(0, flags=("empty",), text=""),
        answer(1, stop="length")._replace(refusal=True),
        answer(1),
        answer(2, flags=("stuffed", "degenerate")),
    ]
    found = scoring_models.health_estimates(given)
    counts = {name: each["count"] for name, each in found.items() if "count" in each}
    raised = {"empty": 1, "truncated": 1, "stuffed": 1, "degenerate": 1, "duplicate": 2, "shared": 3, "refusal": 1}
    assert counts == raised | {"echo": 0, "loop": 0, "forbidden": 0, "repeats": 0}
    assert (found["empty"]["low"], found["empty"]["high"]) == intervals.wilson_interval(1, 4)


def speaking(*ideas):
    """Answers that name (own, foreign) ideas; None marks a prompt without a concept of the catalogue."""
    named = [each and Ideas(each[0], (Foreign("other", "word"),) * each[1]) for each in ideas]
    return [answer(1, ideas=each) for each in named]


def test_precision_by_hand():
    """Own 2, 1, 0 of 2, 2, 1 named: 3/5. Residuals 4/5, -1/5, -3/5: SE sqrt(3/2 * 26/25) / 5, t with 2 degrees of freedom."""
    found = scoring_models.precision(speaking((2, 0), (1, 1), (0, 1)))
    assert [found[name] for name in ("estimate", "n", "own", "foreign", "silent", "without_concept")] == [0.6, 3, 3, 2, 0, 0]
    assert found["standard_error"] == pytest.approx(math.sqrt(1.5 * 1.04) / 5)
    assert found["low"] == 0 and found["high"] == 1
    assert found["method"] == "ratio estimator, t"


def test_precision_of_right_wrong_and_mixed_answers():
    right, wrong, mixed = ([each] * 20 for each in ((3, 0), (0, 3), (2, 2)))
    estimates = [scoring_models.precision(speaking(*each))["estimate"] for each in (right, wrong, mixed, right + wrong)]
    assert estimates == [1, 0, 0.5, 0.5]


def test_precision_ignores_silent_answers_and_prompts_without_a_concept():
    spoken = [(2, 0), (1, 1), (3, 1), (0, 1), (2, 1)]
    alone, among = (scoring_models.precision(speaking(*each)) for each in (spoken, [(0, 0), *spoken, None, (0, 0)]))
    assert (among["silent"], among["without_concept"], among["n"]) == (2, 1, 5)
    assert among | {"silent": 0, "without_concept": 0} == alone
    assert 0 < alone["low"] < alone["estimate"] < alone["high"] <= 1


@pytest.mark.parametrize("silent", [0, 99])
def test_precision_of_one_speaking_answer_has_no_interval(silent):
    found = scoring_models.precision(speaking((2, 1), *[(0, 0)] * silent))
    assert found["estimate"] == pytest.approx(2 / 3) and found["n"] == 1
    assert found["low"] is found["high"] is None and found["reason"] == estimates.TOO_FEW


@pytest.mark.parametrize("ideas", [(2, 0), (0, 2), (2, 1), (1, 6)])
def test_precision_of_equal_answers_has_no_interval(ideas):
    found = scoring_models.precision(speaking(*[ideas] * 7))
    assert found["estimate"] == pytest.approx(ideas[0] / sum(ideas))
    assert found["low"] is found["high"] is None and found["reason"] == scoring_models.ALL_ALIKE


@pytest.mark.parametrize(
    ("ideas", "reason"),
    [
        ([None, None], "no prompt names a concept of the catalogue"),
        ([], "no prompt names a concept of the catalogue"),
        ([(0, 0), None], "no answer names a key idea of the catalogue"),
    ],
)
def test_precision_of_nothing_is_undefined_with_a_reason(ideas, reason):
    found = scoring_models.precision(speaking(*ideas))
    assert (found["estimate"], found["reason"], found["n"]) == (None, reason, 0)


@given(st.lists(st.none() | st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=20), st.randoms())
@settings(deadline=None, max_examples=100)
def test_precision_lies_in_its_interval_in_any_order(ideas, source):
    found = scoring_models.precision(speaking(*ideas))
    assert rounded(found) == rounded(scoring_models.precision(speaking(*source.sample(ideas, len(ideas)))))
    assert list(nulls(found)) == []
    if found.get("low") is not None:
        assert 0 <= found["low"] <= found["estimate"] <= found["high"] <= 1


def test_diversity_by_hand():
    """base: a b, a c: 3 different words of 4; dpo: d d; together a b c d, so V = 4. EAD of base 3 / (4 (1 - (3/4)^4))."""
    texts = {"base": ["a b", "a c"], "dpo": ["d d"]}
    found = scoring_models.diversity_estimates({name: [answer(0, text=text) for text in given] for name, given in texts.items()})
    assert found["base"]["distinct_1"]["estimate"] == 0.75 and found["dpo"]["distinct_1"]["estimate"] == 0.5
    assert found["base"]["ead_1"]["estimate"] == pytest.approx(3 / (4 * (1 - 0.75**4)))
    assert found["dpo"]["ead_1"]["vocabulary"] == 4 and found["base"]["ead_2"]["vocabulary"] == 3
    assert found["base"]["ead_3"]["reason"] == "no answer has 3 tokens"
