"""reports/judged.html: verdicts of votes and of the judge on a run without keywords, above the page that score wrote."""

import argparse
import io

import pytest
from support.scored import ANSWERS, REFERENCES, copy_other_stages, run, write_inputs, write_params

import score
import votes
from aligner.files import read_json, write_json, write_jsonl
from aligner.judging import page
from aligner.judging.votes import read_run
from aligner.report import blind

BARE = [{"id": row["id"], "prompt": row["prompt"], "topic": row["topic"], "keywords": []} for row in REFERENCES]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run of score on prompts without keywords."""
    monkeypatch.chdir(tmp_path)
    copy_other_stages()
    write_params(0)
    write_inputs(BARE)
    run()
    return tmp_path


def cast(winner="dpo", raters=("ann",), pair=("dpo", "sft")):
    """Votes of all raters on all prompts, in one file; returns what src/votes.py says of them."""
    judged, rows = read_run(), []
    for rater in raters:
        for id, prompt in judged.prompts.items():
            left, right = blind.sides(3, judged.run, pair, id)
            if ANSWERS[left][id] == ANSWERS[right][id]:
                continue
            row = {"version": 1, "run": judged.run, "rater": rater, "seed": 3, "id": id, "prompt": prompt}
            row |= {"left_answer": judged.answers[left][id], "right_answer": judged.answers[right][id]}
            verdict = {left: "A", right: "B"}.get(winner, winner)
            rows.append(row | {"left_model": left, "right_model": right, "verdict": verdict})
    write_jsonl(votes.Path("votes.jsonl"), rows)
    out = io.StringIO()
    arguments = argparse.Namespace(files=["votes.jsonl"], pairs=None, run=None, models=None)
    assert votes.main(arguments, out) == 0
    return out.getvalue()


def test_votes_give_verdicts_by_scores_rules_and_a_page_that_shows_them(folder):
    before = score.PAGE.read_bytes()
    said = cast(raters=("ann", "bob"))
    found = read_json(page.VOTES)
    won = found["pairs"]["dpo_vs_sft"]  # three prompts, all won: exact sign test 2 / 2^3
    assert (won["wins"], won["ties"], won["losses"], won["p"], found["raters"]) == (3, 0, 0, 0.25, 2)
    assert won["decision"]["verdict"].startswith("inconclusive")
    assert "reports/judged.html" in said and "dpo over sft: inconclusive" in said
    shown = page.JUDGED.read_text()
    assert "2 people, 6 votes" in shown and "dpo over sft</th>" in shown and "3, 0, 0" in shown
    assert score.PAGE.read_bytes() == before  # an output of a stage
    added = shown[shown.index('\n<section id="verdicts-of-others"') : shown.index("</section>") + len("</section>")]
    assert shown.replace(added, "") == before.decode()


def test_a_judge_of_this_run_is_shown_with_its_name_escaped_and_one_of_another_run_is_not(folder):
    cast("tie")
    run_id = read_json(page.VOTES)["run"]
    pairs = read_json(page.VOTES)["pairs"]
    of_judge = {"judge": {"model": "<b>judge</b>"}, "evidence": {"canaries_passed": False}, "pairs": pairs}
    write_json(page.JUDGE, of_judge | {"run": run_id})
    assert page.write_page() == page.JUDGED
    shown = page.JUDGED.read_text()
    assert "&lt;b&gt;judge&lt;/b&gt;, which failed a canary: no evidence" in shown and "1 person, 3 votes" in shown
    write_json(page.JUDGE, of_judge | {"run": "0" * 64})
    page.write_page()
    assert "judge&lt;" not in page.JUDGED.read_text()


def test_without_a_page_or_a_verdict_nothing_is_written(folder):
    assert page.write_page() is None
    cast()
    score.PAGE.unlink()
    page.JUDGED.unlink()
    assert page.write_page() is None and not page.JUDGED.exists()


def test_pairs_are_named_as_in_the_report(folder):
    cast(winner="base", pair=("base", "sft"))
    assert list(read_json(page.VOTES)["pairs"]) == ["sft_vs_base"]
    assert read_json(page.VOTES)["pairs"]["sft_vs_base"]["losses"] == 3
