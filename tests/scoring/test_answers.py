"""aligner.scoring.answers: the shuffled control beside brute force, cut answers, and the ideas of one answer."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.answers import TAIL

from aligner import keywords
from aligner.scoring.answers import Control, examine
from aligner.scoring.concepts import Catalogue, Foreign, Ideas

VOCABULARY = "mean variance event outcome state step chain noise trend lag matrix union bias sample".split()


def vocabulary_references(n, seed=0):
    source = random.Random(seed)
    return [
        {"id": f"p{i}", "prompt": f"Tell me about number {i}", "topic": "t", "keywords": groups(source, 1 + i % 4)}
        for i in range(n)
    ]


def groups(source, count):
    plain = source.sample(VOCABULARY, count)
    return [
        {"any": [word, source.choice(VOCABULARY)], "match": "inflect"} if index % 2 else word for index, word in enumerate(plain)
    ]


def vocabulary_texts(n, seed=1):
    """Of 1 to 40 words, a fifth to four fifths of them keywords: some texts are stuffed for some prompts and not for others."""
    source = random.Random(seed)
    common = "and then the talk goes on about a house by the sea".split()
    return [
        " ".join(
            source.choice(VOCABULARY if source.random() < (i % 4 + 1) / 5 else common) for _ in range(source.randrange(1, 40))
        )
        for i in range(n)
    ]


def test_control_is_the_mean_over_all_other_prompts():
    asked, texts = vocabulary_references(30), vocabulary_texts(30)
    texts[3], texts[4] = "the mean " * 20, ""
    control = Control(asked)
    stuffed = 0
    for i, text in enumerate(texts):
        scores = [keywords.score(text, row["keywords"]) for row in asked]
        stuffed += any(each.stuffed for each in scores) and not all(each.stuffed for each in scores)
        others = [each.rate for j, each in enumerate(scores) if j != i]
        prepared = keywords.prepare(text, asked[i]["prompt"])
        assert control.rate(i, prepared, "degenerate" in scores[i].flags) == pytest.approx(sum(others) / 29, abs=1e-12)
    assert stuffed > 5


def test_control_needs_another_prompt():
    asked = vocabulary_references(1)
    assert Control(asked).rate(0, keywords.prepare("mean"), False) is None


TEXTS = st.lists(
    st.sampled_from(
        "mean means the no not never state-space state space c++ c cc .net net x_1 1 1,000 1000 0.5 1/2 事件 事件a a概率 概 "
        "running ran run don't E[X] **bold** bold but . , café cafe universities".split()
    ),
    max_size=12,
).map(" ".join)


WORDS = "mean|no mean|state space|state-space|c++|c|.net|x_1|x|1|事件|概|a|run|running|don't|e[x]|bold|café|university|means"


KEYWORDS = st.sampled_from(WORDS.split("|"))


ANY_GROUPS = st.one_of(
    KEYWORDS,
    st.builds(
        lambda words, match, negation: {"any": words, "match": match, "negation": negation},
        st.lists(KEYWORDS, min_size=1, max_size=3),
        st.sampled_from(["word", "inflect", "substring"]),
        st.sampled_from(["ignore", "reject"]),
    ),
    st.sampled_from(["1000", "0.5", "1", "1/2"]).map(lambda number: {"any": [number], "match": "number"}),
    st.sampled_from(["mean.*state", r"\bno\b", "[0-9]+"]).map(lambda pattern: {"any": [pattern], "match": "regex"}),
)


@given(TEXTS, st.lists(ANY_GROUPS, min_size=1, max_size=6))
@settings(deadline=None, max_examples=400)
def test_index_finds_what_trying_every_group_finds(text, groups):
    found = keywords.Index(groups).found(keywords.prepare(text))
    assert set(found) == {number for number, group in enumerate(groups) if keywords.hits(text, group)}
    for number, tokens in found.items():
        score = keywords.score(text, [groups[number]])
        assert score.density is None or score.density == len(tokens) / len(keywords.prepare(text).tokens)


def rows(**texts):
    return {name: {"id": "p", "answer": text, "stop": "end", "answer_tokens": 7} for name, text in texts.items()}


def test_cut_answer_keeps_what_it_has_said_by_then():
    """sft says "mean" as word 5 and "variance" as word 25; base has 10 words: 1 of 2 is left, and base keeps its own."""
    asked = [{"id": "p", "prompt": "Well?", "topic": "t", "keywords": ["mean", "variance"]}]
    filler = TAIL.split()
    long = " ".join(["It", "is", "called", "the", "mean", *filler[:19], "variance", *filler])
    found = examine(0, asked[0], rows(base=" ".join(filler[:10]), sft=long), Control(asked), Catalogue([]))
    assert (found["sft"].rate, found["sft"].cut) == (1, {"base": 0.5})
    assert (found["base"].rate, found["base"].cut) == (0, {"sft": 0})


def test_cut_answer_can_become_stuffed():
    asked = [{"id": "p", "prompt": "Well?", "topic": "t", "keywords": ["mean", "variance"]}]
    found = examine(0, asked[0], rows(base="One two three", sft=f"mean and variance, {TAIL}"), Control(asked), Catalogue([]))
    assert (found["sft"].rate, found["sft"].cut["base"]) == (1, 0)


def test_answer_cut_to_no_words_keeps_nothing():
    asked = [{"id": "p", "prompt": "Well?", "topic": "t", "keywords": ["mean"]}]
    found = examine(0, asked[0], rows(base="", sft=f"The mean, {TAIL}"), Control(asked), Catalogue([]))
    assert (found["sft"].rate, found["sft"].cut["base"]) == (1, 0)


def test_ideas_are_those_of_the_concept_of_the_prompt():
    catalogue = Catalogue([{"concept": name, "keywords": [name], "text": f"A {name}."} for name in ("mean", "spread")])
    asked = [{"id": "p", "prompt": "Well?", "topic": "t", "keywords": ["mean"]}]
    given = rows(base=f"The mean, {TAIL}", sft=f"The spread, {TAIL}", dpo="spread " * 50)
    own, foreign = Ideas(1, ()), Ideas(0, (Foreign("spread", "spread"),))
    for concept, expected in (("mean", [own, foreign, foreign]), ("nothing", [None] * 3), (None, [None] * 3)):
        found = examine(0, asked[0] | ({"concept": concept} if concept else {}), given, Control(asked), catalogue)
        assert [answer.ideas for answer in found.values()] == expected
    assert "degenerate" in found["dpo"].keyword.flags
