"""aligner.scoring.pairs: comparisons by hand, length bias, and the verdicts with their edges."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.answers import EDGES, RULES, answer, decision, random_hits, references, report_of
from support.golden import PHI2, differences_of
from support.scored import PAIRS

from aligner import intervals, statistics
from aligner.run.params import Score
from aligner.scoring import pairs
from aligner.scoring.pairs import comparison
from aligner.scoring.report import scoring_report


def test_comparison_by_hand():
    """sft 4 2 2 0, base 2 2 0 2: won, tied, won, lost; differences 1/2, 0, 1/2, -1/2."""
    found = report_of({"base": [2, 2, 0, 2], "sft": [4, 2, 2, 0], "dpo": [0] * 4})["pairs"]["sft_vs_base"]
    assert [found[name] for name in ("wins", "ties", "losses", "n", "decided")] == [2, 1, 1, 4, 0.75]
    assert found["win_rate"]["estimate"] == 0.625
    low, high = intervals.tango_interval(2, 1, 1)
    assert (found["win_rate"]["low"], found["win_rate"]["high"]) == ((1 + low) / 2, (1 + high) / 2)
    assert found["mean_difference"]["estimate"] == 0.125
    assert found["p"] == 1 and found["p_smallest_possible"] == 0.25
    assert found["sign_test"]["p"] == 1


@pytest.mark.parametrize("pair", PHI2["pairs"], ids=lambda pair: f"{pair['a']}_{pair['b']}")
def test_comparison_of_the_phi2_golden_pairs(pair):
    gaps = differences_of(pair)
    found = comparison(gaps, [0.0] * len(gaps), 0)
    assert [found[name] for name in ("n", "wins", "ties", "losses")] == [pair[name] for name in ("n", "wins", "ties", "losses")]
    assert found["win_rate"]["estimate"] == pytest.approx(pair["win_rate"], abs=1e-12)
    difference = found["mean_difference"]
    assert difference["standard_error"] == pytest.approx(pair["se_paired"], abs=1e-12)
    assert [difference["low"], difference["high"]] == pytest.approx(pair["ci95_t"], abs=1e-12)
    assert found["p"] == pytest.approx(pair["exact_sign_flip_p"], rel=1e-9)


def test_length_matched_comparisons_by_hand():
    """Words 10 and 10, 12 and 10 (16.7 % of 12), 13 and 10 (23 %): two are similar. Cut, dpo keeps 1/4 on the last."""
    given = {
        "base": [answer(2), answer(2), answer(2)],
        "sft": [answer(2), answer(2), answer(2)],
        "dpo": [answer(3), answer(1, words=12), answer(4, words=13, cut={"base": 0.25})],
    }
    found = scoring_report(given, references(3), PAIRS, RULES)["pairs"]["dpo_vs_base"]
    similar, cut = found["similar_length"], found["equal_length"]
    assert [similar[name] for name in ("n", "wins", "ties", "losses")] == [2, 1, 0, 1]
    assert [cut[name] for name in ("n", "wins", "ties", "losses")] == [3, 1, 0, 2]
    assert cut["hit_rate"]["dpo"]["estimate"] == pytest.approx((0.75 + 0.25 + 0.25) / 3)
    assert {unit: each["estimate"] for unit, each in found["length"]["median_difference"].items()} == {
        "characters": 10,
        "words": 2,
        "tokens": 2,
    }
    assert found["length"]["share_longer"]["count"] == 2
    assert (found["length"]["longer_wins"]["count"], found["length"]["longer_wins"]["n"]) == (1, 2)


def test_verdict_at_equal_length_is_that_of_the_cut_answers():
    """dpo names one idea more on each of twenty prompts, but only after the words of sft's answer."""
    given = {
        "base": [answer(1)] * 20,
        "sft": [answer(2)] * 20,
        "dpo": [answer(3, words=20, cut={"base": 0.25, "sft": 0.5})] * 20,
    }
    found = scoring_report(given, references(20), PAIRS, RULES)["pairs"]["dpo_vs_sft"]
    assert decision(found) == "better"
    assert decision(found["equal_length"]).startswith("inconclusive") and found["equal_length"]["p"] == 1
    assert found["equal_length"]["mean_difference"]["estimate"] == 0


