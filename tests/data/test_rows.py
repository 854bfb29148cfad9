"""Every physical line of a data file ends in exactly one class, with a reason that helps, whatever its bytes."""

import io
import itertools
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.loader_rules import require_sound

from aligner.data import lines
from aligner.data.examples import ConceptEntry, EvalPrompt, PreferencePair, SftExample
from aligner.data.reader import KINDS, RowCounts, check, read_rows
from aligner.run.errors import InputError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "rows"
EXPECTED = json.loads((FIXTURES / "bad_rows.expected.json").read_text(encoding="utf-8"))
STATUS = {"accept": "accepted", "warn": "warned", "reject": "rejected", "skip": "skipped"}
FIXTURE_KINDS = {  # what we call each defect, where the fixtures' own name is not ours
    "prompt_wrong_type_int": "wrong_type",
    "prompt_wrong_type_object": "wrong_type",
    "empty_prompt": "empty_text",
    "invisible_only_response": "invisible_only",
    "key_with_space": "missing_key",
    "json_number_row": "not_an_object",
    "hostile_id_1": "hostile_id",
    "hostile_id_4": "hostile_id",
    "hostile_id_7": "hostile_id",
    "hostile_id_10": "hostile_id",
    "reversed_surrogates": "lone_surrogate",
    "empty_prompt_list": "empty_messages",
    "bidi_override": "bidi_control",
}
GOOD = {"prompt": "p", "response": "r"}
USER, ASSISTANT, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))
EVAL = {"id": "e1", "prompt": "What is a chain?", "topic": "markov", "keywords": ["state", {"any": ["next", "step"]}]}

CONCEPT = {"concept": "Bayes' rule", "keywords": ["prior", {"any": ["posterior"]}], "text": "It turns a prior into a posterior."}


@pytest.fixture
def rows_of(tmp_path):
    """Writes lines (objects become JSON) to a file and reads it back as rows."""

    def read(*lines, kind=None, end=b"\n"):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"".join(as_bytes(line) + end for line in lines))
        return list(read_rows(path, kind))

    return read


def as_bytes(line):
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)).encode()


def value_of(row):
    assert row.status == "accepted", row
    return row.value


def problem_of(row, status="rejected"):
    assert row.status == status, row
    assert len(row.problems) == 1 and row.problems[0].reason.isprintable()
    return row.problems[0]


def checked(*paths):
    out = io.StringIO()
    code = check(paths, out)
    return code, out.getvalue().splitlines()


# ---- The fixtures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "case"),
    [pytest.param(file, case, id=f"{file}:{case['line']}-{case['kind']}") for file in EXPECTED for case in EXPECTED[file]],
)
def test_each_fixture_row_gets_what_it_must(file, case):
    row = list(read_rows(FIXTURES / file))[case["line"] - 1]
    assert (row.line, row.status) == (case["line"], STATUS[case["expect"]])
    if row.problems:
        assert row.problems[0].kind == FIXTURE_KINDS.get(case["kind"], case["kind"])


def test_fixture_reasons_give_the_hints_that_they_must():
    reasons = {row.line: problem.reason for row in read_rows(FIXTURES / "bad_sft.jsonl") for problem in row.problems}
    hints = {
        4: "Latin-1/CP1252",
        5: "incomplete",
        8: "concatenated",
        9: "single quotes",
        11: "must be a JSON object",
        12: "'prompt' stands twice",
        14: "error page",
        19: "did you mean it by ' prompt'",
        33: "AWS",
    }
    for line, hint in hints.items():
        assert hint in reasons[line]
    assert "multimodal parts" in list(read_rows(FIXTURES / "bad_messages.jsonl"))[3].problems[0].reason


def test_check_lists_the_bad_rows_of_all_fixtures_and_counts_every_line():
    """41 lines: 11 accepted, 2 warned, 27 rejected, 1 skipped."""
    code, lines = checked(*(FIXTURES / file for file in EXPECTED))
    assert code == 1
    assert lines[-1] == "accepted=11 warned=2 rejected=27 skipped=1"
    assert len(lines) == 27 + 2 + 1
    assert lines[0].startswith(f"{FIXTURES / 'bad_sft.jsonl'}:4: latin1_byte: ")
    assert sum(": warning: " in line for line in lines) == 2


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


def test_a_concept_and_an_eval_prompt_are_told_apart(rows_of):
    """An eval prompt may have a text among its other columns; a prompt that lacks its `prompt` stays one."""
    assert isinstance(value_of(rows_of({**EVAL, "text": "x", "concept": "chain"})[0]), EvalPrompt)
    for row in (EVAL, EVAL | {"concept": "chain"}):
        problem = problem_of(rows_of({key: value for key, value in row.items() if key != "prompt"})[0])
        assert (problem.kind, "`prompt` is missing" in problem.reason) == ("missing_key", True)


