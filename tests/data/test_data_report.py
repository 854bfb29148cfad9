"""The data report: each fault that is put into the files is counted and listed, and the order of the rows plays no part."""

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.workspace import RAW, Workspace, eval_rows, pair_rows, sft_rows

from aligner.data import audit, row_store
from aligner.data.audit import Listed
from aligner.data.row_warnings import text_warnings

ROOT = Path(__file__).resolve().parents[2]
LONG = "The mean of many values is their sum over their number, and it moves when a single value is far from all of the others"


def faulty():
    """The three files with one fault of each kind; ids say which."""
    sft, pairs, asked = sft_rows(), pair_rows(), eval_rows()
    sft += [
        {"id": "near-1", "prompt": "How is the mean found?", "response": LONG + "."},
        {"id": "near-2", "prompt": "How is the mean found?", "response": LONG + " here."},
        {"id": "copy-1", "prompt": "Say it twice.", "response": "Twice."},
        {"id": "copy-2", "prompt": "Say it twice.", "response": "Twice."},
        {"id": "long", "prompt": "Why?", "response": "word " * 400},
        {"id": "mojibake", "prompt": "Where is the cafÃ©?", "response": "There."},
        {"id": "lost", "prompt": "Where is the caf\ufffd?", "response": "Here."},
        {"id": "bell", "prompt": "What rings?", "response": "A \x07 bell."},
        {"id": "mixed", "prompt": "Which letters?", "response": "M\u0435an."},
    ]
    pairs += [
        {"id": "con-1", "prompt": "Which one?", "chosen": "The first one.", "rejected": "The second one."},
        {"id": "con-2", "prompt": "which one", "chosen": "The second one!", "rejected": "The first one."},
        {"id": "con-3", "prompt": "Which one?", "chosen": "Neither.", "rejected": "The first one."},
        {"id": "same", "prompt": "How?", "chosen": "So it is.", "rejected": "so it is"},
    ]
    asked[0]["prompt"] = "Say what is their sum over their number, and it moves: how?"
    return {"sft": sft, "pairs": pairs, "eval": asked}


def lay_out(workspace, files):
    for kind, rows in files.items():
        workspace.write_rows(kind, rows)


def outputs(workspace):
    return {path: (workspace.folder / path).read_text(encoding="utf-8") for path in ("reports/data.json", "reports/data.md")}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The folder of a workspace with the faulty files, prepared once; only to be read."""
    with pytest.MonkeyPatch.context() as patch:
        workspace = Workspace(tmp_path_factory.mktemp("report"), patch)
        lay_out(workspace, faulty())
        workspace.run("prepare")
        report = workspace.json("reports/data.json")
        metrics = workspace.json("reports/prepare.json")
        yield SimpleNamespace(folder=workspace.folder, report=report, metrics=metrics, files=outputs(workspace))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return Workspace(tmp_path, monkeypatch)


# ---- Each fault, by its ids ---------------------------------------------------------------------------------------------


def test_the_same_row_twice_is_left_out_and_listed(reported):
    assert reported.report["sft"]["exact_duplicates"] == {"rows": 1, "groups": 1, "listed": [["copy-1", "copy-2"]]}
    assert reported.metrics["sft_data"]["duplicate"] == 1


def test_nearly_the_same_row_is_kept_and_listed_with_its_similarity(reported):
    """23 and 24 words make 22 and 23 shingles less one; the last one alone differs, beside the prompt's three."""
    found = reported.report["sft"]["near_duplicates"]
    assert found["rows"] == reported.metrics["sft_data"]["near_duplicate"] == 2
    [pair] = found["listed"]
    assert pair["rows"] == ["near-1", "near-2"]
    answer, prompt = len(LONG.split()) - 2, len("How is the mean found?".split()) - 2
    assert pair["jaccard"] == pytest.approx((answer + prompt) / (answer + prompt + 1), abs=1e-4)
    assert (found["threshold"], found["complete"]) == (0.8, True)


def test_what_is_too_long_is_left_out_whole(reported):
    assert reported.report["sft"]["too_long"] == {"policy": "left out whole, never cut", "rows": 1, "listed": ["long"]}


