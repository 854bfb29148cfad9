"""Every format of a data file becomes the same records, and a row that suits none is rejected by name."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data_lines import ASSISTANT, CONCEPT, EVAL, GOOD, SYSTEM, USER, problem_of, value_of

from aligner.data.examples import ConceptEntry, EvalPrompt, PreferencePair, SftExample, UnpairedAnswer
from aligner.data.formats import begin_apart, seen

# ---- Accepted formats -----------------------------------------------------------------------------------------------

QUESTION_AND_ANSWER = (("user", "q"), ("assistant", "a"))


SFT_FORMATS = [
    ({"messages": [USER, ASSISTANT]}, (("user", "u"), ("assistant", "a"))),
    (
        {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]},
        (("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "u"), ("assistant", "a")),
    ),
    ({"prompt": "q", "completion": "a"}, QUESTION_AND_ANSWER),
    ({"prompt": " q\n", "response": "\ta "}, QUESTION_AND_ANSWER),
    ({"instruction": "q", "input": "", "output": "a"}, QUESTION_AND_ANSWER),
    ({"instruction": "q", "input": None, "output": "a"}, QUESTION_AND_ANSWER),
    ({"instruction": "q", "output": "a"}, QUESTION_AND_ANSWER),
    ({"instruction": "Add.", "input": "1 2", "output": "3"}, (("user", "Add.\n\n1 2"), ("assistant", "3"))),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, QUESTION_AND_ANSWER),
    (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "user", "value": "q"},
                {"from": "assistant", "value": "a"},
            ]
        },
        (("system", "s"), *QUESTION_AND_ANSWER),
    ),
]


def test_rows_every_sft_format_becomes_the_same_messages(rows_of, subtests):
    for (row, messages), kind in itertools.product(SFT_FORMATS, [None, "sft"]):
        with subtests.test(row=row, kind=kind):
            assert value_of(rows_of({"id": "x", **row}, kind=kind)[0]) == SftExample("x", messages)


ASSISTANT_GOOD, ASSISTANT_BAD = ({"role": "assistant", "content": content} for content in ("good", "bad"))
PAIR_FORMATS = [
    {"prompt": "u", "chosen": "good", "rejected": "bad"},
    {"prompt": [USER], "chosen": [ASSISTANT_GOOD], "rejected": [ASSISTANT_BAD]},
    {"chosen": [USER, ASSISTANT_GOOD], "rejected": [USER, ASSISTANT_BAD]},
    {"prompt": [USER], "chosen": [USER, ASSISTANT_GOOD], "rejected": [USER, ASSISTANT_BAD]},
    {"prompt": "u", "chosen": [USER, ASSISTANT_GOOD | {"content": "good "}], "rejected": [USER, ASSISTANT_BAD]},
]


def test_rows_every_pair_format_becomes_the_same_pair(rows_of, subtests):
    for row, kind in itertools.product(PAIR_FORMATS, [None, "pairs"]):
        with subtests.test(row=row, kind=kind):
            assert value_of(rows_of(row, kind=kind)[0]) == PreferencePair("line-1", (("user", "u"),), "good", "bad")


UNPAIRED_FORMATS = [
    {"prompt": "u", "completion": "a"},
    {"prompt": "u", "response": "a"},
    {"prompt": [USER], "completion": [ASSISTANT]},
]


def test_rows_every_unpaired_format_becomes_the_same_answer_with_its_label(rows_of, subtests):
    for row, label, kind in itertools.product(UNPAIRED_FORMATS, [True, False], [None, "unpaired"]):
        with subtests.test(row=row, label=label, kind=kind):
            value = value_of(rows_of({**row, "label": label}, kind=kind)[0])
            assert value == UnpairedAnswer("line-1", (("user", "u"),), "a", label)


def test_eval_prompts_keep_their_keyword_groups_as_written(rows_of):
    full = {**EVAL, "id": "e2", "concept": "chain", "kind": "recall", "forbidden": ["banana"]}
    short, long = rows_of(EVAL, full)
    groups = ("state", {"any": ["next", "step"]})
    assert value_of(short) == EvalPrompt("e1", "What is a chain?", "markov", groups, None, None, ())
    assert value_of(long) == EvalPrompt("e2", "What is a chain?", "markov", groups, "chain", "recall", ("banana",))


def test_a_concept_keeps_its_name_its_groups_and_its_text(rows_of):
    for kind in (None, "concepts"):
        entry = ConceptEntry("Bayes' rule", ("prior", {"any": ["posterior"]}), "It turns a prior into a posterior.")
        assert value_of(rows_of({**CONCEPT, "topic": "probability", "id": 7}, kind=kind)[0]) == entry


def test_a_concept_and_an_eval_prompt_are_distinguished(rows_of):
    """An eval prompt may have a `text` column; without its `prompt` it is still an eval prompt."""
    assert isinstance(value_of(rows_of({**EVAL, "text": "x", "concept": "chain"})[0]), EvalPrompt)
    for row in (EVAL, EVAL | {"concept": "chain"}):
        problem = problem_of(rows_of({key: value for key, value in row.items() if key != "prompt"})[0])
        assert (problem.kind, "`prompt` is missing" in problem.reason) == ("missing_key", True)


def test_metadata_columns_are_ignored_in_silence(rows_of):
    """UltraFeedback's own columns: `prompt_id` is not a misspelt `prompt` if the row has a `prompt`."""
    pair = {"prompt": "u", "chosen": "a", "rejected": "b"}
    assert rows_of({**pair, "prompt_id": "9", "messages": []})[0].status == "accepted"
    assert rows_of({**GOOD, "keywords": ["a"], "topic": "t", "uid": 7, "meta": {"deep": [1]}})[0].status == "accepted"