def test_metadata_columns_are_ignored_in_silence(rows_of):
    """UltraFeedback's own columns: `prompt_id` is no misspelt `prompt` where there is a `prompt`."""
    pair = {"prompt": "u", "chosen": "a", "rejected": "b"}
    assert rows_of({**pair, "prompt_id": "9", "messages": [], "score_chosen": 5.0})[0].status == "accepted"
    assert rows_of({**GOOD, "keywords": ["a"], "topic": "t", "uid": 7, "meta": {"deep": [1]}})[0].status == "accepted"


# ---- Rejections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"prompt":"p","response":"\xed\xa0\x80"}', "lone_surrogate"),
        (b"\x1f\x8b\x08\x00binary\xff", "not_utf8_text"),
        ('{"prompt":"p","response":"r"}'.encode("utf-16"), "not_utf8_text"),
        ('{"prompt":"p","response":"r"}'.encode("utf-16-le"), "raw_nul"),
        (b'{"prompt":"p","response":"a\x01b"}', "raw_control_character"),
        (b'{"prompt":"p","response":"r"', "truncated_json"),
        (b'{"prompt":"p","respo', "truncated_json"),
        (b'{"prompt":"p","response":"r"}{"prompt":"p","response":"r"}', "extra_data"),
        (b'{"prompt":"p","response":"r"}\r{"prompt":"p","response":"r"}', "extra_data"),
        (b'{"prompt":"p","response":"r"},', "extra_data"),
        (b'{"prompt":"p","response":None}', "python_repr"),
        (b'{"prompt":"p" "response":"r"}', "not_json"),
        (b"<<<<<<< HEAD", "merge_conflict"),
        (b"version https://git-lfs.github.com/spec/v1", "git_lfs_pointer"),
        (b"{", "spread_json"),
        (b'  "prompt": "p",', "spread_json"),
        (b"[", "spread_json"),
        (b'["p"]', "not_an_object"),
        (b"null", "not_an_object"),
        (b'"p"', "not_an_object"),
        (b'{"prompt":"p","response":"r","x":NaN}', "non_finite_number"),
        (b'{"prompt":"p","response":"r","x":-Infinity}', "non_finite_number"),
        (b'{"prompt":"p","response":"r","x":[-1e999]}', "float_overflow"),
        (b'{"prompt":"p","response":"r","x":' + b"9" * 5000 + b"}", "huge_integer"),
        (b'{"prompt":"p","response":"r","x":' + b"[" * 70 + b"]" * 70 + b"}", "deep_nesting"),
        (b'{"a":' * 100_000, "deep_nesting"),
        (b"[" * 100_000, "deep_nesting"),
        (b'{"prompt":"p","response":"r","x":{"y":1,"y":2}}', "duplicate_keys"),
        (b'{"prompt":"p","response":"r","x":["\\ud83d"]}', "lone_surrogate"),
        (b'{"prompt":"p","response":"r","\\u0000":1}', "escaped_nul"),
        ({"prompt": "p", "response": None}, "wrong_type"),
        ({"prompt": "p", "response": True}, "wrong_type"),
        ({"prompt": "p", "response": ["r"]}, "wrong_type"),
        ({"prompt": "p", "response": " \n\t"}, "empty_text"),
        ({"prompt": "\u3164\u2800\u00ad", "response": "r"}, "invisible_only"),
        ({"prompt": "p", "response": "r", "completion": "c"}, "two_answers"),
        ({"prompt": "p"}, "missing_key"),
        ({}, "missing_key"),
    ],
)
def test_a_bad_sft_line_is_rejected_by_name(rows_of, line, kind):
    assert problem_of(rows_of(GOOD, line)[1]).kind == kind


def test_rows_id_that_is_no_safe_file_name_is_rejected(rows_of, subtests):
    paths = ["../x", "a..b", "a/b", "a\\b", "", " ", ".x", "-x", "con", "NUL.txt", "Com1", "x" * 129]
    characters = ["x\n", "\u212a", "\u00e9", "a b", "%2e", "\x1b[31m", "line-1\u200b"]
    for id in (*paths, *characters):
        with subtests.test(id=id):
            assert problem_of(rows_of({"id": id, **GOOD})[0]).kind == "hostile_id"


def test_rows_id_of_another_type_is_not_converted(rows_of, subtests):
    for id in (None, 7, 1.5, ["x"], {"x": 1}):
        with subtests.test(id=id):
            assert problem_of(rows_of({"id": id, **GOOD})[0]).kind == "wrong_type"


