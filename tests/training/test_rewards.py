"""aligner.training.rewards: each named reward by hand, and their weighted sum."""

import pytest

from aligner.keywords.scorer import Scorer
from aligner.scoring.concepts import Catalogue
from aligner.training.rewards import REWARDS, Prompt, Sample, sentences, weighted

CONCEPTS = [
    {"concept": "mean", "keywords": ["average", "sum"], "text": "The mean is an average: the sum over the count."},
    {"concept": "mode", "keywords": ["most frequent"], "text": "The mode is the most frequent value."},
]
PROMPT = Prompt("1", "Explain the mean.", [5, 6], Scorer(CONCEPTS[0]["keywords"], (), "Explain the mean."), "mean")


def of(name, text, ended=True, length=0.5, prompt=PROMPT):
    return REWARDS[name](Sample(prompt, text, length, ended, Catalogue(CONCEPTS)))


def test_keyword_hits_is_the_hit_rate():
    assert of("keyword_hits", "It is an average of all the values in a list, and nothing more than that.") == 0.5
    assert of("keyword_hits", "average sum average sum") == 0  # stuffed


def test_foreign_ideas_is_their_share_of_all_ideas():
    assert of("foreign_ideas", "It is an average, and it is the most frequent value of all of them.") == 0.5
    assert of("foreign_ideas", "It is an average.") == 0
    assert of("foreign_ideas", "I do not know.") == 0
    assert of("foreign_ideas", "the most frequent value", prompt=PROMPT._replace(concept=None)) == 0


def test_repetition_is_the_share_of_sentences_said_before():
    assert of("repetition", "It is an average. It is one. It is an average. It is an average.") == 0.5
    assert of("repetition", "It is 1.5 on average. It is one.") == 0 and of("repetition", "") == 0
    assert sentences("One. Two? Three!") == ["One.", "Two?", "Three!"]


def test_format_asks_for_an_end_and_a_whole_sentence():
    assert of("format", "It is an average.") == 1
    assert of("format", "It is an average.", ended=False) == of("format", "It is an") == of("format", "") == 0


def test_all_rewards_are_between_0_and_1_and_their_weights_carry_the_sign():
    text = "It is an average. It is an average."
    values = {name: of(name, text) for name in REWARDS}
    assert all(0 <= value <= 1 for value in values.values())
    weights = dict.fromkeys(REWARDS, 0.0) | {"keyword_hits": 2, "repetition": -1}
    assert weighted(values, weights) == pytest.approx(2 * 0.5 - 0.5)
