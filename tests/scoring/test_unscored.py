"""Eval prompts without keywords: no hit rate and no verdict, but all that needs no keywords."""

import csv
import json

import pytest
from support.scored import ANSWERS, CONCEPTS, REFERENCES, copy_other_stages, nulls, run, write_inputs, write_params

import score
from aligner.files import read_json
from aligner.judging import contest
from aligner.judging.canaries import GENERAL, canary_duels
from aligner.scoring.unscored import FIGURES, no_score

BARE = [{"id": row["id"], "prompt": row["prompt"], "topic": row["topic"], "keywords": []} for row in REFERENCES]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_other_stages()
    write_params(0)
    return tmp_path


def scored(references):
    write_inputs(references)
    run()
    return read_json(score.REPORT)


def test_without_keywords_hit_rates_are_undefined_and_verdicts_not_measured(folder):
    report = scored(BARE)
    assert report["prompts_with_keywords"] == 0 and report["canaries"] == {}
    for model in report["models"].values():
        assert {model[name]["estimate"] for name in FIGURES} == {None}
        assert model["lengths"]["words"]["mean"] > 10 and model["health"]["truncated"]["n"] == 3
        assert model["health"]["repetition_4"]["estimate"] is not None
    for pair in report["pairs"].values():
        for claim in (pair, pair["equal_length"]):
            assert claim["decision"]["verdict"] == "not measured" and "src/votes.py" in claim["decision"]["reason"]
            assert claim["n"] == 0 and claim["p_holm"] is None
        assert pair["length"]["share_longer"]["n"] == 3
    assert not list(nulls(report))
    metrics = read_json(score.METRICS)
    assert metrics["dpo_vs_sft"]["verdict"] == "not measured" and metrics["sft"]["hit_rate"] is None


def test_without_keywords_every_answer_is_shown_and_can_be_voted_on(folder):
    scored(BARE)
    data = json.loads(score.PAGE.read_text().split('id="data">')[1].split("</script>")[0])
    assert [prompt["outcomes"] for prompt in data["prompts"]] == [[None] * 3] * 3
    for prompt, reference in zip(data["prompts"], BARE, strict=True):
        assert prompt["ideas"] == [] and len(prompt["answers"]) == 3
        assert all(
            "".join(answer["parts"]).startswith(ANSWERS[name][reference["id"]])
            for name, answer in zip(ANSWERS, prompt["answers"], strict=True)
        )
    page = score.PAGE.read_text()
    assert "no verdict is measured here" in page and "not measured" in page and "Hit rate by kind" not in page
    sections = score.SIDE_BY_SIDE.read_text()
    assert all(f"`{row['id']}`" in sections for row in BARE) and "0 of 0" not in sections


def test_with_some_keywords_hit_rates_are_those_of_these_prompts(folder):
    """The figures equal those of a run on the prompts with keywords alone, except lengths and health, which count all answers."""
    mixed = [BARE[0], *REFERENCES[1:]]
    some = scored(mixed)
    rates = {row["model"]: row for row in csv.DictReader(score.HIT_RATE.open()) if row["group"] == "all prompts"}
    write_inputs(REFERENCES[1:], {name: {id: text for id, text in given.items() if id != "a"} for name, given in ANSWERS.items()})
    run()
    alone = read_json(score.REPORT)
    for name in ANSWERS:
        assert {figure: some["models"][name][figure] for figure in FIGURES} == {
            figure: alone["models"][name][figure] for figure in FIGURES
        }
        assert rates[name]["prompts"] == "2"
        assert some["models"][name]["health"]["truncated"]["n"] == 3
    assert some["pairs"] == alone["pairs"]
    assert (some["prompts"], some["prompts_with_keywords"], "prompts_with_keywords" in alone) == (3, 2, False)


def test_answers_keep_their_flags_without_keywords():
    flags = {text: no_score(text, BARE[0] | {"forbidden": ["wizard"]}).flags for text in ("", "A wizard did it.", "Define it")}
    assert flags == {"": ("empty",), "A wizard did it.": ("forbidden",), "Define it": ("echo",)}


def test_a_judge_needs_no_keywords():
    """Its canaries are then questions of general knowledge, and there are no hit rates to agree with."""
    duels = canary_duels(BARE, {row["concept"]: row for row in CONCEPTS})
    assert {duel.prompt for duel in duels["constant"]} == {row["prompt"] for row in GENERAL}
    assert "Paris" in next(duel.one for duel in duels["constant"] if "France" in duel.prompt)
    assert contest.hit_rates(BARE, {"base": ["a", "b", "c"]}) == {"base": [None, None, None]}
    with_one = canary_duels([BARE[0], REFERENCES[1]], {})
    assert {duel.prompt for duel in with_one["constant"]} == {REFERENCES[1]["prompt"]}