def test_data_report_lists_damaged_texts_by_kind(reported, subtests):
    damaged = {"mojibake": "mojibake", "replacement_character": "lost", "control_character": "bell", "mixed_scripts": "mixed"}
    for kind, id in damaged.items():
        with subtests.test(kind=kind):
            assert reported.report["sft"]["warnings"][kind] == {"rows": 1, "listed": [id]}
    assert reported.metrics["sft_data"]["damaged"] == reported.report["sft"]["damaged_rows"] == 4
    assert reported.metrics["dpo_data"]["damaged"] == 0


def test_pairs_that_teach_against_each_other_are_listed(reported):
    """con-1 and con-2 are mirrored but for spelling; con-3 rejects what con-1 chooses. The default pairs do not take part."""
    found = reported.report["dpo"]["contradictions"]
    assert (found["pairs"], found["mirrored_pairs"], found["answers"]) == (3, 2, 2)
    assert found["listed"] == [
        {"chosen_by": ["con-1"], "rejected_by": ["con-2", "con-3"], "answer": "The first one."},
        {"chosen_by": ["con-2"], "rejected_by": ["con-1"], "answer": "The second one!"},
    ]
    assert reported.metrics["dpo_data"]["contradictory"] == 3


def test_answers_that_differ_in_spelling_alone_are_listed(reported):
    assert reported.report["dpo"]["same_answers"]["listed"] == ["same"]