def test_rows_ordinary_ids_pass(rows_of, subtests):
    for id in ("a", "0", "console", "com10", "a.b-c_d", "x" * 128, "nul-1", "A.", "1e5"):
        with subtests.test(id=id):
            assert value_of(rows_of({"id": id, **GOOD})[0]).id == id


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([USER], "ends_with_user"),
        ([SYSTEM], "ends_with_system"),
        ([SYSTEM, ASSISTANT], "starts_with_assistant"),
        ([SYSTEM, SYSTEM, USER, ASSISTANT], "system_in_middle"),
        ([USER, USER, ASSISTANT], "roles_not_alternating"),
        ([USER, ASSISTANT, ASSISTANT], "roles_not_alternating"),
        ([USER, {"role": "tool", "content": "4"}, ASSISTANT], "tool_use"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{}]}], "tool_use"),
        ([USER, {"role": "Assistant", "content": "a"}], "unknown_role"),
        ([USER, {"role": ["assistant"], "content": "a"}], "wrong_type"),
        ([USER, {"role": "assistant", "content": None}], "wrong_type"),
        ([USER, {"role": "assistant"}], "missing_key"),
        ([USER, {"from": "gpt", "value": "a"}], "missing_key"),
        ([USER, {"role": "assistant", "content": ""}], "empty_text"),
        ([USER, "a"], "wrong_type"),
        ("u", "wrong_type"),
        ({"0": USER}, "wrong_type"),
    ],
)
def test_bad_messages_are_rejected_by_name(rows_of, messages, kind):
    assert problem_of(rows_of({"messages": messages})[0]).kind == kind


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


def test_a_pair_without_a_key_is_rejected_as_a_pair(rows_of):
    for key in ("prompt", "chosen", "rejected"):
        row = {name: "text" + name for name in ("prompt", "chosen", "rejected") if name != key}
        assert f"`{key}` is missing" in problem_of(rows_of(row)[0]).reason


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


def test_a_concept_stands_once_in_a_file(rows_of):
    assert problem_of(rows_of(CONCEPT, {**CONCEPT, "text": "Another one."})[1]).kind == "duplicate_id"


def test_eval_rows_need_an_id(rows_of):
    row = {key: value for key, value in EVAL.items() if key != "id"}
    assert problem_of(rows_of(row)[0]).kind == "missing_id"
    assert "did you mean it by 'ID'" in problem_of(rows_of({"ID": "e1", **row})[0]).reason


# ---- One file, one format, unique ids -------------------------------------------------------------------------------


def test_the_first_recognised_row_settles_the_format(rows_of):
    bad, first, other, misspelt, same = rows_of(
        {"pormpt": "p", "response": "r"},
        GOOD,
        {"messages": [USER, ASSISTANT]},
        {"prompt": "p", "responce": "r"},
        {"prompt": "p", "completion": "r"},
    )
    assert "did you mean 'prompt' for 'pormpt'" in problem_of(bad).reason
    assert "`messages` in a file of `prompt` + `completion`" in problem_of(other).reason
    assert "as of line 2" in problem_of(other).reason
    assert "did you mean it by 'responce'" in problem_of(misspelt).reason
    assert first.status == same.status == "accepted"


def test_strings_and_message_lists_are_two_formats_of_pairs(rows_of):
    lists = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "b"}]}
    strings = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert [row.status for row in rows_of(lists, strings, lists)] == ["accepted", "rejected", "accepted"]


def test_a_row_of_another_kind_is_rejected_and_settles_nothing(rows_of):
    pair, good = rows_of({"prompt": "p", "chosen": "a", "rejected": "b"}, GOOD, kind="sft")
    assert problem_of(pair).kind == "wrong_kind" and good.status == "accepted"
    with pytest.raises(ValueError, match="kind must be one of sft, pairs, eval"):
        read_rows("x", "dpo")


def test_ids_are_unique_in_a_file(rows_of):
    rows = rows_of({"id": "a", **GOOD}, {"id": "a", "prompt": ""}, {"id": "b", **GOOD}, {"id": "a", **GOOD}, GOOD)
    assert [row.status for row in rows] == ["accepted", "rejected", "accepted", "rejected", "accepted"]
    assert problem_of(rows[3]).kind == "duplicate_id" and rows[4].value.id == "line-5"


def test_an_id_of_a_rejected_row_is_free(rows_of):
    assert [row.status for row in rows_of({"id": "a", "prompt": "", "response": "r"}, {"id": "a", **GOOD})] == [
        "rejected",
        "accepted",
    ]