# ---- Rejections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"rejected": " a "}, "chosen_equals_rejected"),
        ({"rejected": None}, "wrong_type"),
        ({"rejected": [ASSISTANT]}, "mixed_str_and_list"),
        ({"prompt": [USER]}, "mixed_str_and_list"),
        ({"chosen": [ASSISTANT], "rejected": [USER]}, "no_answer"),
        ({"chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "b"}]}, "mixed_str_and_list"),
        (
            {"prompt": [USER, ASSISTANT], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "b"}]},
            "ends_with_assistant",
        ),
        ({"chosen": [SYSTEM, ASSISTANT], "rejected": [USER, ASSISTANT]}, "prompts_differ"),
        ({"prompt": [SYSTEM, USER], "chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "prompts_differ"),
        ({"prompt": "else", "chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "prompts_differ"),
    ],
)
def test_bad_pairs_are_rejected_by_name(rows_of, change, kind):
    assert problem_of(rows_of({"prompt": "p", "chosen": "a", "rejected": "b", **change})[0]).kind == kind


def test_a_pair_whose_answers_repeat_the_prompt_is_rejected(rows_of):
    """The prompt would be trained on twice. A short prompt may begin any answer, and one repetition alone is an answer."""
    long, short = "What is a chain?", "Hi"
    for prompt in (long, long + " \n"):
        row = {"prompt": prompt, "chosen": f"{long} A process.", "rejected": f"{long}\nA rope."}
        assert problem_of(rows_of(row)[0]).kind == "repeated_prompt"
    for row in (
        {"prompt": long, "chosen": f"{long} A process.", "rejected": "A rope."},
        {"prompt": short, "chosen": "Hi there!", "rejected": "Hi."},
    ):
        assert rows_of(row)[0].status == "accepted"


def test_a_pair_without_a_key_is_rejected_as_a_pair(rows_of):
    for key in ("prompt", "chosen", "rejected"):
        row = {name: "text" + name for name in ("prompt", "chosen", "rejected") if name != key}
        assert f"`{key}` is missing" in problem_of(rows_of(row)[0]).reason


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"label": None}, "wrong_type"),
        ({"label": 1}, "wrong_type"),
        ({"label": "true"}, "wrong_type"),
        ({"prompt": [USER]}, "mixed_str_and_list"),
        ({"response": "b"}, "two_answers"),
        ({"prompt": [USER, ASSISTANT], "completion": [ASSISTANT]}, "ends_with_assistant"),
        ({"prompt": [USER], "completion": [USER, ASSISTANT]}, "no_answer"),
        ({"prompt": [USER], "completion": []}, "empty_messages"),
        ({"completion": " "}, "empty_text"),
    ],
)
def test_bad_unpaired_rows_are_rejected_by_name(rows_of, change, kind):
    assert problem_of(rows_of({"prompt": "p", "completion": "a", "label": True, **change}, kind="unpaired")[0]).kind == kind


