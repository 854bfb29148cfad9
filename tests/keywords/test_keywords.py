"""Keyword groups: the golden cases, every match mode at its edges, and the score of a response."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import KEYWORDS as GOLDEN

from aligner.keywords.groups import hits, validate_group
from aligner.keywords.scorer import score
from aligner.keywords.text import base_forms, normalise, prepare


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_golden_case(case):
    assert hits(case["text"], case["group"]) is case["hit"], case["why"]


def number(keyword):
    return {"any": [keyword], "match": "number"}


def inflect(keyword):
    return {"any": [keyword], "match": "inflect"}


def affirmed(keyword):
    return {"any": [keyword], "negation": "reject"}


# ---- The plain form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("**bold**, *it*, _u_, __d__, ~~s~~ and **N**atural", "bold, it, u, d, s and natural"),
        ("snake_case 2*3*4 x**2 + y**2 A* search", "snake_case 2*3*4 x**2 + y**2 a* search"),
        ("* item one\n* item two", "* item one * item two"),
        ("```python\nprint(1)\n``` and `code`", "print(1) and code"),
        ("![alt](i.png) [t](http://a.b/c_(d)) <https://x.y> a[i][j]", "alt t a[i][j]"),
        ("one<br>two <b class='x'>b</b>old a<b and c>d", "one two bold a<b and c>d"),
        ("H<sub>2</sub>O, 10<sup>2</sup>", "h2o, 10^2"),
        ("if U <p, then X> 0; <p class=a>new</p><hr/>end", "if u <p, then x> 0; new end"),
        (r"\boxed{\text{so } \frac{x+1}{\mathrm{d}y}}", "so x+1/dy"),
        (r"3\frac12 and $\frac{-1}{2}$", "3 1/2 and -1/2"),
        (r"$2 \times 3 \cdot 4$, (a)\cdot(b)\cdot(c)", "2 * 3 * 4, (a)*(b)*(c)"),
        (r"$X_{t+1}$, \[y\], \left( z \right)", "x_t+1, y, ( z )"),
        ("cost $5 or $10, $n$ choose $k$, $ p $ is", "cost $5 or $10, n choose k, p is"),
        ("mc², x¹², 10⁻³, H₂O, 3½", "mc^2, x^12, 10^-3, h2o, 3 1/2"),
        ("1,000,000 and 1,2,3 and 1,000.5 and 12,34", "1000000 and 1,2,3 and 1000.5 and 12,34"),
        ("“don’t” – don´t — 5 − 3", "\"don't\" - don't - 5 - 3"),
        ("a\u00adb\u200bc\u202ed \ufeffe", "abcd e"),
        ("Café naïve Ångström", "cafe naive angstrom"),
        ("a ≠ b", "a ≠ b"),
        ("&lt;i&gt;R&amp;D&lt;/i&gt; &nbsp; x", "r&d x"),
        (r"\*not emphasis\* 5\% a\_b", "*not emphasis* 5% a_b"),
    ],
)
def test_normalise(text, plain):
    assert normalise(text) == plain


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_plain_form_has_single_spaces_and_no_capitals(text):
    plain = normalise(text)
    assert plain == " ".join(plain.split())
    assert plain == plain.casefold() or not plain.isascii()


PLAIN = st.text(alphabet="abcdeXYZéÅß ,.;:'-0123456789\n\t\u2019\u00a0\u4e2d", max_size=60)
WORDS = st.lists(st.sampled_from("the a chain is not never in some state mean of 42 1/2 two-step".split()), max_size=12)


@given(PLAIN)
def test_the_plain_form_of_text_without_markup_is_its_own_plain_form(text):
    assert normalise(normalise(text)) == normalise(text)


@given(PLAIN, st.sampled_from([" ", "\n", "\t ", "\u00a0", "  \r\n"]))
def test_capitals_and_spaces_change_nothing(text, space):
    spaced = space + text.replace(" ", space).swapcase() + space
    assert normalise(spaced) == normalise(text)


@pytest.mark.parametrize(
    "wrap", ["**{}**", "*{}*", "_{}_", "__{}__", "`{}`", "~~{}~~", "[{}](https://x.y)", "<b>{}</b>", "\\text{{{}}}"]
)
@given(words=st.lists(st.sampled_from(["Mean", "state", "x", "two-step", "naïve", "42"]), min_size=1, max_size=4))
def test_markup_around_words_changes_nothing(wrap, words):
    text = " ".join(words)
    assert normalise(f"so {wrap.format(text)} is") == normalise(f"so {text} is")


@pytest.mark.parametrize("match", ["word", "inflect", "substring"])
@given(WORDS, WORDS, WORDS, st.sampled_from(["chain", "state", "mean of", "two step"]))
def test_more_sentences_never_take_a_hit_away(match, before, text, after, keyword):
    """A hit survives sentences before and after it, even if the group rejects negated mentions."""
    longer = f"{' '.join(before)}. {' '.join(text)}. {' '.join(after)}"
    for group in ({"any": [keyword], "match": match}, {"any": [keyword], "match": match, "negation": "reject"}):
        if hits(" ".join(text), group):
            assert hits(longer, group)


@given(WORDS, st.sampled_from(["chain", "state", "mean", "42"]))
def test_a_denial_only_takes_away_and_a_synonym_only_adds(text, keyword):
    answer = " ".join(text)
    if hits(answer, affirmed(keyword)):
        assert hits(answer, keyword)
    if hits(answer, keyword):
        assert hits(answer, {"any": ["no such", keyword]})


@given(st.text(alphabet="ab *_`$\\{}[]()<>~#&;,^", max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_markup_makes_normalise_fail(text):
    assert isinstance(normalise(text), str)


@pytest.mark.parametrize(
    "piece", ["*a ", "**a ", "[", "[a](", "](a(", "$a ", "<a ", "<!--", "\\text{", "\\frac{a}{", "1,", "1/", "a'", "_a"]
)
def test_hostile_repetition_stays_cheap(piece):
    started = time.process_time()
    hits(piece * (30_000 // len(piece)), "needle", prompt=piece * 100)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("text", [None, 5, ["a"], b"a"])
def test_text_must_be_a_string(text):
    with pytest.raises(ValueError, match="text must be a string, got"):
        hits(text, "a")
    with pytest.raises(ValueError, match="text must be a string, got"):
        normalise(text)


# ---- Match modes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keyword", "hit"),
    [
        ("ASP.NET", ".NET", False),
        ("uses .NET now", ".NET", True),
        ("C++11", "C++", False),
        ("my_art_x", "art", True),
        ("article", "art", False),
        ("xna na na", "na na", True),
        ("state - space", "state-space", True),
        ("statespace", "state space", False),
        ("5 < x", "5", True),
        ("3-5", "-5", False),
        ("使用python编程", "python", True),
        ("我的C语言书", "C语言", True),
        ("ABC语言", "C语言", False),
        ("확률은", "확률", True),
        ("ความน่าจะเป็น", "น่า", True),
        ("a ≠ b", "a = b", False),
    ],
)
def test_word(text, keyword, hit):
    assert hits(text, keyword) is hit


@pytest.mark.parametrize(
    ("text", "keyword", "hit"),
    [
        ("two transition matrices", "transition matrix", True),
        ("transition. Matrices", "transition matrix", False),
        ("random-walks", "random walk", True),
        ("it converged", "converge", True),
        ("stopped", "stop", True),
        ("the chain's state", "chain", True),
        ("run", "running", True),
        ("he tries", "try", True),
        ("it was freed", "free", True),
        ("organization", "organ", False),
        ("universes", "universe", True),
        ("class", "clas", False),
        ("analysis", "analysi", False),
        ("string", "str", False),
        ("need", "nee", False),
        ("written in C++ here", "C++", True),
        ("written in C here", "C++", False),
    ],
)
def test_inflect(text, keyword, hit):
    assert hits(text, inflect(keyword)) is hit


@given(st.text(alphabet="abceinrsty'", min_size=1, max_size=8))
def test_a_word_is_a_base_form_of_itself(word):
    assert word.removesuffix("'s") in base_forms(word)


@pytest.mark.parametrize(
    ("text", "keyword", "hit"),
    [
        ("42.5", "42", False),
        ("4.2e1", "42", True),
        ("x=-0.5", "-.5", True),
        ("3-5", "5", True),
        ("3-5", "-5", False),
        ("-5", "5", False),
        ("it is 5.", "5", True),
        ("version 1.2.3", "2", False),
        ("v1.2", "1.2", False),
        ("x2", "2", False),
        ("5kg", "5", True),
        ("共5个", "5", True),
        ("2 × 10⁸ m", "2e8", True),
        ("1 / 3", "1/3", True),
        ("1 / 3", "1", False),
        ("0.333", "1/3", False),
        ("1/0", "1", False),
        ("on 2024/05/06", "5", True),
        ("1e999", "1", False),
        ("0.30000000000000004", "0.3", True),
        ("no digits", "0", False),
    ],
)
def test_number(text, keyword, hit):
    assert hits(text, number(keyword)) is hit


@given(st.integers(-(10**6), 10**6))
def test_every_integer_is_found_as_itself_and_not_as_its_neighbour(value):
    assert hits(f"It is {value:,} in all.", number(str(value)))
    assert not hits(f"It is {value:,} in all.", number(str(value + 1)))


def test_substring_and_regex():
    assert hits("Heartland", {"any": ["art"], "match": "substring"})
    assert hits("Heartland", {"any": ["^heart.*d$"], "match": "regex"})
    assert not hits("Heartland", {"any": ["^art"], "match": "regex"})


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("It is not safe.", False),
        ("It isn't really very safe.", False),
        ("It cannot be safe.", False),
        ("without being safe", False),
        ("not a b c d safe", False),
        ("not a b c d e safe", True),
        ("not only cheap and safe", True),
        ("It is no doubt safe.", True),
        ("without a doubt safe", True),
        ("Nothing is cheap; safe it is", True),
        ("no 3.5 safe", False),
        ("Not safe. Later it was safe.", True),
        ("not safe and not safe", False),
        ("not good although safe", True),
    ],
)
def test_negation(text, hit):
    assert hits(text, affirmed("safe")) is hit
    assert hits(text, "safe")


def test_negation_holds_in_every_match_mode():
    assert not hits("It does not converge.", inflect("converges") | {"negation": "reject"})
    assert not hits("It is not 42.", number("42") | {"negation": "reject"})


@given(st.sampled_from(["alpha", "beta gamma", "C++", "x^2", "naïve"]), st.text(alphabet="xyz .,-", max_size=20))
def test_a_keyword_hits_wherever_it_is_a_separate_word(keyword, around):
    assert hits(f"{around} {keyword} {around}", keyword)
    assert hits(f"{around} {keyword.upper()} {around}", {"any": ["no such", keyword]})


# ---- Groups ----------------------------------------------------------------------------------------------------------


def test_a_good_group_has_no_problem():
    assert validate_group("mean") == []
    assert validate_group({"any": ["mean", "average"], "match": "inflect", "negation": "reject", "weight": 2.5}) == []


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        (5, "a group must be a string or a mapping with the key any, got 5"),
        ("", "keyword '' is empty"),
        ("<b>", "keyword '<b>' is empty after normalisation"),
        ({}, "any must be a list of strings, got None"),
        ({"any": "mean"}, "any must be a list of strings, got 'mean'"),
        ({"any": []}, "any must list at least one keyword"),
        ({"any": [1]}, "any must be a list of strings, got [1]"),
        ({"any": ["x", ""]}, "keyword '' is empty"),
        ({"any": ["Mean", "mean"]}, "keyword 'mean' is listed twice"),
        ({"any": ["x"], "mach": "word"}, "'mach' is not a key of a group (did you mean match?)"),
        ({"any": ["x"], "match": "fuzzy"}, "match must be one of word, inflect, substring, number, regex, got 'fuzzy'"),
        ({"any": ["x"], "negation": None}, "negation must be one of ignore, reject, got None"),
        ({"any": ["x"], "weight": 0}, "weight must be a number > 0 and <= 1,000,000, got 0"),
        ({"any": ["x"], "weight": True}, "weight must be a number > 0 and <= 1,000,000, got True"),
        ({"any": ["x"], "weight": 1e7}, "weight must be a number > 0 and <= 1,000,000, got 10000000.0"),
        ({"any": ["x"], "weight": float("nan")}, "weight must be a number > 0 and <= 1,000,000, got nan"),
        ({"any": ["two"], "match": "number"}, "number 'two' cannot be read: write 42, -0.5, 1e-3 or 1/2"),
        ({"any": ["x*"], "match": "regex"}, "regex 'x*' matches the empty text, so it would match every text"),
    ],
)
def test_a_bad_group_is_named(group, problem):
    assert validate_group(group) == [problem]


def test_all_problems_of_a_group_are_reported_at_once():
    problems = validate_group({"any": ["(", ""], "match": "regex", "wieght": 1, "weight": -1})
    assert len(problems) == 4
    assert "regex '(' cannot be compiled" in problems[2]


@pytest.mark.parametrize("group", [5, None, {}, {"any": ["x"], "match": "fuzzy"}, {"any": ["("], "match": "regex"}])
def test_an_invalid_group_is_an_error(group):
    with pytest.raises(ValueError):
        hits("x", group)


# ---- Echo and score --------------------------------------------------------------------------------------------------

PROMPT = "What is a Markov chain?\nName the Markov property."


def test_echo_earns_nothing():
    assert hits(PROMPT, "Markov chain")
    assert not hits(PROMPT, "Markov chain", prompt=PROMPT)
    assert not hits("What is a Markov chain?\nIt is memoryless.", "Markov chain", prompt=PROMPT)
    assert not hits("what is a Markov chain? It is memoryless.", "Markov chain", prompt=PROMPT)
    assert hits("A Markov chain is memoryless.", "Markov chain", prompt=PROMPT)


def test_an_echo_is_cut_at_a_word():
    assert prepare("The central limit theorem states it.", "The central limit theorem says?").plain == "states it."


def test_score_of_a_plain_answer():
    result = score("It is memoryless: the next state depends on the present one.", ["memoryless", "ergodic"])
    assert (result.hits, result.groups, result.matched, result.flags) == (1, 2, (True, False), ())
    assert (result.rate, result.all_hit, result.stuffed) == (0.5, False, False)
    assert result.density == pytest.approx(1 / 13)
    assert result.novel_hits is result.novel_groups is result.novel_rate is None


def test_saying_it_often_earns_nothing():
    answer = "A chain of states, and a chain again, which is the chain that one draws as a chain."
    assert score(answer, ["chain", "matrix"]).hits == 1


def test_weights_count_in_the_weighted_rate_only():
    groups = [{"any": ["state"], "weight": 3}, "matrix"]
    result = score("The state of the system is known to us at any time.", groups)
    assert (result.rate, result.weighted_rate) == (0.5, 0.75)


def test_novel_hits_are_those_that_the_prompt_does_not_contain():
    answer = "A Markov chain is memoryless, as its name does not say."
    result = score(answer, ["Markov chain", "memoryless"], prompt=PROMPT)
    assert (result.hits, result.novel_hits, result.novel_groups, result.novel_rate) == (2, 1, 1, 1.0)
    assert score("It is a Markov chain.", ["Markov chain"], prompt=PROMPT).novel_rate is None


def test_all_keywords_joined_are_stuffing():
    result = score("alpha, beta, gamma", ["alpha", "beta", "gamma"])
    assert (result.hits, result.rate, result.matched, result.flags) == (0, 0.0, (True, True, True), ("stuffed",))


def test_one_short_right_answer_is_not_stuffing():
    assert score("Paris.", ["Paris"]).hits == 1


def test_a_loop_gets_nothing():
    result = score("the mean " * 20, ["mean"])
    assert (result.hits, result.matched, result.flags) == (0, (True,), ("degenerate", "stuffed"))


def test_a_regex_match_counts_as_one_token_of_density():
    groups = [{"any": ["markov.*memory"], "match": "regex"}, "future"]
    answer = "A Markov chain has, as one says, no memory, so the future needs only the present."
    assert score(answer, groups).hits == 2


def test_empty_answer():
    result = score("  ", ["mean"], prompt=PROMPT)
    assert (result.hits, result.density, result.flags) == (0, None, ("empty",))


def test_prompt_echo_is_flagged():
    result = score(PROMPT, ["Markov chain", "memoryless"], prompt=PROMPT)
    assert (result.hits, result.flags) == (0, ("echo",))


def test_forbidden_groups_are_flagged():
    result = score("Bleach and water, in this order, with due care.", ["water"], ["bleach", "acid"])
    assert (result.hits, result.forbidden, result.flags) == (1, (True, False), ("forbidden",))


@pytest.mark.parametrize("groups", [[], "mean", {"any": ["mean"]}])
def test_groups_must_be_a_list_of_at_least_one(groups):
    with pytest.raises(ValueError, match="groups must"):
        score("text", groups)


def test_a_prepared_text_gives_the_same_and_takes_no_prompt():
    text = prepare("It is memoryless.", PROMPT)
    assert hits(text, "memoryless")
    with pytest.raises(ValueError, match="removed already"):
        hits(text, "memoryless", prompt=PROMPT)


@given(st.permutations(["alpha", "beta", "gamma delta"]), st.text(alphabet="abgdelmt ,.", max_size=40))
def test_the_order_of_groups_changes_nothing(groups, text):
    answer = f"{text} alpha, then words that tell of something else, at some length, and gamma delta"
    ordered = score(answer, ["alpha", "beta", "gamma delta"])
    shuffled = score(answer, groups)
    assert (shuffled.hits, shuffled.density, shuffled.flags) == (ordered.hits, ordered.density, ordered.flags)