def test_made_up_ids_never_meet_given_ones(rows_of):
    assert problem_of(rows_of({"id": "line-2", **GOOD}, GOOD)[1]).kind == "duplicate_id"
    assert problem_of(rows_of(GOOD, {"id": "line-1", **GOOD})[1]).kind == "reserved_id"
    assert rows_of({"id": "line-9", **GOOD}, {"id": "line-1", **GOOD})[1].status == "accepted"


# ---- Warnings -------------------------------------------------------------------------------------------------------


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


# ---- Bytes, lines and memory ----------------------------------------------------------------------------------------


def test_only_line_feeds_end_lines(rows_of):
    """U+2028, U+0085 and form feeds are line ends to str.splitlines, not to a data file."""
    texts = ["a\u2028b", "a\u0085b", "a\u000cb"]
    rows = rows_of(*(json.dumps({"prompt": text, "response": "r"}, ensure_ascii=text == "a\u000cb") for text in texts))
    assert [(row.line, value_of(row).messages[0][1]) for row in rows] == list(enumerate(texts, start=1))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_ends_and_a_last_line_without_one(rows_of, end):
    assert [row.status for row in rows_of(GOOD, "", " \t", GOOD, end=end)] == [
        "accepted",
        "skipped",
        "skipped",
        "accepted",
    ]
    assert [row.status for row in rows_of(as_bytes(GOOD) + end + as_bytes(GOOD), end=b"")] == ["accepted", "accepted"]


def test_one_byte_order_mark_is_passed_over_and_no_more(rows_of):
    bom = b"\xef\xbb\xbf"
    assert [row.status for row in rows_of(bom + as_bytes(GOOD), GOOD)] == ["accepted", "accepted"]
    assert problem_of(rows_of(bom + bom + as_bytes(GOOD))[0]).kind == "bom_mid_file"
    assert [row.status for row in rows_of(bom, end=b"")] == ["skipped"]
    assert rows_of(end=b"") == []


def test_a_line_of_five_megabytes_is_an_ordinary_line(rows_of):
    text = "word " * 1_000_000
    good, warned = rows_of({"prompt": "p", "response": text}, {"prompt": "p@q.org", "response": text})
    assert value_of(good).messages[1][1] == text.strip() and warned.status == "warned"


def test_an_oversized_line_is_rejected_without_being_held(rows_of, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2**16)
    limit_row = as_bytes(GOOD) + b" " * (2**16 - len(as_bytes(GOOD)) - 1)
    rows = rows_of(GOOD, limit_row, limit_row + b" ", b"x" * 2**24, GOOD)
    assert [row.status for row in rows] == ["accepted", "accepted", "rejected", "rejected", "accepted"]
    assert problem_of(rows[3]).kind == "oversized_line" and rows[4].line == 5


def test_memory_does_not_grow_with_an_endless_line(tmp_path, monkeypatch):
    """64 MiB in one line, a limit of 1 MiB: a few MiB at the peak (readline's buffer of 1 MiB and its copy)."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "endless.jsonl"
    path.write_bytes(b'{"prompt":"' + b"x" * 2**26)
    tracemalloc.start()
    statuses = [row.status for row in read_rows(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert statuses == ["rejected"] and peak < 8 * 2**20


def test_the_reader_streams(tmp_path):
    """The first row is there before the second line is read: the file may grow meanwhile."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_bytes(GOOD) + b"\n")
    rows = read_rows(path)
    assert next(rows).line == 1
    with open(path, "ab") as file:
        file.write(as_bytes(GOOD) + b"\n")
    assert [row.line for row in rows] == [2]


# ---- The counts and the check ---------------------------------------------------------------------------------------


def test_the_counts_hold_each_line_once(rows_of):
    counts = RowCounts()
    for row in rows_of(GOOD, "", "#", {"prompt": "p@q.org", "response": "r"}, GOOD):
        counts.add(row)
    assert str(counts) == "accepted=2 warned=1 rejected=1 skipped=1" and counts.lines == 5


def test_check_is_silent_and_zero_on_good_files(tmp_path):
    path = tmp_path / "good.jsonl"
    path.write_bytes(as_bytes(GOOD) + b"\n\n")
    assert checked(path, str(path)) == (0, ["accepted=2 warned=0 rejected=0 skipped=2"])


