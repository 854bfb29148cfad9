"""Near duplicates: exactly those that a comparison of all pairs finds, in any order of the rows."""

import random
from itertools import combinations

import pytest

from aligner.data.near_duplicates import Signer, jaccard, near_duplicates, shingles

WORDS = [f"w{number}" for number in range(400)]


def found_in(rows, order=None):
    """near_duplicates on word lists; the digests are hashes of the rows' names, so the order plays no part."""
    order = order or list(range(len(rows)))
    sets = [shingles([rows[number]]) for number in order]
    signer = Signer()
    digests = [hash_of(number) for number in order]
    result = near_duplicates(b"".join(map(signer.sign, sets)), digests, sets.__getitem__)
    pairs = sorted(tuple(sorted([order[first], order[second]])) for first, second, _ in result.pairs)
    return sorted(order[number] for number in result.rows), pairs, result


def hash_of(number):
    return number * 0x9E3779B97F4A7C15 % 2**64


def text(rng, size=60):
    return [rng.choice(WORDS) for _ in range(size)]


def edited(rng, row, edits):
    """The row with this many words replaced; each changes up to three shingles."""
    row = list(row)
    for place in rng.sample(range(len(row)), edits):
        row[place] = rng.choice(WORDS)
    return row


def test_shingles_are_three_words_in_a_row_of_each_text_alone():
    assert shingles([["a", "b", "c", "d"], ["e", "f"]]) == {"a b c", "b c d", "e f"}


def test_jaccard_of_a_small_case():
    """{1, 2, 3} and {2, 3, 4} share two of four."""
    assert jaccard({"1", "2", "3"}, {"2", "3", "4"}) == 0.5


def test_the_signature_estimates_the_similarity():
    """The share of equal places among 64 is within 4 standard errors of J: 4 sqrt(J (1 - J) / 64)."""
    import numpy as np

    rng, signer = random.Random(0), Signer()
    for edits in (1, 3, 8, 20):
        one = text(rng, 200)
        sets = shingles([one]), shingles([edited(rng, one, edits)])
        first, second = (np.frombuffer(signer.sign(row), dtype=np.uint32) for row in sets)
        similarity = jaccard(*sets)
        assert first.shape == (64,)
        assert abs((first == second).mean() - similarity) < 4 * (similarity * (1 - similarity) / 64) ** 0.5 + 1e-9


def planted():
    """40 different texts, and a copy of each: 20 with one word changed (J about 0.9), 20 with twenty (J below 0.4)."""
    rng = random.Random(1)
    rows = [text(rng) for _ in range(40)]
    return [*rows, *(edited(rng, row, 1) for row in rows[:20]), *(edited(rng, row, 20) for row in rows[20:])]


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs():
    rows = planted()
    sets = [shingles([row]) for row in rows]
    expected = [pair for pair in combinations(range(len(rows)), 2) if jaccard(sets[pair[0]], sets[pair[1]]) >= 0.8]
    assert expected == [(number, 40 + number) for number in range(20)]
    numbers, pairs, result = found_in(rows)
    assert pairs == expected and numbers == sorted(number for pair in expected for number in pair)
    assert result.complete and all(similarity >= 0.8 for _, _, similarity in result.pairs)


def test_a_candidate_below_the_threshold_is_no_near_duplicate():
    """With four of 60 words changed, the signatures agree in most places, but the true similarity is below 0.8 and decides."""
    rng = random.Random(2)
    rows = [text(rng)]
    rows.append(edited(rng, rows[0], 4))
    assert 0.6 < jaccard(*(shingles([row]) for row in rows)) < 0.8
    numbers, pairs, result = found_in(rows)
    assert (numbers, pairs) == ([], []) and result.compared > 0


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_changes_nothing(seed):
    rows = planted() + [planted()[0]] * 3
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    assert found_in(rows, order)[:2] == found_in(rows)[:2]


def test_a_thousand_equal_rows_are_all_found_at_little_cost():
    numbers, _, result = found_in([["a", "b", "c", "d"]] * 1000)
    assert len(numbers) == 1000 and result.compared < 2000


def test_a_search_that_ends_early_says_so(monkeypatch):
    monkeypatch.setattr("aligner.data.near_duplicates.MOST_COMPARED", 5)
    numbers, _, result = found_in(planted())
    assert (result.compared, result.complete) == (5, False) and len(numbers) <= 10
