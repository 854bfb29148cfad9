"""Leakage: every kind of overlap is located, nothing else is reported, and the gate names the next step."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligner.data import leakage
from aligner.data.leakage import EvalPrompts, require_clean, words
from aligner.run.errors import InputError

TWENTY = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
SEQUENCES = st.lists(st.sampled_from("abc"), max_size=25)


def prompts_of(*texts):
    return EvalPrompts([{"id": f"e{number}", "prompt": text} for number, text in enumerate(texts, start=1)])


def met(prompt, *trained):
    """The prompts' levels after a pass over the trained texts; for a single prompt, its level."""
    prompts = prompts_of(prompt)
    for number, text in enumerate(trained, start=1):
        prompts.look("sft answer", f"s{number}", words(text))
    return prompts.levels().get("e1")


# ---- Equal words ---------------------------------------------------------------------------------------------------------


def test_leakage_ignores_case_spacing_punctuation_and_width(subtests):
    spellings = ["WHAT IS A CHAIN", "  what\nis a   chain?!", "“What is a chain”", "What—is a ‘chain’?", "Ｗｈａｔ is a chain"]
    for spelling in spellings:
        with subtests.test(spelling=spelling):
            assert words(spelling) == ["what", "is", "a", "chain"]
            assert met("What is a chain?", spelling) == "exact"


def test_a_text_without_words_is_compared_verbatim():
    assert met("?!", "?!") == "exact"
    assert met("?!", "!?") is None


def test_characters_of_scripts_without_spaces_are_words():
    """Thirteen consecutive characters of a Chinese prompt are a leak; as one word they could not be."""
    prompt = "请解释一下马尔可夫链的平稳分布是什么意思"
    assert len(words(prompt)) == len(prompt)
    assert met(prompt, f"问：{prompt[2:15]}？") == "ngram_13"
    assert met(prompt, prompt[:4]) is None


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_letters_digits_and_underscores_in_a_row(text):
    assert words(text) == (re.findall("[a-z0-9_]+", text.lower()) or text.lower().split())


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=50)
def test_words_hold_no_white_space(text):
    """Joined by spaces, the words make one form of the text, and splitting it returns them."""
    assert " ".join(words(text)).split() == words(text)


@given(st.lists(st.sampled_from(["a", "bb", "é", "中"]), max_size=9), st.integers(1, 5))
def test_grams_are_all_words_in_a_row_joined(sequence, n):
    assert leakage.grams(sequence, n) == [" ".join(sequence[start : start + n]) for start in range(len(sequence) - n + 1)]


# ---- Levels -------------------------------------------------------------------------------------------------------------


def test_leakage_level_is_that_of_the_longest_run(subtests):
    levels = {4: None, 5: None, 7: None, 8: "ngram_8", 12: "ngram_8", 13: "ngram_13", 17: "ngram_13"}
    for length, level in levels.items():
        run = " ".join(TWENTY.split()[1 : 1 + length])
        with subtests.test(length=length):
            assert met(TWENTY, f"before {run} behind", "one two x three four") == level


def test_words_apart_are_no_run():
    broken = TWENTY.replace("seven", "x").replace("fourteen", "y")
    assert met(TWENTY, broken) is None


def test_leakage_short_prompt_leaks_when_a_text_holds_all_of_it(subtests):
    """Fewer than 13 words cannot share 13; a prompt of four or less can only be equal."""
    for size, level in {4: None, 5: "ngram_13", 7: "ngram_13", 12: "ngram_13"}.items():
        prompt = " ".join(TWENTY.split()[:size])
        with subtests.test(size=size):
            assert met(prompt, f"so {prompt} then") == level
            assert met(prompt, prompt) == "exact"
            assert met(prompt, f"so {' '.join(prompt.split()[1:])} then") == (None if size < 9 else "ngram_8")


def test_each_level_counts_those_before():
    run = TWENTY.split()
    prompts = prompts_of("Why so?", TWENTY, "a " + TWENTY.upper(), "nothing of the kind at all, ever", "b " + " ".join(run[:9]))
    prompts.look("dpo prompt", "p1", ["why", "so"])
    prompts.look("dpo chosen", "p2", ["z", *run[:13], "z"])
    assert prompts.levels() == {"e1": "exact", "e2": "ngram_13", "e3": "ngram_13", "e5": "ngram_8"}
    assert prompts.counts() == {"exact": 1, "ngram_13": 3, "ngram_8": 4}