def of_lengths(wins, lengths):
    """Two models' answers: the first wins (1), ties (0.5) or loses (0); it has this many characters more than the other's 100."""
    first = [answer(int(4 * win), text="x" * (100 + more)) for win, more in zip(wins, lengths, strict=True)]
    return first, [answer(2, text="y" * 100) for _ in wins]


def test_length_controlled_estimate_is_that_of_the_outcomes():
    """Twenty prompts, longer on twelve and shorter on eight; the golden runs check the fit itself."""
    source = random.Random(4)
    wins, lengths = [source.choice([0, 0.5, 1]) for _ in range(20)], [30] * 6 + [50] * 6 + [-20] * 4 + [-40] * 4
    found = pairs.length_controlled_estimate(*of_lengths(wins, lengths), 0)
    expected = statistics.length_controlled_win_rate([1 + win for win in wins], [100 + more for more in lengths], [100] * 20)
    assert found["estimate"] == expected["estimate"] / 100 and found["standard_error"] == expected["standard_error"] / 100
    assert (found["raw"], found["n"]) == (sum(wins) / 20, 20)
    assert (found["share_longer"], found["share_shorter"]) == (0.6, 0.4)
    assert "warning" not in found


def test_length_controlled_estimate_warns_far_from_the_plain_rate():
    """Longer on 16 of 20 and winning 14 of these, shorter on 4 and winning one: length explains much of .75."""
    wins, lengths = [1] * 14 + [0] * 2 + [1] + [0] * 3, [20, 40] * 8 + [-20, -40] * 2
    found = pairs.length_controlled_estimate(*of_lengths(wins, lengths), 0)
    assert found["raw"] == 0.75 and found["estimate"] < 0.65
    assert found["warning"] == f"{100 * (0.75 - found['estimate']):.0f} percentage points from the plain win rate"


@pytest.mark.parametrize(("shorter", "given"), [(1, False), (2, True)])
def test_length_controlled_estimate_is_undefined_where_one_model_is_nearly_always_longer(shorter, given):
    wins, lengths = [1, 0] * 10, [-30] * shorter + [30 + i for i in range(20 - shorter)]
    found = pairs.length_controlled_estimate(*of_lengths(wins, lengths), 0)
    assert (found["estimate"] is not None) is given
    assert given or found["reason"] == "only 1 of 20 prompts have the opposite order of lengths, below 10%"


def test_length_controlled_estimate_of_a_model_that_always_wins_is_undefined():
    found = pairs.length_controlled_estimate(*of_lengths([1] * 20, [30, -30] * 10), 0)
    assert found["estimate"] is None and found["raw"] == 1 and "do not determine the fit" in found["reason"]


def test_significance_reach_notes_what_cannot_be_significant():
    """Five prompts that differ give p = 2/32 at least; six give 2/64."""
    five, six = (pairs.significance_reach([0.25] * n + [0.0] * 9, 0.05) for n in (5, 6))
    needed = "cannot be significant: 5 prompts differ, and it takes 6 even if one model wins them all"
    assert five == {"p_smallest_possible": 0.0625, "cannot_be_significant": needed}
    assert six == {"p_smallest_possible": 0.03125}


