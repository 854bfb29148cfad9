"""aligner.text_health: the golden texts and corpora, and the edges of every measure."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import TEXTS as GOLDEN

from aligner.text_health import (
    adjusted_distinct,
    compression_ratio,
    count_ngrams,
    degenerate,
    loop,
    refusal,
    repeats,
    repetition,
    tokens,
)

WORDS = st.lists(st.sampled_from("a b c d . ,".split()), max_size=40).map(" ".join)


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda case: case["name"])
def test_golden_text(case):
    text = case["text"]
    assert len(tokens(text)) == case["n_tokens"]
    assert loop(text) == case["tail_loop"], case["why"]
    assert degenerate(text) is case["degenerate_loop"], case["why"]
    for n in (1, 2, 3, 4):
        assert repetition(text, n) == pytest.approx(case[f"rep_{n}"], abs=1e-12)
    # Other builds of zlib (zlib-ng) may compress to a byte or two more or less.
    assert compression_ratio(text) == (case["zlib9_ratio"] and pytest.approx(case["zlib9_ratio"], rel=0.05))


@pytest.mark.parametrize("case", GOLDEN["corpora"], ids=lambda case: case["name"])
def test_golden_corpus(case):
    for n in (1, 2, 3):
        [(different, total)], _ = count_ngrams([case["texts"]], n)
        assert different / total == pytest.approx(case[f"distinct_{n}"], abs=1e-12)
    [counts], _ = count_ngrams([case["texts"]], 1)
    assert adjusted_distinct(*counts, vocabulary=1000) == pytest.approx(case["ead_1_V1000"], abs=1e-12)
    assert len(set(case["texts"])) / len(case["texts"]) == case["unique_text_share"]


def test_count_ngrams_by_corpus_and_together():
    assert count_ngrams([["a b a", "b"], ["b c", ""]], 1) == ([(2, 4), (2, 2)], 3)
    assert count_ngrams([["a b a", "b"], ["a b c", ""]], 2) == ([(2, 2), (2, 2)], 3)
    assert count_ngrams([[], ["", "one"]], 2) == ([(0, 0), (0, 0)], 0)
    assert count_ngrams([[]], 1) == ([(0, 0)], 0)


def test_adjusted_distinct_is_one_for_random_draws_of_any_length():
    """Of V = 50 words, C draws show V (1 - (1 - 1/V)^C) distinct ones on average; their distinct-1 falls with C."""
    for total in (10, 100, 1000):
        expected = 50 * (1 - (49 / 50) ** total)
        assert adjusted_distinct(expected, total, 50) == pytest.approx(1)
    assert adjusted_distinct(0, 0, 50) is None and adjusted_distinct(1, 7, 1) == 1
    with pytest.raises(ValueError, match="vocabulary must be at least the 3 different n-grams, got 2"):
        adjusted_distinct(3, 5, 2)


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, I cannot assist you.",
    "As an AI language model, I do not have opinions.",
    "Unfortunately, I am unable to answer this question.",
    "I don't know what a martingale is.",
    "I cannot really say. It depends.",
    "I apologize, this is beyond me.",
]
ANSWERS = [
    "",
    "A chain cannot help returning to a recurrent state.",
    "The walker says sorry when she meets a wall.",
    "If I know the variance, I have the standard deviation.",
    "An assistant draws a ball without looking.",
    "It is long. " * 20 + "I cannot answer that.",
]


@pytest.mark.parametrize(("text", "declines"), [(text, True) for text in REFUSALS] + [(text, False) for text in ANSWERS])
def test_refusal_phrases(text, declines):
    assert refusal(text) is declines


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a " * 15, None),
        ("a " * 16, {"tokens": 16, "period": 1}),
        ("start " + "a b c d e " * 3 + "a b c d", None),
        ("start " + "a b c d e " * 4, {"tokens": 20, "period": 5}),
        ((" ".join(map(str, range(64))) + " ") * 3, None),
        ((" ".join(map(str, range(64))) + " ") * 4, {"tokens": 256, "period": 64}),
        ((" ".join(map(str, range(65))) + " ") * 4, None),
        ("- . " * 40, None),
    ],
)
def test_loop_at_its_limits(text, found):
    assert loop(text) == found


@given(WORDS, st.lists(st.sampled_from("vwxyz"), min_size=1, max_size=6), st.integers(4, 8))
@settings(deadline=None)
def test_loop_of_a_repeated_tail(head, period, times):
    text = f"{head} . {' '.join(period * times)}"
    found = loop(text)
    if len(period) * times >= 16:
        assert found["tokens"] >= len(period) * times
        assert len(period) % found["period"] == 0
        assert degenerate(text)


def test_degenerate_without_a_loop():
    text = "the same words come again and again, " * 20 + "but the end is new"
    assert loop(text) is None
    assert compression_ratio(text) > 5
    assert degenerate(text)
    assert not degenerate(text[-150:])


def test_undefined_is_none():
    assert compression_ratio("") is None
    assert loop("") is None
    assert repetition("", 1) == 0.0


@pytest.mark.parametrize("measure", [loop, degenerate, compression_ratio, refusal, lambda text: repetition(text, 1)])
def test_text_must_be_a_string(measure):
    with pytest.raises(ValueError, match="got None"):
        measure(None)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_n_must_be_a_whole_number(n):
    with pytest.raises(ValueError, match="n must be an integer of at least 1"):
        count_ngrams([["a"]], n)
    with pytest.raises(ValueError, match="n must be an integer of at least 1"):
        repetition("a", n)


def test_count_ngrams_refuses_one_string():
    with pytest.raises(ValueError, match="texts must be a list of strings"):
        count_ngrams(["text"], 1)


@given(st.lists(WORDS, min_size=2, max_size=6), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_measures_stay_in_their_range_and_ignore_order(texts, n):
    [(different, total)], together = count_ngrams([texts], n)
    assert 0 <= different <= total and together == different and (different > 0) == (total > 0)
    assert count_ngrams([texts[::-1]], n) == ([(different, total)], different)
    assert all(0 <= repetition(text, n) < 1 for text in texts)


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("", False),
        ("One sentence stands alone.", False),
        ("A state is left. A state is left.", True),
        ("A state is left. Then it is not. a state, is left!", True),
        ("A state is left\nA state is left", True),
        ("Yes. Yes. No. No.", False),
        ("The mean is 0.5 here. The mean is 0.5 there.", False),
        ("A state is left. A state is left twice.", False),
    ],
)
def test_repeats_counts_sentences_of_three_words_or_more(text, twice):
    assert repeats(text) is twice
