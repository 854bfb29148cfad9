"""What README.md says is there: its table is that of the metrics, its paths exist, its commands are real."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def render():
    specification = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_result_table_is_that_of_the_metrics() -> None:
    module = render()
    assert module.between("results", module.results(), README) == README


@pytest.mark.skipif(not (ROOT / "reports" / "score.json").is_file(), reason="a run writes the report; it is not in Git")
def test_table_of_lengths_is_that_of_the_report() -> None:
    module = render()
    assert module.between("lengths", module.lengths(), README) == README


def test_a_difference_is_shown_with_what_there_is_of_it() -> None:
    """Of 96 prompts, of one (which has no interval), and of none."""
    module = render()
    known = {"mean_difference": {"estimate": 0.0186, "low": -0.0101, "high": 0.0478}, "n": 96, "p": 0.2178}
    assert module._difference(known) == "0.019 (-0.010 to 0.048; n = 96, p = 0.2178)"
    single = {"mean_difference": {"estimate": 0.25, "low": None, "high": None}, "n": 1, "p": 1.0}
    assert module._difference(single) == "0.250 (no interval; n = 1, p = 1.0000)"
    assert module._difference({"mean_difference": {"estimate": None}, "n": 0, "p": 1.0}) == "undefined (n = 0)"


def test_the_table_of_seeds_is_that_of_its_file_and_holds_the_committed_run() -> None:
    import csv
    import json

    module = render()
    assert module.between("seeds", module.seeds(), README) == README
    rows = list(csv.DictReader((ROOT / "docs" / "seeds.csv").read_text(encoding="utf-8").splitlines()))
    score = json.loads((ROOT / "metrics" / "score.json").read_text(encoding="utf-8"))
    assert len({row["seed"] for row in rows}) >= 5
    committed = [score[model]["hit_rate"] for model in module.MODELS]
    assert [float(rows[0][f"{model}_hit_rate"]) for model in module.MODELS] == committed


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