def test_verdict_better_and_worse():
    n = 60
    found = report_of({"base": [1] * n, "sft": [1, 2] * (n // 2), "dpo": [4, 3] * (n // 2)})["pairs"]
    assert {name: decision(pair) for name, pair in found.items()} == dict.fromkeys(found, "better")
    found = report_of({"base": [4] * n, "sft": [1, 2] * (n // 2), "dpo": [0, 1] * (n // 2)})["pairs"]
    assert {name: decision(pair) for name, pair in found.items()} == dict.fromkeys(found, "worse")


def test_verdict_inconclusive_names_the_detectable_effect():
    """Differences +-1/4 in turn, n = 20: sd .2565, MDE (1.96 + .8416) * .2565 / sqrt(20) = 16.1 pp."""
    found = report_of({"base": [1, 2] * 10, "sft": [2, 1] * 10, "dpo": [2, 1] * 10})["pairs"]["sft_vs_base"]
    assert decision(found) == "inconclusive (MDE 16.1 pp at n = 20)"
    assert found["detectable"]["estimate"] == pytest.approx(0.1607, abs=1e-4)


@pytest.mark.parametrize(("n", "word"), [(20, "inconclusive"), (400, "equivalent")])
def test_verdict_of_identical_models(n, word):
    hits = random_hits(n)["base"]
    for name, pair in report_of({"base": hits, "sft": hits, "dpo": hits})["pairs"].items():
        assert pair["win_rate"]["estimate"] == 0.5 and pair["p"] == pair["p_holm"] == 1, name
        assert decision(pair).startswith(word)


def test_verdict_equivalent_needs_the_interval_within_the_margin():
    gaps = [0.25, -0.25] * 100
    outcome = pairs.compare(gaps, [0.0] * 200, 0)
    low, high = statistics.paired_t_interval(gaps, 0.9)
    for margin, word in ((high + 1e-6, "equivalent"), (high - 1e-6, "inconclusive")):
        rules = Score(tie_threshold=0, alpha=0.05, equivalence_margin=margin)
        found = pairs.verdict(gaps, outcome, 1.0, rules)
        assert found["verdict"].startswith(word)
        assert (found["equivalence_interval"]["low"], found["equivalence_interval"]["high"]) == (low, high)


def test_verdict_better_needs_the_adjusted_p():
    """Six wins of six: p = 2/64 = .031, times 6 (three pairs, over whole answers and at equal length) is .1875."""
    found = report_of({"base": [1] * 6, "sft": [2, 3, 2, 3, 2, 3], "dpo": [1, 2, 1, 2, 1, 2]})["pairs"]["sft_vs_base"]
    assert found["p"] == 0.03125 and found["p_holm"] == 0.1875
    assert decision(found).startswith("inconclusive")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
@settings(deadline=None, max_examples=60)
def test_comparison_is_mirrored_by_swapping_the_models(pairs):
    first, second = ([pair[side] / 4 for pair in pairs] for side in (0, 1))
    one, other = comparison(first, second, 0), comparison(second, first, 0)
    assert (one["wins"], one["ties"], one["losses"]) == (other["losses"], other["ties"], other["wins"])
    assert one["win_rate"]["estimate"] + other["win_rate"]["estimate"] == pytest.approx(1)
    assert one["win_rate"]["low"] + other["win_rate"]["high"] == pytest.approx(1)
    assert one["mean_difference"]["estimate"] == -other["mean_difference"]["estimate"]
    assert one["p"] == other["p"]


def test_verdict_of_one_prompt():
    found = report_of(EDGES["one prompt"])["pairs"]["sft_vs_base"]
    assert decision(found) == "inconclusive (MDE undefined at n = 1)"
    assert found["mean_difference"]["low"] is None and found["mean_difference"]["reason"]


def test_verdict_of_two_tied_prompts_is_not_equivalent():
    found = report_of({"base": [2, 2], "sft": [2, 2], "dpo": [2, 2]})["pairs"]["sft_vs_base"]
    assert decision(found).startswith("inconclusive")


def test_verdict_of_all_wins_with_equal_differences():
    """sd 0 gives an interval of no width; p = 2/2^12, times 6."""
    found = report_of(EDGES["all wins"])["pairs"]["sft_vs_base"]
    assert found["p_holm"] == 6 / 2**11 and decision(found) == "better"
    assert found["detectable"]["estimate"] is None and found["detectable"]["reason"] == "all differences are equal"


def test_comparison_refuses_nan_by_its_index():
    with pytest.raises(ValueError, match=r"\[1\] must be a finite number, got nan"):
        comparison([0.5, math.nan, 0.5], [0.5, 0.5, 0.5], 0)
