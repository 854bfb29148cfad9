"""unpaired: rows for kto from pairs and from a file of one's own, and the wrong file in the wrong place."""

import json
from pathlib import Path

import pytest
from support.workspace import WORDS, Workspace, eval_rows, number, pair_rows

from aligner.run.errors import InputError

OWN = "data/raw/feedback.jsonl"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path, monkeypatch)
    workspace.run("prepare")
    return workspace


def own_rows():
    return [
        {"id": f"u{n}", "prompt": f"Explain the {word}.", "completion": f"The {word} is {n}.", "label": n % 3 > 0}
        for n, word in number(WORDS)
    ]


def give(workspace, rows):
    """Writes a file of one's own and names it in params.yaml."""
    Path(OWN).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    workspace.params["unpaired.rows"] = OWN


def sides(workspace):
    return [workspace.rows(f"data/prepared/unpaired_{side}.jsonl") for side in ("train", "validation")]


def test_a_pair_makes_a_good_and_a_bad_row(workspace):
    workspace.run("unpaired")
    for side, rows in zip(("train", "validation"), sides(workspace), strict=True):
        pairs = workspace.rows(f"data/prepared/dpo_{side}.jsonl")
        assert [(row["prompt_ids"], row["completion_ids"], row["label"]) for row in rows] == [
            (pair["prompt_ids"], pair[f"{answer}_ids"], answer == "chosen") for pair in pairs for answer in ("chosen", "rejected")
        ]
        assert len({row["id"] for row in rows}) == len(rows)
    assert workspace.json("reports/unpaired.json")["unpaired_data"]["train_good"] == len(sides(workspace)[0]) / 2


def test_a_file_of_ones_own_is_tokenised_and_split_as_pairs_are(workspace):
    """The same prompts and answers as one side of the pairs have the same ids, and are on the same side."""
    rows = [{"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"]} for row in pair_rows()]
    give(workspace, [{**row, "label": n % 3 > 0} for n, row in enumerate(rows)])
    workspace.run("unpaired")
    for side, found in zip(("train", "validation"), sides(workspace), strict=True):
        pairs = workspace.rows(f"data/prepared/dpo_{side}.jsonl")
        assert [(row["id"], row["prompt_ids"], row["completion_ids"]) for row in found] == [
            (pair["id"], pair["prompt_ids"], pair["chosen_ids"]) for pair in pairs
        ]


def test_kto_trains_on_a_file_of_ones_own(workspace):
    give(workspace, own_rows())
    for stage in ("unpaired", "sft", "kto"):
        workspace.run(stage)
    counts = workspace.json("reports/unpaired.json")["unpaired_data"]
    assert counts["from"] == OWN and counts["train_good"] + counts["train_bad"] == len(sides(workspace)[0])
    assert Path("models/kto/adapter_model.safetensors").is_file()


# ---- The wrong file -------------------------------------------------------------------------------------------------


def refused(workspace, stage):
    """The message of a stage that must fail, which is one line."""
    with pytest.raises(InputError) as error:
        workspace.run(stage)
    assert "\n" not in str(error.value), error.value
    return str(error.value)


def test_a_pair_file_is_not_unpaired(workspace):
    workspace.params["unpaired.rows"] = "data/raw/dpo_pairs.jsonl"
    message = refused(workspace, "unpaired")
    assert message.startswith("data/raw/dpo_pairs.jsonl holds the wrong kind of rows; each is a row of `prompt/chosen/rejected`")
    assert message.endswith("(pairs) in a file that is read as unpaired")


@pytest.mark.parametrize("kind", ["pairs", "sft"])
def test_an_unpaired_file_is_neither_pairs_nor_examples(workspace, kind):
    give(workspace, own_rows())
    workspace.params[f"prepare.{kind}"] = OWN
    if kind == "pairs":
        assert "(unpaired) in a file that is read as pairs" in refused(workspace, "prepare")
    else:
        with pytest.raises(InputError, match="label"):
            workspace.run("prepare")


@pytest.mark.parametrize(("label", "missing"), [(True, "bad completion (label false)"), (False, "good completion (label true)")])
def test_rows_of_one_kind_alone_are_refused(workspace, label, missing):
    give(workspace, [{**row, "label": label} for row in own_rows()])
    assert refused(workspace, "unpaired") == f"unpaired.rows has no {missing} to train on; KTO learns from both kinds"


def test_an_eval_prompt_among_the_rows_is_found(workspace):
    leak = {"prompt": eval_rows()[0]["prompt"], "completion": "It is one.", "label": True}
    give(workspace, [*own_rows(), leak])
    with pytest.raises(InputError, match="overlap with the training texts"):
        workspace.run("unpaired")
    assert not Path("data/prepared/unpaired_train.jsonl").exists()


def test_a_bad_row_is_named(workspace):
    give(workspace, [*own_rows(), {"prompt": "Explain it.", "completion": "No.", "label": "false"}])
    with pytest.raises(InputError, match=rf"{OWN}:13: wrong_type: `label`"):
        workspace.run("unpaired")
