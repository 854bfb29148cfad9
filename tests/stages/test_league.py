"""league: its files, its page and its votes, and models that it cannot compare."""

import csv
import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from support import finished
from support.scored import ANSWERS, CONCEPTS, REFERENCES, answer_row
from support.workspace import REPOSITORY, Params

import league
from aligner.files import write_json, write_jsonl
from aligner.judging import votes
from aligner.run.errors import InputError
from aligner.scoring import inputs

FILES = [league.METRICS, league.LENGTH, league.KL, league.REPORT, league.TABLE, league.PAGE]
MODELS = ["base", "sft", "dpo", "kto"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Answers of four models to three prompts, one with a measured KL divergence."""
    monkeypatch.chdir(tmp_path)
    Path("requirements.txt").write_bytes((REPOSITORY / "requirements.txt").read_bytes())
    write_jsonl(inputs.REFERENCES, REFERENCES)
    write_jsonl(inputs.CONCEPTS, CONCEPTS)
    for name, texts in {**ANSWERS, "kto": ANSWERS["dpo"]}.items():
        write_jsonl(inputs.GENERATED / f"{name}.jsonl", [answer_row(id, text) for id, text in texts.items()])
    write_json(Path("reports/kto.json"), {"kto": {"kl_per_answer_sampled": 2.0}})
    write_params(models=MODELS)
    return tmp_path


def write_params(**values):
    params = Params(Path("params.yaml"), REPOSITORY / "params.yaml")
    params.update({f"league.{key}": value for key, value in values.items()})


def run(*shown):
    league.main(Mock(), list(shown) or None)
    return {path: path.read_bytes() for path in FILES if path.is_file()}


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_answers_give_the_same_bytes(folder):
    assert run() == run()


def test_the_plots_hold_every_model_with_its_interval(folder):
    run()
    assert [row["model"] for row in rows(league.LENGTH)] == MODELS
    assert [row["model"] for row in rows(league.KL)] == ["sft", "kto"]  # those whose divergence is known
    for row in rows(league.LENGTH):
        assert float(row["low"]) <= float(row["hit_rate"]) <= float(row["high"]) and row["prompts"] == "3"


def test_metrics_are_about_the_models_that_score_does_not_compare(folder):
    run()
    metrics = json.loads(league.METRICS.read_text())["league"]
    assert set(metrics) == {"kto_hit_rate", "kto_at_equal_length"}
    assert metrics["kto_hit_rate"] == pytest.approx(float(rows(league.LENGTH)[3]["hit_rate"]), abs=1e-4)
    write_params(models=MODELS[:3])
    run()
    assert set(json.loads(league.METRICS.read_text())["league"]) == {f"{m}_{f}" for m in MODELS[:3] for f in FIGURES}


FIGURES = ("hit_rate", "at_equal_length")


def test_the_table_has_a_row_for_each_model_best_first_and_for_each_pair(folder):
    run()
    text = league.TABLE.read_text()
    first, second = (re.findall(r"^\| (?!---|model|comparison)([^|]+) \|", part, re.M) for part in text.split("## "))
    assert set(first) == set(MODELS) and first[-1] == "base"
    assert len(second) == 6 and "kto over sft" in second
    assert "these 12 sign-flip" in text


def page_data():
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', league.PAGE.read_text(), re.S)[1])


def test_the_page_shows_the_chosen_models_and_its_votes_count(folder):
    run("sft", "kto")
    data = page_data()
    assert [model["name"] for model in data["models"]] == ["sft", "kto"]
    text = league.PAGE.read_text()
    assert "Written by <code>src/league.py</code>" in text and 'id="training"' not in text and 'href="#training"' not in text
    assert "adjusted over the league&#39;s 12 tests" in text
    assert votes.read_run(["kto", "sft"]).run == data["run"] != votes.read_run().run


def test_another_page_leaves_the_other_files(folder):
    before = run()
    assert [model["name"] for model in page_data()["models"]] == ["sft", "dpo", "kto"] and len(page_data()["pairs"]) == 3
    after = run("sft", "kto")
    assert {path for path in FILES if before[path] != after[path]} == {league.PAGE}


def test_answers_of_further_models_do_not_change_the_run_of_the_root_page(folder):
    """Votes on reports/index.html stay valid after a method has answered the prompts."""
    run_before = votes.read_run().run
    write_jsonl(inputs.GENERATED / "grpo.jsonl", [])
    assert votes.read_run().run == run_before


@pytest.mark.parametrize(
    ("models", "page", "message"),
    [
        (
            ["sft", "simpo"],
            ["sft", "simpo"],
            r"names simpo, but data/generated/simpo.jsonl is missing \(there are: base, dpo",
        ),
        (["sft", "sft"], ["sft", "sft"], "names sft more than once"),
        (MODELS[:2], ["sft", "kto"], r"the page cannot show kto, which is not in league.models \(base, sft\)"),
        (MODELS, ["sft", "sft"], "two or three different models, not sft, sft"),
    ],
)
def test_models_that_cannot_be_compared_are_one_message(folder, models, page, message):
    write_params(models=models)
    with pytest.raises(InputError, match=message) as error:
        run(*page)
    assert "\n" not in str(error.value)


def test_answers_to_other_prompts_name_the_stage_that_renews_them(folder):
    write_jsonl(inputs.GENERATED / "kto.jsonl", [])
    with pytest.raises(InputError, match="dvc repro --force pipelines/dvc.yaml:generate@kto"):
        run()


def test_a_whole_run_compares_trained_models(tmp_path, monkeypatch):
    """The league of the tiny models that all stages have trained."""
    workspace = finished.Workspace.copy(finished.with_methods(), tmp_path, monkeypatch)
    report = workspace.json("reports/league.json")
    assert set(report["models"]) == {"base", "sft", "dpo", "kto", "orpo", "best_of_n", "grpo"} and len(report["pairs"]) == 21
    assert all(report["models"][name]["kl"]["estimate"] >= 0 for name in ("sft", "dpo", "kto", "orpo", "best_of_n", "grpo"))
