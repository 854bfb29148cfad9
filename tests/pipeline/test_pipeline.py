"""The documented commands, end to end, in a temporary clone: dvc repro, exp run, metrics diff, the queue, plots, apply.

Slow (some minutes): the commands of a user's first day, with default parameters and the embedded base. The pipeline runs once.
Tests that change something do so in a copy, so they may run in any order and worker.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import shelf
from support.clones import ROOT, Clone, started

import verify
from compare_outputs import compare, difference_lines

pytestmark = pytest.mark.slow

STAGES = ["prepare", "sft", "dpo", "generate@base", "generate@sft", "generate@dpo", "score"]
OUTPUTS = {
    "data/prepared": {
        "chat.json", "concepts.jsonl", "dpo_train.jsonl", "dpo_validation.jsonl", "prompts.jsonl",
        "references.jsonl", "sft_train.jsonl", "sft_validation.jsonl",
    },
    "data/generated": {"base.jsonl", "dpo.jsonl", "sft.jsonl"},
    "models/sft": {"adapter_config.json", "adapter_model.safetensors", "provenance.json"},
    "models/dpo": {"adapter_config.json", "adapter_model.safetensors", "provenance.json"},
    "metrics": {"dpo.json", "prepare.json", "score.json", "sft.json"},
    "plots": {
        "dpo_accuracy.csv", "dpo_logps.csv", "dpo_loss.csv", "dpo_ranking.csv", "dpo_rewards.csv",
        "hit_rate.csv", "lengths.csv", "outcomes.csv", "sft.csv", "topics.csv",
    },
    "reports": {"data.json", "data.md", "dpo.json", "index.html", "prepare.json", "score.json", "sft.json", "side_by_side.md"},
}  # fmt: skip


@dataclass(frozen=True)
class Fresh:
    """The clone's run and its comparison, by the functions of tools/verify.py."""

    outdated: dict[str, list[str]]  # stages whose inputs are not those of the committed dvc.lock
    results: list[Any]
    distance: str  # how far the outputs that differ are apart
    is_known: bool  # whether this kind of machine is known to give the bytes of dvc.lock


def run_afresh(place: Path) -> None:
    """Fills `place` with a clone of the working tree without any output, and runs it with the default parameters."""
    clone = Clone(place / "clone")
    outdated = verify.outdated(clone.folder)
    verify.set_aside(clone.folder, place / "committed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS")  # as many threads as params.yaml says
        verify.run(clone.folder)
    (place / "outdated.json").write_text(json.dumps(outdated), encoding="utf-8")


@pytest.fixture(scope="module")
def place() -> Path:
    return shelf.built("pipeline", run_afresh)


@pytest.fixture(scope="module")
def finished(place: Path) -> Clone:
    """The clone after its run; only to be read."""
    return Clone.reopen(place / "clone")


@pytest.fixture(scope="module")
def fresh(place: Path) -> Fresh:
    """The report of tools/verify.py on the run."""
    results = compare(verify.locked(place / "clone"), place / "clone", place / "committed", verify.cache_of(ROOT))
    is_known = verify.is_known(verify.machine(place / "clone"), verify.read_record(ROOT))
    outdated = json.loads((place / "outdated.json").read_text(encoding="utf-8"))
    return Fresh(outdated, results, "\n".join(difference_lines(results)), is_known)


@pytest.fixture
def clone(place: Path, tmp_path: Path) -> Clone:
    """A copy with the results committed, to be changed."""
    clone = Clone.reopen(shutil.copytree(place / "clone", tmp_path / "clone", symlinks=True))
    clone.commit("results")
    return clone


def test_repro_writes_exactly_the_declared_files(finished: Clone) -> None:
    """Beside the committed figures of the further methods, which the root pipeline does not touch."""
    of_methods = set(finished("git", "ls-files", "metrics", "plots").split()) - {
        f"{folder}/{name}" for folder, names in OUTPUTS.items() for name in names
    }
    for folder, names in OUTPUTS.items():
        found = {path.relative_to(finished.folder).as_posix() for path in (finished.folder / folder).iterdir()}
        assert found - of_methods == {f"{folder}/{name}" for name in names}, folder