def test_overlaps_tell_the_longest_run_and_where_the_worst_first():
    prompts = prompts_of(TWENTY, "Why so?", "x " + TWENTY)
    prompts.look("sft answer", "s2", words(TWENTY)[2:8])
    prompts.look("sft prompt", "s1", words(TWENTY)[2:8])
    prompts.look("dpo rejected", "p7", ["y", *words(TWENTY)[3:12]])
    prompts.look("dpo prompt", "p1", ["why", "so"])
    found = prompts.overlaps()
    assert [(one["id"], one["level"], one["words"], one["where"], one["row"]) for one in found] == [
        ("e2", "exact", 2, "dpo prompt", "p1"),
        ("e1", "ngram_8", 9, "dpo rejected", "p7"),
        ("e3", "ngram_8", 9, "dpo rejected", "p7"),
    ]
    assert found[1]["shared"] == " ".join(words(TWENTY)[3:12]) and found[1]["prompt_words"] == 18


@given(SEQUENCES, st.lists(SEQUENCES, max_size=4), st.randoms())
@settings(deadline=None, max_examples=200)
def test_the_longest_run_is_that_of_a_search_of_all_places_in_any_order(prompt, texts, order):
    """Compares with the definition: the longest run of words in both, from five words on."""
    longest = max(
        (
            end - start
            for start in range(len(prompt))
            for end in range(start + leakage.SHORTEST_RUN, len(prompt) + 1)
            for text in texts
            if any(text[place : place + end - start] == prompt[start:end] for place in range(len(text)))
        ),
        default=0,
    )
    named = [(f"s{number}", text) for number, text in enumerate(texts)]
    results = []
    for _ in range(2):
        prompts = EvalPrompts([{"id": "e", "prompt": " ".join(prompt)}])
        for id, text in named:
            prompts.look("sft answer", id, text)
        results.append(prompts.overlaps())
        assert (-prompts.longest[0].unshared if prompts.longest[0] else 0) == longest
        order.shuffle(named)
    assert results[0] == results[1]


# ---- The gate -----------------------------------------------------------------------------------------------------------


def leaked(count, of):
    prompts = prompts_of(*(f"{TWENTY} {number}" for number in range(of)))
    for number in range(count):
        prompts.look("sft prompt", f"s{number}", words(f"{TWENTY} {number}"))
    prompts.longest = [match if prompts.equal[number] else None for number, match in enumerate(prompts.longest)]
    return prompts


def test_leakage_gate_allows_its_share(subtests):
    for count, share in [(0, 0), (1, 0.1), (10, 1)]:
        with subtests.test("open", count=count, share=share):
            require_clean(leaked(count, 10), share, "eval.jsonl")
    for count, share in [(1, 0), (2, 0.1)]:
        message = rf"{count} of 10 eval prompts .* allows {share:.1%}\."
        with subtests.test("closed", count=count, share=share), pytest.raises(InputError, match=message):
            require_clean(leaked(count, 10), share, "eval.jsonl")


def test_eight_words_pass_and_thirteen_do_not():
    prompts = prompts_of(TWENTY)
    prompts.look("sft answer", "s1", words(TWENTY)[:12])
    require_clean(prompts, 0, "eval.jsonl")
    prompts.look("dpo rejected", "p4", words(TWENTY)[2:15])
    with pytest.raises(InputError) as caught:
        require_clean(prompts, 0, "eval.jsonl")
    first, match, way = str(caught.value).splitlines()
    assert match == f'e1: 13 of its 18 words in the dpo rejected of row p4: "{" ".join(words(TWENTY)[2:15])}"'
    assert "eval.jsonl" in way and way.endswith("Then run: dvc repro")


def test_an_error_shows_the_first_leaks_and_counts_the_rest():
    with pytest.raises(InputError) as caught:
        require_clean(leaked(50, 60), 0, "eval.jsonl")
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + leakage.SHOWN_LEAKS + 2
    assert lines[-2] == f"… and {50 - leakage.SHOWN_LEAKS} more"


def test_the_error_escapes_text_of_the_data():
    prompts = prompts_of("\x1b[2J")
    prompts.look("sft prompt", "s1", words("\x1b[2J"))
    prompts.words[0] = ["\x1b[2J"]
    with pytest.raises(InputError) as caught:
        require_clean(prompts, 0, "eval.jsonl")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", str(caught.value))
