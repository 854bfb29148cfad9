"""Rows that are kept with a warning: secrets, characters that hide text, and keys that nothing reads."""

from support.data_lines import GOOD, problem_of

SECRETS = [
    "me@example.org",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    "-----BEGIN RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----",
    "ghp_" + "a1" * 18,
    "github_pat_" + "a1" * 20,
    "hf_" + "aB" * 17,
    "sk-proj-" + "a1" * 20,
    "sk-ant-api03-" + "a1" * 20,
]
NO_SECRETS = [
    "sk-learn-compatible-estimators",
    "risk-free-rate-of-return-2024",
    "RUSSIA AND ASIA",
    "x_t = x_{t-1} @ A",
    "half_of_all_the_long_names",
    "@property",
    "a PRIVATE KEY",
]


def test_rows_secret_like_text_is_kept_with_a_warning_that_does_not_show_it(rows_of, subtests):
    for text in SECRETS:
        for row in ({"prompt": f"It is {text}.", "response": "r"}, {"prompt": "p", "response": text}):
            with subtests.test(row=row):
                problem = problem_of(rows_of(row)[0], "warned")
                assert problem.kind == "secret_like" and text not in problem.reason


def test_rows_ordinary_text_is_no_secret(rows_of, subtests):
    for text in NO_SECRETS:
        with subtests.test(text=text):
            assert rows_of({"prompt": text, "response": "r"})[0].status == "accepted"


def test_bidi_controls_warn_also_when_escaped(rows_of):
    for row in ('{"prompt":"a\\u202eb","response":"r"}', {"prompt": "p", "response": "a\u2066b"}):
        assert problem_of(rows_of(row)[0], "warned").kind == "bidi_control"


def test_rows_unread_keys_that_seem_meant_are_warned_about(rows_of, subtests):
    unread = {"system": "Be brief.", "history": [["a", "b"]]}
    for key, value in {"Id": "7", "ID ": "7", "Prompt": "p", **unread}.items():
        with subtests.test(key=key):
            kind = "unread_key" if key in unread else "misspelt_key"
            assert problem_of(rows_of({**GOOD, key: value})[0], "warned").kind == kind


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
IGNORED = [
    (PAIR, {"margin": 0.5}),
    (PAIR, {"score_chosen": 5.0}),
    (PAIR, {"chosen_score": 5}),
    (PAIR, {"rejected-rating": 2}),
    (PAIR, {"label": True}),
    (PAIR, {"weight": 0.5}),
    (GOOD, {"score": 3}),
    (GOOD, {"weight": 2}),
    (GOOD, {"loss": 0.1}),
]


def test_rows_keys_with_a_meaning_that_training_ignores_are_warned_about(rows_of, subtests):
    for row, extra in IGNORED:
        with subtests.test(extra=extra):
            problem = problem_of(rows_of({**row, **extra})[0], "warned")
            assert problem.kind == "ignored_key" and f"`{next(iter(extra))}` is ignored" in problem.reason


def test_rows_weights_of_one_and_empty_scores_change_nothing_and_need_no_word(rows_of, subtests):
    for extra in (
        {"weight": 1},
        {"weight": 1.0},
        {"train": True},
        {"loss": True},
        {"score": None},
        {"margin": ""},
        {"ratings": []},
    ):
        with subtests.test(extra=extra):
            assert rows_of({**GOOD, **extra})[0].status == "accepted"


def test_rows_that_their_author_excludes_from_training_are_refused(rows_of, subtests):
    for row in (GOOD, PAIR, {"prompt": "p", "completion": "a", "label": True}):
        for extra in ({"weight": 0}, {"train": False}, {"loss": 0.0}):
            with subtests.test(row=row, extra=extra):
                assert problem_of(rows_of({**row, **extra})[0]).kind == "excluded_row"