def test_the_length_bias_is_that_of_the_prepared_tokens(reported):
    rows = [
        json.loads(line)
        for side in ("train", "validation")
        for line in (reported.folder / f"data/prepared/dpo_{side}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    gaps = sorted(len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows)
    expected = sum(1 if gap > 0 else 0.5 if gap == 0 else 0 for gap in gaps) / len(gaps)
    bias = reported.report["dpo"]["length_bias"]
    assert bias["longer_is_chosen"] == pytest.approx(expected, abs=1e-4) and bias["low"] < expected < bias["high"]
    assert (bias["n"], bias["median_gap"]) == (16, gaps[8])
    assert reported.metrics["dpo_data"]["longer_chosen"] == bias["longer_is_chosen"]


def test_the_share_of_supervised_tokens_is_that_of_the_labels(reported):
    labels = [
        label
        for side in ("train", "validation")
        for line in (reported.folder / f"data/prepared/sft_{side}.jsonl").read_text(encoding="utf-8").splitlines()
        for label in json.loads(line)["labels"]
    ]
    trained = sum(label != -100 for label in labels)
    tokens = reported.report["sft"]["tokens"]
    assert (tokens["all"], tokens["supervised"]) == (len(labels), trained)
    assert reported.metrics["sft_data"]["supervised_share"] == pytest.approx(trained / len(labels), abs=1e-4)


def test_the_overlap_of_an_eval_prompt_is_told_with_its_place(reported):
    found = reported.report["leakage"]
    worst = found["listed"][0]
    assert (worst["id"], worst["level"], worst["words"], worst["where"]) == ("e1", "ngram_8", 9, "sft answer")
    assert (worst["row"], worst["shared"]) == ("near-1", "is their sum over their number and it moves")
    assert (found["exact"], found["ngram_13"], found["ngram_8"]) == (0, 0, 1)
    assert found["held_out_rows_with_a_trained_prompt"] == reported.metrics["leakage"]["validation_prompts"]


def test_the_page_shows_what_the_report_lists(reported):
    page = reported.files["reports/data.md"]
    for id in ("near-1", "copy-2", "long", "mojibake", "con-3", "e1"):
        assert f"`{id}`" in page, id
    assert "\x07" not in page


# ---- The order, the seed, the caps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_the_rows_changes_no_report(reported, workspace, seed):
    files = faulty()
    for rows in files.values():
        random.Random(seed).shuffle(rows)
    lay_out(workspace, files)
    workspace.run("prepare")
    assert outputs(workspace) == reported.files


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_report_is_the_same_under_any_hash_seed(reported, workspace, seed):
    lay_out(workspace, faulty())
    done = subprocess.run(
        [sys.executable, str(ROOT / "src" / "prepare.py")],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert outputs(workspace) == reported.files


def test_lists_are_capped_and_counts_are_not(monkeypatch):
    monkeypatch.setattr(audit, "LISTED", 3)
    for order in (range(20), range(19, -1, -1)):
        listed = Listed()
        for number in order:
            listed.add(number)
        assert listed.report() == {"rows": 20, "listed": [0, 1, 2]}


def test_clean_files_have_nothing_to_list(workspace):
    workspace.run("prepare")
    report = workspace.json("reports/data.json")
    for name in ("sft", "dpo"):
        assert report[name]["near_duplicates"]["rows"] == report[name]["exact_duplicates"]["rows"] == 0
        assert report[name]["warnings"] == {} and report[name]["too_long"]["rows"] == 0
    assert report["dpo"]["contradictions"]["pairs"] == 0 and report["leakage"]["listed"] == []


# ---- Damage, character by character ---------------------------------------------------------------------------------------


def test_data_report_calls_utf8_read_as_cp1252_mojibake(subtests):
    for text in ("cafÃ©", "itâ€™s", "naÃ¯ve", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "ðŸ˜€", "Â°C", "ï»¿text", "ï¿½", "Ã\xa0 la carte"):
        with subtests.test(text=text):
            assert [problem.kind for problem in text_warnings(text)] == ["mojibake"]


def misread(text, encoding):
    """What becomes of UTF-8 that is read as CP1252 (bytes without a character there stay what they are) or Latin-1."""
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


def test_data_report_finds_text_misread_as_another_encoding(subtests):
    texts = ["é", "’", "привет", "😀", "°C", "“quoted”", "…", "ü", "Ça"]
    for text, encoding in itertools.product(texts, ["cp1252", "latin-1"]):
        with subtests.test(text=text, encoding=encoding):
            assert "mojibake" in {problem.kind for problem in text_warnings(f"a {misread(text, encoding)} b")}
            assert text_warnings(f"a {text} b") == ()


def test_data_report_finds_no_damage_in_good_text(subtests):
    foreign = ["café", "Ünïcode: 是什么?", "naïve façade", "Привет, мир", "ÄÖÜ äöü ß", "Â and Ã"]
    signs = ["3 °C ± 1", "“quoted” – …", "π ≈ Δx"]
    line_ends = ["tab\tnew\nline\r\n", "a\u2028b", "a\u0085b", "form\x0cfeed"]
    for text in (*foreign, *signs, *line_ends):
        with subtests.test(text=text):
            assert text_warnings(text) == ()


def test_a_warned_row_is_shown_by_check_and_kept(workspace):
    rows = sft_rows()
    rows[3]["response"] = "It is cafÃ©."
    workspace.write_rows("sft", rows)
    workspace.run("prepare")
    assert workspace.json("reports/prepare.json")["sft_data"]["warned"] == 1
    done = subprocess.run(
        [sys.executable, str(ROOT / "src" / "prepare.py"), "--check", RAW["sft"]], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and f"{RAW['sft']}:4: warning: mojibake: " in done.stdout


# ---- The row store ------------------------------------------------------------------------------------------------------


def test_rows_of_a_store_are_read_and_appended_in_turn_and_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with row_store.Scratch() as scratch:
        rows = scratch.store("rows")
        rows.append({"a": "é"})
        rows.append(["b"])
        assert rows[0] == {"a": "é"} and len(rows) == 2
        rows.append("c")
        assert list(rows) == [{"a": "é"}, ["b"], "c"] and rows[2] == "c"
        rows.append(4)
        rows.move_to(Path("out/rows.jsonl"))
    assert Path("out/rows.jsonl").read_bytes() == '{"a": "é"}\n["b"]\n"c"\n4\n'.encode()
    assert list(Path(row_store.FOLDER).iterdir()) == []


def test_nothing_is_left_behind_by_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError), row_store.Scratch() as scratch:
        scratch.store("rows").append(1)
        raise ValueError
    assert list(Path(row_store.FOLDER).iterdir()) == []