LABELLED = [
    {"prompt": "q", "completion": "a"},
    {"prompt": "q", "response": "a"},
    {"instruction": "q", "output": "a"},
    {"messages": [USER, ASSISTANT]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
]


def test_rows_with_a_label_are_refused_as_sft_examples(rows_of, subtests):
    """A KTO file would otherwise be trained on with its bad answers."""
    for row, label in itertools.product(LABELLED, [True, False]):
        with subtests.test(row=row, label=label):
            problem = problem_of(rows_of({**row, "label": label}, kind="sft")[0])
            assert problem.kind == "labelled_row" and "SFT would train on both" in problem.reason
        assert rows_of({**row, "label": None}, kind="sft")[0].status == "accepted"


@pytest.mark.parametrize("kind", ["pairs", "unpaired"])
def test_pairs_and_labelled_answers_are_not_taken_for_each_other(rows_of, kind):
    rows = {
        "unpaired": {"prompt": "p", "chosen": "a", "rejected": "b"},
        "pairs": {"prompt": "p", "completion": "a", "label": True},
    }
    assert problem_of(rows_of(rows[kind], kind=kind)[0]).kind == "wrong_kind"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"keywords": []}, "bad_keywords"),
        ({"keywords": "state"}, "bad_keywords"),
        ({"keywords": [7]}, "wrong_type"),
        ({"keywords": [""]}, "bad_keywords"),
        ({"keywords": [{"ani": ["x"]}]}, "bad_keywords"),
        ({"keywords": [{"any": ["(" * 3000], "match": "regex"}]}, "bad_keywords"),
        ({"keywords": [{"any": ["\u202e\x1b" * 500], "match": "x"}]}, "bad_keywords"),
        ({"forbidden": "x"}, "bad_keywords"),
        ({"forbidden": 0}, "bad_keywords"),
        ({"topic": None}, "wrong_type"),
        ({"concept": 7}, "wrong_type"),
        ({"prompt": [USER]}, "wrong_type"),
    ],
)
def test_bad_eval_rows_are_rejected_by_name(rows_of, change, kind):
    assert problem_of(rows_of({**EVAL, **change}, kind="eval")[0]).kind == kind


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"concept": None}, "wrong_type"),
        ({"concept": " "}, "empty_text"),
        ({"text": ["It is."]}, "wrong_type"),
        ({"text": ""}, "empty_text"),
        ({"keywords": []}, "bad_keywords"),
        ({"keywords": "prior"}, "bad_keywords"),
        ({"keywords": [{"any": ["("], "match": "regex"}]}, "bad_keywords"),
        ({"prompt": "What is it?"}, "wrong_kind"),
    ],
)
def test_bad_concepts_are_rejected_by_name(rows_of, change, kind):
    assert problem_of(rows_of({**CONCEPT, **change}, kind="concepts")[0]).kind == kind


def test_rows_concept_without_a_key_names_the_key_that_was_perhaps_meant(rows_of, subtests):
    for key, kind in itertools.product(["concept", "text"], [None, "concepts"]):
        row = {f"{name}s" if name == key else name: value for name, value in CONCEPT.items()}
        with subtests.test(key=key, kind=kind):
            problem = problem_of(rows_of(row, kind=kind)[0])
            assert problem.kind == "missing_key" and problem.reason == f"`{key}` is missing; did you mean it by '{key}s'?"


def test_a_concept_occurs_once_in_a_file(rows_of):
    assert problem_of(rows_of(CONCEPT, {**CONCEPT, "text": "Another one."})[1]).kind == "duplicate_id"


def test_eval_rows_need_an_id(rows_of):
    row = {key: value for key, value in EVAL.items() if key != "id"}
    assert problem_of(rows_of(row)[0]).kind == "missing_id"
    assert "did you mean it by 'ID'" in problem_of(rows_of({"ID": "e1", **row})[0]).reason


@given(*[st.text("ab\r\n \u0301\u200b\u00a0", max_size=6)] * 3, st.sampled_from(["", "b" * 61]))
def test_answers_that_begin_apart_are_seen_apart(start, one, other, filler):
    """The shortcut before `seen`, with the difference at the start and around the last character that it reads."""
    one, other = filler + start + one, filler + start + other
    assert not begin_apart(one, other) or seen(one) != seen(other)


def test_answers_begin_apart():
    assert begin_apart("a mean", "a mode") and not begin_apart("a mean", "a mean\u200b")
    assert not begin_apart("e", "e\u0301") and not begin_apart("a\nb", "a\r\nb")