def test_dvc_lock_is_of_this_code(fresh: Fresh) -> None:
    """The committed results are of the committed code, data and parameters. If not: dvc repro, tools/render_readme.py, commit."""
    assert fresh.outdated == {}


def test_every_output_has_the_bytes_of_dvc_lock(fresh: Fresh) -> None:
    """On machines known to give these bytes. On others last digits may differ, but no output is missing or extra."""
    assert {result.state for result in fresh.results} <= {"same", "differs"}, verify.table(fresh.results)
    if fresh.distance and not fresh.is_known:
        pytest.skip(f"another kind of machine than in {verify.RECORD}:\n{fresh.distance}")
    assert fresh.distance == ""


def test_committed_figures_came_out_again(finished: Clone) -> None:
    """On any machine, within the tolerance in docs/reproducibility.md."""
    for stage in ("prepare", "sft", "dpo", "score"):
        committed = json.loads(finished("git", "show", f"HEAD:metrics/{stage}.json"))
        for name, values in finished.read(f"metrics/{stage}.json").items():
            numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
            assert set(values) == set(committed[name]), f"{stage}: {name}"
            for key, value in numbers.items():
                assert value == pytest.approx(committed[name][key], abs=0.05, rel=0.1), f"{stage}: {name}.{key}"


def test_sft_is_clearly_above_base(finished: Clone) -> None:
    score = finished.read("reports/score.json")
    base, sft = (score["models"][name]["hit_rate"]["estimate"] for name in ("base", "sft"))
    assert sft > base + 0.05
    assert score["pairs"]["sft_vs_base"]["win_rate"]["estimate"] > 0.5


def test_second_repro_runs_nothing(clone: Clone) -> None:
    output = clone("dvc", "repro")
    assert started(output) == [] and "up to date" in output


def test_every_stage_left_a_record(finished: Clone) -> None:
    records = [json.loads(path.read_text()) for path in (finished.folder / "experiments").glob("*.json")]
    assert {record["stage"] for record in records} >= set(STAGES)
    assert all(record["state"] == "completed" for record in records)


def test_a_new_beta_runs_dpo_and_what_follows(clone: Clone) -> None:
    """…and nothing else; metrics diff shows the change; the old value comes back from the cache; the new one can be applied."""
    assert started(clone("dvc", "exp", "run", "--set-param", "dpo.beta=0.2")) == ["dpo", "generate@dpo", "score"]
    assert "dpo.reward_margin" in clone("dvc", "metrics", "diff")
    shown = clone("dvc", "exp", "show", "--csv")
    assert "0.2" in shown and "dpo.hit_rate" in shown.splitlines()[0]
    metrics, report = clone.read("metrics/dpo.json"), clone.read("reports/dpo.json")
    back = clone("dvc", "exp", "run", "--set-param", "dpo.beta=0.1")
    assert started(back) == [] and back.count("is cached") == 3
    assert clone("git", "status", "--porcelain", "metrics", "plots", "dvc.lock").strip() == ""
    (name,) = names_of_experiments(clone, "0.2")
    clone("dvc", "exp", "apply", name)
    assert clone.read("metrics/dpo.json") == metrics
    assert clone.read("reports/dpo.json") == report and report["dpo"]["validation_pairs"] > 0


def names_of_experiments(clone: Clone, beta: str) -> list[str]:
    """The experiments with this beta."""
    rows = csv.DictReader(clone("dvc", "exp", "show", "--csv").splitlines())
    return [row["Experiment"] for row in rows if row["Experiment"] and row["dpo.beta"] == beta]


def test_queued_experiments_run_and_leave_records_in_the_main_checkout(clone: Clone) -> None:
    before = len(list((clone.folder / "experiments").glob("*.json")))
    clone("dvc", "exp", "run", "--queue", "--name", "short", "--set-param", "score.tie_threshold=0.1,0.3")
    clone("dvc", "queue", "start")
    deadline = time.monotonic() + 300
    while "Queued" in (status := clone("dvc", "queue", "status")) or "Running" in status:
        assert time.monotonic() < deadline, status
        time.sleep(1)
    assert status.count("Success") == 2, status
    records = sorted((clone.folder / "experiments").glob("score-*.json"), key=os.path.getmtime)
    assert len(list((clone.folder / "experiments").glob("*.json"))) == before + 2
    assert {json.loads(path.read_text())["params"]["score"]["tie_threshold"] for path in records[-2:]} == {0.1, 0.3}
    assert "0.3" in clone("dvc", "exp", "show", "--csv")


