"""README.md and docs/results.md: their tables match the results, and their paths, commands and parameters exist."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

import render_readme
import seeds

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
needs_report = pytest.mark.skipif(not render_readme.REPORT.is_file(), reason="a run writes the report; it is not in Git")


def score_report() -> dict:
    return json.loads(render_readme.REPORT.read_text(encoding="utf-8"))


def cells(name: str, text: str) -> dict[str, list[str]]:
    """The rows of the table between two markers, by their first cell."""
    table = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", text, re.DOTALL)[1]
    return {first: rest for first, *rest in (line[2:-2].split(" | ") for line in table.splitlines() if line.startswith("| "))}


@pytest.mark.parametrize("text", [README, RESULTS], ids=["README.md", "docs/results.md"])
def test_result_table_has_the_figures_that_git_holds(text: str) -> None:
    rates = list(csv.DictReader((ROOT / "plots" / "hit_rate.csv").read_text(encoding="utf-8").splitlines()))
    metrics = json.loads((ROOT / "metrics" / "score.json").read_text(encoding="utf-8"))
    table = cells("results", text)
    for model in render_readme.MODELS:
        expected = [render_readme._rate(row) for row in rates if row["model"] == model]
        assert len(expected) >= 3 and table[model][: len(expected)] == expected, model
    precision, repeats, density = (metrics["dpo"][name] for name in ("precision", "repeats", "hits_per_100_words"))
    assert table["dpo"][-4:-1] == [f"{precision:.2f}", f"{repeats:.2f}", f"{density:.1f}"]
    pair = metrics["dpo_vs_sft"]
    whole, level = re.findall(r"dpo over sft (\S+) \(\S+ to \S+; (.+?), p", text)[:2]
    assert whole[1] == pair["verdict"]
    assert level == (f"{pair['equal_length']:+.3f}", pair["equal_length_verdict"])


@needs_report
def test_tables_are_those_of_the_report() -> None:
    table = render_readme.results(score_report())
    assert render_readme.between("results", table, README) == README
    assert render_readme.between("results", table, RESULTS) == RESULTS
    assert render_readme.between("lengths", render_readme.lengths(score_report()), RESULTS) == RESULTS


@needs_report
def test_sample_answers_are_those_of_the_run() -> None:
    assert render_readme.between("answers", render_readme.answers(), RESULTS) == RESULTS


def test_a_table_without_its_markers_is_an_error() -> None:
    assert (
        render_readme.between("x", "new\n", "a\n<!-- x -->\nold\n<!-- end of x -->\nb")
        == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb"
    )
    with pytest.raises(ValueError, match="markers of x occur 0 times"):
        render_readme.between("x", "new\n", "no marker")


def test_a_difference_is_shown_with_what_there_is_of_it() -> None:
    """Of 96 prompts, of one (which has no interval), and of none."""
    known = {"mean_difference": {"estimate": 0.0186, "low": -0.0101, "high": 0.0478}, "n": 96, "p": 0.2178}
    assert render_readme._difference(known) == "0.019 (-0.010 to 0.048; n = 96, p = 0.2178)"
    single = {"mean_difference": {"estimate": 0.25, "low": None, "high": None}, "n": 1, "p": 1.0}
    assert render_readme._difference(single) == "0.250 (no interval; n = 1, p = 1.0000)"
    assert render_readme._difference({"mean_difference": {"estimate": None}, "n": 0, "p": 1.0}) == "undefined (n = 0)"


def test_the_table_of_seeds_is_that_of_its_file_and_holds_the_committed_run() -> None:
    assert render_readme.between("seeds", render_readme.seeds(), RESULTS) == RESULTS
    rows = list(csv.DictReader((ROOT / "docs" / "seeds.csv").read_text(encoding="utf-8").splitlines()))
    score = json.loads((ROOT / "metrics" / "score.json").read_text(encoding="utf-8"))
    assert len({row["seed"] for row in rows}) >= 5
    committed = [score[model]["hit_rate"] for model in ("sft", "dpo")]
    assert [float(rows[0][f"{model}_hit_rate"]) for model in ("sft", "dpo")] == committed


@needs_report
def test_the_row_of_a_seed_comes_from_the_reports_of_its_run() -> None:
    (first, *_) = csv.DictReader((ROOT / "docs" / "seeds.csv").read_text(encoding="utf-8").splitlines())
    row = seeds.run_row(17, lambda path: (ROOT / path).read_text(encoding="utf-8"))
    assert {name: str(value) for name, value in row.items()} == first


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_named_files_exist() -> None:
    made_by_a_run = ("reports/", "experiments/", "data/prepared", "data/generated")
    for name in re.findall(r"`([\w./]+/[\w./*]+)`", README):
        if not name.startswith(made_by_a_run) and name != "file:line:":
            assert list(ROOT.glob(name)), name


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_parameters_in_commands_exist() -> None:
    from ruamel.yaml import YAML

    params = YAML(typ="safe").load(ROOT / "params.yaml")
    for name in re.findall(r"-S '?([\w.]+)=", README):
        value = params
        for key in name.split("."):
            value = value[key]
