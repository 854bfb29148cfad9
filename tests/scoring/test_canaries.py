"""aligner.scoring.canaries: what the four canaries get, and the errors for a score that rewards one of them."""

import pytest
from support.answers import TAIL

from aligner import keywords
from aligner.keywords import scorer
from aligner.run.errors import InputError
from aligner.scoring import canaries
from aligner.scoring.answers import Control
from aligner.scoring.canaries import check_canaries


def canary_references():
    return [
        {"id": "a", "prompt": "What is a mean, and what a variance?", "topic": "t", "keywords": ["mean", "variance", "sum"]},
        {
            "id": "b",
            "prompt": "Say\nmean\nor variance",
            "topic": "t",
            "keywords": ["mean", {"any": ["no bias"], "negation": "reject"}],
        },
        {"id": "c", "prompt": "One word?", "topic": "t", "keywords": ["mean"]},
        {"id": "d", "prompt": "A number?", "topic": "t", "keywords": [{"any": ["1/2"], "match": "number"}, "half", "*star"]},
        {"id": "e", "prompt": "A pattern?", "topic": "t", "keywords": [{"any": ["a.*b"], "match": "regex"}, "mean"]},
    ]


def test_canaries_get_what_they_must():
    """All keywords: 1/1 on c and 1/2 on e (one literal), nothing where two are named. Constant: it names "mean" at least."""
    asked = canary_references()
    found = {name: each["hit_rate"] for name, each in check_canaries(asked, Control(asked)).items()}
    assert found == {
        "empty": 0,
        "prompt echo": 0,
        "all keywords": pytest.approx((1 + 1 / 2) / 5),
        "constant": pytest.approx(found["constant"]),
    }
    assert 0 < found["constant"] < 1


BROKEN = {
    "empty": lambda score: lambda self, text: score(self, text or f"The mean, {TAIL}"),
    "prompt echo": lambda score: lambda self, text: score(self, text.replace("What is a mean", "Well, the mean")),
    "all keywords": lambda score: lambda self, text: score(self, f"{text} {TAIL} {TAIL} {TAIL}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rewarded_canary_fails_and_is_named(monkeypatch, name):
    monkeypatch.setattr(keywords.Scorer, "score", BROKEN[name](keywords.Scorer.score))
    asked = canary_references()
    with pytest.raises(InputError, match=f"canary '{name}' hits . of . groups of prompt 'a'"):
        check_canaries(asked, Control(asked))


def test_constant_canary_finds_a_wrong_control(monkeypatch):
    asked = canary_references()
    control = Control(asked)
    monkeypatch.setattr(control, "rate", lambda *arguments: 0.1)
    with pytest.raises(InputError, match="canary 'constant' has a hit rate of"):
        check_canaries(asked, control)


def test_all_keywords_canary_passes_only_through_stuffing(monkeypatch):
    monkeypatch.setattr(scorer, "STUFFED_DENSITY", 1.0)
    asked = canary_references()
    with pytest.raises(InputError, match="canary 'all keywords'"):
        check_canaries(asked, Control(asked))


def test_constant_canary_is_not_stuffed():
    control = Control(canary_references())
    found = keywords.score(canaries.constant_text(control), ["mean", "variance"])
    assert found.matched == (True, True) and found.hits == 2