def test_plots_draw_with_title_axes_and_legend(clone: Clone) -> None:
    """Every plot; those that fail are listed. dvc runs as a program: in process its output was not captured every time."""
    import vl_convert

    wrong = []
    for plot in sorted(f"plots/{name}" for name in OUTPUTS["plots"]):
        shown = clone.run("dvc", "plots", "show", "--show-vega", plot)
        assert shown.returncode == 0, shown.stderr
        specification = json.loads(shown.stdout)
        svg = vl_convert.vegalite_to_svg(specification, vl_version="5.20")
        has_title = specification["title"]["text"] in svg
        has_legend = 'aria-roledescription="legend"' in svg or "legend" in svg
        has_axes = svg.count("axis-title") + svg.count("role-axis-title") > 0
        wrong += [] if has_title and has_legend and has_axes else [(plot, has_title, has_legend, has_axes)]
    assert wrong == []


def test_plots_page_holds_every_plot(clone: Clone) -> None:
    clone("dvc", "plots", "show", "--out", "dvc_plots")
    page = (clone.folder / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    for name in OUTPUTS["plots"]:
        assert name in page


class TestMistakes:
    """A user's mistake ends in one clear message and a non-zero exit code, without a traceback or a loss."""

    def broken(self, clone: Clone, stage: str, *words: str) -> None:
        output = clone("dvc", "repro", stage, check=False)
        assert "Traceback" not in output
        for word in words:
            assert word in output, output
        clone("git", "checkout", ".")
        clone("dvc", "checkout")
        assert "up to date" in clone("dvc", "repro")

    def edit(self, clone: Clone, path: str, old: str, new: str) -> None:
        text = (clone.folder / path).read_text(encoding="utf-8")
        assert old in text
        (clone.folder / path).write_text(text.replace(old, new, 1), encoding="utf-8")

    def test_typo_in_params(self, clone: Clone) -> None:
        self.edit(clone, "params.yaml", "  beta: 0.1", "  betta: 0.1")
        self.broken(clone, "dpo", "dpo.betta is not a parameter", "did you mean dpo.beta?", "dpo.beta is missing")

    def test_malformed_row(self, clone: Clone) -> None:
        path = clone.folder / "data/raw/sft_examples.jsonl"
        path.write_text(path.read_text() + "{'id': 'x', 'prompt': 'p'\n")
        lines = len(path.read_text().splitlines())
        self.broken(clone, "prepare", f"data/raw/sft_examples.jsonl:{lines}: ", "--check")

    def test_missing_file(self, clone: Clone) -> None:
        self.edit(clone, "params.yaml", "sft: data/raw/sft_examples.jsonl", "sft: data/raw/nothing.jsonl")
        self.broken(clone, "prepare", "data/raw/nothing.jsonl")

    def test_unknown_model(self, clone: Clone) -> None:
        self.edit(clone, "params.yaml", "model: mini", "model: minni")
        self.broken(clone, "prepare", "models.minni")

    def test_interrupted_run(self, clone: Clone) -> None:
        """Ctrl-C (SIGINT to the whole group) while sft trains: a message, a record, and the next run succeeds."""
        self.edit(clone, "params.yaml", "  weight_decay: 0.01", "  weight_decay: 0.02")
        self.edit(clone, "src/aligner/training/checkpoints.py", "SECONDS = 30.0", "SECONDS = 0.0")
        before = set((clone.folder / "experiments").glob("sft-*.json"))
        running = subprocess.Popen(
            ["dvc", "repro", "sft"],
            cwd=clone.folder,
            env=clone.environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while not list((clone.folder / ".cache/checkpoints/sft").glob("*/step-*")):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        errors = running.communicate(timeout=120)[1]
        assert running.returncode != 0 and "Traceback" not in errors
        assert "sft: interrupted" in errors
        (new,) = set((clone.folder / "experiments").glob("sft-*.json")) - before
        assert json.loads(new.read_text())["state"] == "interrupted"
        clone("git", "checkout", ".")
        clone("dvc", "checkout")
        assert "up to date" in clone("dvc", "repro")
