"""aligner.scoring.concepts: own and foreign ideas of an answer, and ideas that count as one."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from aligner import keywords
from aligner.keywords.groups import searched
from aligner.scoring.concepts import Catalogue, Foreign, Ideas, joined

CONCEPTS = [
    {"concept": "mean", "keywords": ["sum", {"any": ["average", "centre of mass"]}], "text": "The sum over n, not the product."},
    {"concept": "variance", "keywords": ["squared deviation", "spread"], "text": "The spread, from one squared deviation each."},
    {"concept": "independence", "keywords": ["product", "joint law"], "text": "The joint law is a product."},
    {"concept": "chain", "keywords": ["state", "state space", "next state"], "text": "A next state from the state space."},
]
WORDS = "sum average centre of mass product squared deviation spread joint law next state space the and".split()
TEXTS = st.lists(st.sampled_from(WORDS), max_size=15).map(" ".join)
NAMES = st.sampled_from([row["concept"] for row in CONCEPTS])


def ideas(concept, text, concepts=CONCEPTS, prompt=None):
    return Catalogue(concepts).ideas(concept, keywords.prepare(text, prompt))


def labels(found):
    return [group if isinstance(group, str) else group["any"][0] for _, group in found.foreign]


# ---- By hand --------------------------------------------------------------------------------------------------------


def test_ideas_of_a_complete_answer_are_its_own():
    for row in CONCEPTS:
        assert ideas(row["concept"], row["text"]).foreign == ()
    assert ideas("variance", CONCEPTS[1]["text"]) == Ideas(2, ())


def test_ideas_of_an_answer_about_another_concept_are_foreign():
    found = ideas("variance", "The joint law is a product.")
    assert found == Ideas(0, (Foreign("independence", "joint law"), Foreign("independence", "product")))


def test_ideas_of_a_mixed_answer():
    found = ideas("variance", "The spread, from a squared deviation; and the joint law is a product.")
    assert (found.own, labels(found)) == (2, ["joint law", "product"])


def test_ideas_of_an_answer_that_names_nothing():
    for text in ("", "It depends on much."):
        assert ideas("mean", text) == Ideas(0, ())


def test_ideas_in_the_concept_s_text_are_not_foreign():
    """The mean's text says "product", a key idea of independence; the variance's text does not."""
    assert ideas("mean", "It is a product.") == Ideas(0, ())
    assert labels(ideas("variance", "It is a product.")) == ["product"]


def test_ideas_in_the_concept_s_keywords_are_not_foreign():
    """The mean's text has no "centre of mass", but it is one of its wordings; "mass" alone is an idea of physics."""
    physics = {"concept": "physics", "keywords": ["mass"], "text": "Mass."}
    assert ideas("mean", "The centre of mass.", [*CONCEPTS, physics]) == Ideas(1, ())
    assert labels(ideas("chain", "The centre of mass.", [*CONCEPTS, physics])) == ["average"]


def test_pattern_is_native_to_its_concept():
    """A regular expression is not a text in which its own idea could be found."""
    pattern = {"concept": "law", "keywords": [{"any": [r"law\w*"], "match": "regex"}], "text": "Something else."}
    assert ideas("law", "Laws.", [pattern]) == Ideas(1, ())


def test_overlapping_ideas_count_as_one():
    """In "next state space" the three ideas overlap: the first by name of the two with two words represents all three."""
    found = ideas("mean", "The next state space, with some spread.")
    assert labels(found) == ["next state", "spread"]
    assert labels(ideas("mean", "A state, and far from it a spread.")) == ["state", "spread"]


def test_repeated_idea_counts_once():
    assert ideas("mean", "sum and sum and spread and spread " * 9) == Ideas(1, (Foreign("variance", "spread"),))


def test_echo_of_the_prompt_names_no_idea():
    prompt = "Please explain the spread of values, and its joint law"
    assert labels(ideas("mean", f"{prompt}: it is a squared deviation.", prompt=prompt)) == ["squared deviation"]


def test_catalogue_contains_exact_names_only():
    catalogue = Catalogue(CONCEPTS)
    assert "mean" in catalogue
    assert all(name not in catalogue for name in ("Mean", "", None, "sum"))
    assert None not in Catalogue([]) and "mean" not in Catalogue([])


# ---- Any text -------------------------------------------------------------------------------------------------------


def brute_force(concept, text):
    """Tries every group by itself and joins parts one by one."""
    rows = {row["concept"]: row for row in CONCEPTS}
    named = [(name, group) for name, row in rows.items() for group in row["keywords"] if keywords.hits(text, group)]
    wordings = [word for group in rows[concept]["keywords"] for word in ([group] if isinstance(group, str) else group["any"])]
    allowed = [rows[concept]["text"], *wordings]
    foreign = [group for name, group in named if name != concept and not any(keywords.hits(each, group) for each in allowed)]
    tokens = [searched(group).tokens(keywords.prepare(text)) for group in foreign]
    parts = 0
    while tokens:
        parts, part = parts + 1, tokens.pop()
        while near := [each for each in tokens if each & part]:
            tokens = [each for each in tokens if not each & part]
            part = part.union(*near)
    return sum(name == concept for name, _ in named), parts


@given(NAMES, TEXTS)
@settings(deadline=None, max_examples=100)
def test_ideas_equal_those_of_trying_every_group(concept, text):
    found = ideas(concept, text)
    assert (found.own, len(found.foreign)) == brute_force(concept, text)


@given(NAMES, TEXTS, st.permutations(CONCEPTS))
@settings(deadline=None, max_examples=100)
def test_ideas_ignore_the_order_of_concepts(concept, text, others):
    assert ideas(concept, text, others) == ideas(concept, text)


@given(NAMES, TEXTS, TEXTS)
@settings(deadline=None, max_examples=100)
def test_catalogue_does_not_depend_on_earlier_queries(concept, first, second):
    catalogue = Catalogue(CONCEPTS)
    for text in (first, second, first):
        assert catalogue.ideas(concept, keywords.prepare(text)) == ideas(concept, text)


@given(st.lists(st.frozensets(st.integers(0, 12), max_size=4), max_size=8), st.randoms())
def test_joined_parts_are_a_partition_without_shared_tokens(sets, source):
    found = dict(enumerate(sets))
    parts = joined(found)
    assert sorted(number for part in parts for number in part) == sorted(found)
    unions = [frozenset().union(*(found[number] for number in part)) for part in parts]
    assert all(one.isdisjoint(other) for place, one in enumerate(unions) for other in unions[:place])
    shuffled = joined(dict(source.sample(list(found.items()), len(found))))
    assert {frozenset(part) for part in shuffled} == {frozenset(part) for part in parts}


def test_joined_connects_groups_through_others():
    assert joined({0: frozenset({5}), 1: frozenset({0}), 2: frozenset({0, 5}), 3: frozenset({2})}) == [[2, 0, 1], [3]]


def test_large_catalogue_gives_the_same_ideas_as_a_small_one():
    """Five hundred concepts with other words add nothing to an answer without those words."""
    source = random.Random(2)
    more = [{"concept": f"c{n}", "keywords": [f"w{n} {source.choice('xy')}"], "text": f"w{n}."} for n in range(500)]
    text = "The next state space, with some spread, and a sum."
    assert ideas("mean", text, [*more, *CONCEPTS]) == ideas("mean", text)
