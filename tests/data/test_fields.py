"""Ids, texts and turns: what is read from a row, and why a row is rejected."""

import pytest
from support.data_lines import ASSISTANT, GOOD, SYSTEM, USER, problem_of, value_of


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
    ("row", "kind"),
    [
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
def test_a_bad_sft_row_is_rejected_by_name(rows_of, row, kind):
    assert problem_of(rows_of(GOOD, row)[1]).kind == kind


MULTI_TURN = [USER, ASSISTANT, USER, ASSISTANT]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"weight": 1, "loss": 0}])
def test_a_turn_that_its_author_excludes_is_context_only(rows_of, mark):
    """OpenAI's `weight`, Axolotl's `train` and ms-swift's `loss`; null and 1 leave a turn trained."""
    kept = {"weight": None, "train": True}
    row = {"messages": [USER, ASSISTANT | mark, USER | {"weight": 0}, ASSISTANT | kept]}
    assert value_of(rows_of(row)[0]).untrained == {1}
    assert value_of(rows_of({"messages": MULTI_TURN})[0]).untrained == frozenset()


@pytest.mark.parametrize(
    ("turn", "mark", "kind"),
    [
        (1, {"weight": 0.5}, "partial_weight"),
        (1, {"weight": 2}, "partial_weight"),
        (1, {"weight": "0"}, "partial_weight"),
        (1, {"train_detail": [{"begin_offset": 0}]}, "partial_weight"),
        (0, {"train": True}, "trained_prompt"),
    ],
)
def test_bad_turn_weights_are_rejected_by_name(rows_of, turn, mark, kind):
    messages = [message | mark if index == turn else message for index, message in enumerate(MULTI_TURN)]
    assert problem_of(rows_of({"messages": messages})[0]).kind == kind


def test_a_conversation_without_a_trained_turn_is_rejected(rows_of):
    sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0}]
    for row in ({"messages": [USER, ASSISTANT | {"train": False}]}, {"conversations": sharegpt}):
        assert problem_of(rows_of(row)[0]).kind == "nothing_trained"
