"""Every physical line of a data file gets exactly one status, and a useful reason, whatever its bytes."""

import io
import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.data_lines import ASSISTANT, EXPECTED, FIXTURES, GOOD, USER, as_bytes, checked, problem_of
from support.loader_rules import require_sound

from aligner.data import lines
from aligner.data.reader import KINDS, RowCounts, check, read_rows
from aligner.run.errors import InputError

STATUS = {"accept": "accepted", "warn": "warned", "reject": "rejected", "skip": "skipped"}
FIXTURE_KINDS = {  # our kinds for the defects that the fixtures name differently
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


# ---- The fixtures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "case"),
    [pytest.param(file, case, id=f"{file}:{case['line']}-{case['kind']}") for file in EXPECTED for case in EXPECTED[file]],
)
def test_each_fixture_row_gets_its_status_and_kind(file, case):
    row = list(read_rows(FIXTURES / file))[case["line"] - 1]
    assert (row.line, row.status) == (case["line"], STATUS[case["expect"]])
    if row.problems:
        assert row.problems[0].kind == FIXTURE_KINDS.get(case["kind"], case["kind"])


def test_fixture_reasons_give_their_hints():
    reasons = {row.line: problem.reason for row in read_rows(FIXTURES / "bad_sft.jsonl") for problem in row.problems}
    hints = {
        4: "Latin-1/CP1252",
        5: "incomplete",
        8: "concatenated",
        9: "single quotes",
        11: "must be a JSON object",
        12: "'prompt' occurs twice",
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
    with pytest.raises(ValueError, match="kind must be one of sft, pairs, unpaired, eval"):
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


def test_generated_ids_never_collide_with_written_ones(rows_of):
    assert problem_of(rows_of({"id": "line-2", **GOOD}, GOOD)[1]).kind == "duplicate_id"
    assert problem_of(rows_of(GOOD, {"id": "line-1", **GOOD})[1]).kind == "reserved_id"
    assert rows_of({"id": "line-9", **GOOD}, {"id": "line-1", **GOOD})[1].status == "accepted"


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
        "label",
        "train",
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
