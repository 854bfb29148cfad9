"""The plots of the dvc.yaml files: a page without network, titles and units, and one set of colours."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from support import browser
from support.browser import needs_browser

import plots
from aligner.scoring.inputs import MODELS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / ".dvc" / "config"
PAGE = ROOT / ".dvc" / "plots.html"
TEMPLATES = sorted((ROOT / ".dvc" / "plots").glob("*.json"))
READ_BY_DVC = (
    *("dvc.yaml", "pipelines/dvc.yaml", "params.yaml", "plots"),
    *("models/base/dvc.yaml", "models/base/params.yaml", "models/base/loss.csv"),
)


def declared():
    """Every plot of the three dvc.yaml, by the path of its data from the root."""
    found = {}
    for pipeline, folder in {"": "", "models/base": "models/base/", "pipelines": ""}.items():
        stages = YAML(typ="safe").load((ROOT / pipeline / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        for stage in stages.values():
            for plot in stage.get("plots", []):
                [(path, settings)] = plot.items()
                found[folder + path] = settings
    return found


def dvc(folder, *arguments):
    """Runs DVC without the caller's own settings."""
    env = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site")}
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What `dvc plots` reads, as one commit of its own."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "models" / "base").mkdir(parents=True)
    (folder / "pipelines").mkdir()
    for path in map(Path, READ_BY_DVC):
        (shutil.copytree if (ROOT / path).is_dir() else shutil.copy)(ROOT / path, folder / path)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "plots"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


# ---- What is declared ---------------------------------------------------------------------------------------------------


def test_all_plots_of_a_run_are_declared():
    names = "sft dpo_loss dpo_rewards dpo_accuracy dpo_logps dpo_ranking hit_rate topics outcomes lengths".split()
    names += "kto_loss kto_rewards kto_logps orpo_loss orpo_odds orpo_logps league_length league_kl".split()
    names += "reward_loss reward_accuracy reward_reliability best_of_n_reward best_of_n_hit_rate best_of_n_length".split()
    names += [f"grpo_{name}" for name in "reward rewards held_out length entropy kl no_spread".split()]
    assert set(declared()) == {*(f"plots/{name}.csv" for name in names), "models/base/loss.csv"}


def test_every_plot_says_what_it_shows_and_in_which_unit():
    for path, settings in declared().items():
        assert all(settings[key] for key in ("title", "x_label", "y_label", "template")), path
        assert re.search(r"\(.+\)", settings["y_label"]) or settings["template"] == "outcomes", path


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_every_template_takes_title_and_labels_from_dvc_yaml(template):
    text = template.read_text(encoding="utf-8")
    for anchor in ("DATA", "TITLE", "X", "Y", "X_LABEL", "Y_LABEL"):
        assert f"<DVC_METRIC_{anchor}>" in text
    assert '"field": "rev"' in text, "dvc plots diff tells two runs apart by it"


def test_a_model_has_one_colour_everywhere():
    """The plots use the page's colours; its style sheet names the light ones first."""
    style = (ROOT / "src" / "aligner" / "report" / "page.css").read_text(encoding="utf-8")
    expected = [re.search(rf"--{letter}: (#[0-9a-f]{{6}})", style)[1] for letter in "abc"]
    palettes = [scale for path in TEMPLATES for scale in scales(json.loads(path.read_text(encoding="utf-8")))]
    of_models = [scale for scale in palettes if scale.get("domain", [])[:3] == list(MODELS)]
    assert len(of_models) == 3
    assert all(scale["range"][:3] == expected for scale in of_models)


def scales(value):
    """Every colour scale within a template."""
    if isinstance(value, list):
        return [scale for each in value for scale in scales(each)]
    if not isinstance(value, dict):
        return []
    own = [value["scale"]] if "range" in value.get("scale", {}) else []
    return own + [scale for each in value.values() for scale in scales(each)]


# ---- The page of `dvc plots show` ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_holds_the_bundle_of_the_pinned_library():
    """Nobody has to trust a megabyte of script: its bytes are those that the pinned vl-convert-python makes."""
    assert PAGE.read_text(encoding="utf-8") == plots.plots_page(), "run: python tools/plots.py --page"


def test_the_page_names_no_script_of_others_and_carries_their_licences():
    before, after = PAGE.read_text(encoding="utf-8").split("{plot_divs}")
    assert "<script src" not in before + after and "{scripts}" not in before + after
    assert "default-src 'none'" in before
    for owner in ("University of Washington Interactive Data Lab", "Mike Bostock", "Mapbox", "OpenJS Foundation"):
        assert owner in before[: before.index("-->")]


DRAWN = """[...document.querySelectorAll('main > div')].map((each) => ({
    titles: [...each.querySelectorAll('.role-title-text')].map((title) => title.textContent),
    axes: [...each.querySelectorAll('.role-axis-title')].map((title) => title.textContent),
    marks: [...each.querySelectorAll('.role-mark')].filter((mark) => /mark-(line|rect|symbol|rule)/.test(mark.className.baseVal))
        .map((mark) => mark.querySelectorAll('path, line').length),
    legends: each.querySelectorAll('.role-legend').length,
}))"""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    ("command", "folder"),
    [(["show"], "dvc_plots"), (["diff", "HEAD", "-o", "elsewhere"], "elsewhere")],
    ids=["show", "diff to another folder"],
)
def test_every_plot_is_drawn_with_no_network(repository, command, folder):
    dvc(repository, "plots", *command)
    with browser.started() as chromium:
        tab = browser.Tab(chromium, width=1280, height=900, offline=True)
        tab.open(repository / folder / "index.html")
        tab.evaluate("Promise.all(drawing).then(() => true)")
        drawn = tab.evaluate(DRAWN)
        assert (browser.outside(tab.requests), tab.errors, tab.dialogs) == ([], [], [])
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
    with_data = {path: settings for path, settings in declared().items() if (repository / path).is_file()}
    drawn = [each for each in drawn if each["titles"]]  # dvc leaves an empty place for a plot of a method that has not run
    assert len(drawn) == len(with_data)
    for settings in with_data.values():
        [plot] = [each for each in drawn if settings["title"] in each["titles"]]
        assert {settings["x_label"], settings["y_label"]} == set(plot["axes"]), plot
        assert plot["marks"] and all(plot["marks"]), plot
        assert plot["legends"] or settings["template"] == "reliability", plot  # which has one series


# ---- Pictures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_has_its_own_background_and_no_revision(path):
    """GitHub shows pictures on white and on black."""
    text = path.read_text(encoding="utf-8")
    width, height = re.search(r'viewBox="0 0 (\d+) (\d+)"', text).groups()
    assert f'<rect width="{width}" height="{height}" fill="white"/>' in text
    assert "workspace" not in text


@pytest.mark.slow
def test_pictures_of_all_plots_are_written(repository, monkeypatch):
    monkeypatch.setattr(plots, "ROOT", repository)
    monkeypatch.setattr(plots, "PICTURES", repository / "dvc_plots")
    plots.main([])
    names = {path.removesuffix(".csv").replace("/", "_") for path in declared() if (ROOT / path).is_file()}
    for suffix, start in ((".svg", b"<svg"), (".png", b"\x89PNG")):
        written = {path.stem: path.read_bytes() for path in (repository / "dvc_plots").glob(f"*{suffix}")}
        assert set(written) == names
        assert all(content.startswith(start) and b"workspace" not in content for content in written.values())