def test_check_gives_one_line_for_a_file_that_cannot_be_read_and_goes_on(tmp_path):
    good, empty, blank = (tmp_path / name for name in ("good", "empty", "blank"))
    good.write_bytes(as_bytes(GOOD))
    empty.write_bytes(b"")
    blank.write_bytes(b"\xef\xbb\xbf\n\n")
    code, lines = checked(tmp_path / "none", tmp_path, empty, blank, good)
    assert code == 1 and lines[-1] == "accepted=1 warned=0 rejected=0 skipped=2"
    kinds = {tmp_path / "none": "missing_file", tmp_path: "directory", empty: "empty_file", blank: "empty_file"}
    assert len(lines) == len(kinds) + 1
    for line, (path, kind) in zip(lines, kinds.items(), strict=False):
        assert line.startswith(f"{path}: {kind}: ")


def test_read_rows_raises_one_readable_error_for_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="none.jsonl: missing_file: there is no such file"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_a_file_that_fails_while_it_is_read_is_named_with_the_system_s_reason(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_bytes(GOOD))
    monkeypatch.setattr(lines, "next_line", Mock(side_effect=[as_bytes(GOOD), OSError(5, "Input/output error")]))
    assert checked(path) == (
        1,
        [f"{path}: unreadable_file: it cannot be read: Input/output error", "accepted=1 warned=0 rejected=0 skipped=0"],
    )


def test_nothing_a_row_or_a_path_holds_can_act_on_a_terminal(tmp_path):
    path = tmp_path / "a\x1b[31m\n.jsonl"
    hostile = "\x1b]0;x\x07\u202e\u2028" * 50
    rows = [
        {**GOOD, "id": hostile},
        {**GOOD, hostile: 1, "Prompt": 1},
        {hostile: 1},
        {"messages": [{"role": hostile, "content": "c"}]},
        {"id": "a" + hostile, "prompt": "p", "response": "r"},
    ]
    path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
    _, lines = checked(path)
    assert len(lines) == 6 and all(line.isprintable() and len(line) < 2000 for line in lines)


def test_check_writes_to_a_stream_of_any_encoding(tmp_path):
    path = tmp_path / "\u00e9\u4e2d.jsonl"
    path.write_bytes(as_bytes({"id": "\u4e2d", **GOOD}))
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    assert check([path], out) == 1
    out.flush()
    assert b"\\u4e2d.jsonl:1: hostile_id: the id '\\u4e2d'" in raw.getvalue()


def test_reasons_do_not_depend_on_the_hash_seed():
    script = f"import sys; from aligner.data.reader import check; check([{str(FIXTURES / 'bad_sft.jsonl')!r}], sys.stdout)"
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            check=True,
            cwd=FIXTURES,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(lines.__file__).parents[2])},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1 and b"accepted=" in runs.pop()


# ---- Fuzzing: no exception, and counts that add up ----------------------------------------------------------------

KEYS = st.sampled_from(
    [
        "id",
        "prompt",
        "response",
        "completion",
        "messages",
        "conversations",
        "instruction",
        "input",
        "output",
        "chosen",
        "rejected",
        "topic",
        "keywords",
        "concept",
        "kind",
        "forbidden",
        "role",
        "content",
        "from",
        "value",
        "any",
        "match",
        "negation",
        "weight",
        "tool_calls",
        "promt",
        " id",
    ]
)
TEXTS = st.sampled_from(
    [
        "user",
        "assistant",
        "system",
        "human",
        "gpt",
        "",
        "a",
        "b",
        "regex",
        "word",
        "line-2",
        "\ud800",
        "\0",
        "\u200b",
        "\u202e",
        "(",
        "a@b.org",
        "con",
    ]
) | st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | TEXTS, inner, max_size=4),
)
TURNS = st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), TEXTS, min_size=2), max_size=4)
ROWS = st.dictionaries(KEYS, VALUES | TURNS | TEXTS, max_size=7)
JSON_LINES = st.builds(
    lambda row, ascii: json.dumps(row, ensure_ascii=ascii).encode("utf-8", "surrogatepass"),
    ROWS | VALUES,
    st.booleans(),
)
SEEDS = st.sampled_from([line for file in EXPECTED for line in (FIXTURES / file).read_bytes().split(b"\n")])
CUT_LINES = st.builds(
    lambda line, start, length, new: line[:start] + new + line[start + length :],
    SEEDS | JSON_LINES,
    st.integers(0, 90),
    st.integers(0, 6),
    st.binary(max_size=4),
)
FILES = st.lists(st.binary(max_size=40) | JSON_LINES | SEEDS | CUT_LINES, max_size=6).flatmap(
    lambda lines: st.sampled_from([b"\n", b"\r\n", b"\r"]).map(lambda end: end.join(lines))
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "rows.jsonl"


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=FILES | st.binary(max_size=200), kind=st.sampled_from([None, *KINDS]))
def test_any_bytes_make_rows_and_counts_that_add_up(scratch, data, kind):
    require_sound(scratch, data, kind)
