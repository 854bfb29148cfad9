"""The table of a sweep: README's `dvc exp show` on stand-ins whose metrics have the keys that the stages write."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from support import scored
from support.clones import ROOT, Clone, stand_in

import dpo
import prepare
import score
import sft
from aligner.files import read_json

pytestmark = pytest.mark.slow

WIDTH = 160
BETAS = ["0.05", "0.2"]
VERDICT = "inconclusive (MDE 12.3 pp at n = 1520)"
LONGEST = {"verdict": VERDICT, "equal_length_verdict": VERDICT, "health": "displaced"}

# A program named python: the stand-in of the stage, and then numbers by chance under the keys of its metrics.
WITH_METRICS = """#!PYTHON -IS
import json, random, subprocess, sys
from pathlib import Path

subprocess.run([STAND_IN, *sys.argv[1:]], check=True)
path = Path("metrics", f"{Path(sys.argv[1]).stem}.json")
keys, longest = KEYS.get(path.name, {}), LONGEST
figures = {
    section: {name: longest.get(name, round(random.uniform(-99, 99), 4) if section.startswith("dpo") else 0.5) for name in names}
    for section, names in keys.items()
}
if figures:
    path.write_text(json.dumps(figures))
"""


def metric_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The sections of every file of metrics with their keys: of score, those that it writes for three small prompts."""
    monkeypatch.chdir(folder)
    scored.copy_other_stages()
    scored.write_params(0)
    scored.write_inputs()
    scored.run()
    headlines = {stage.METRICS: stage.HEADLINE for stage in (prepare, sft, dpo)} | {score.METRICS: read_json(score.METRICS)}
    return {path.name: {section: list(names) for section, names in keys.items()} for path, keys in headlines.items()}


def with_metrics(clone: Clone, keys: dict[str, Any], folder: Path) -> None:
    """Lets the clone's stages write metrics with these keys."""
    programs, _ = clone.environment["PATH"].split(":", 1)
    program = WITH_METRICS.replace("PYTHON", sys.executable).replace("STAND_IN", repr(f"{programs}/python"))
    folder.mkdir()
    (folder / "python").write_text(program.replace("KEYS", repr(keys)).replace("LONGEST", repr(LONGEST)), encoding="utf-8")
    (folder / "python").chmod(0o755)
    clone.environment["PATH"] = f"{folder}:{clone.environment['PATH']}"


def test_sweep_of_beta_is_readable_at_160_columns(tmp_path, monkeypatch) -> None:
    """Nothing is cut off: the baseline and both experiments have their beta, DPO's hit rate, and both verdicts."""
    (tmp_path / "scored").mkdir()
    keys = metric_keys(tmp_path / "scored", monkeypatch)
    assert all(0 < sum(map(len, sections.values())) <= 8 for sections in keys.values())
    clone = stand_in(tmp_path / "clone")
    with_metrics(clone, keys, tmp_path / "programs")
    clone("dvc", "repro", "--force", "--single-item", "prepare", "sft", "dpo", "score")
    clone.commit("baseline")
    for beta in BETAS:
        clone("dvc", "exp", "run", "--set-param", f"dpo.beta={beta}")
    [command] = re.findall(r"^(dvc exp show [^#\n]+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    clone.environment["COLUMNS"] = str(WIDTH)
    table = clone(*shlex.split(command), "--no-pager")
    assert max(map(len, table.splitlines())) <= WIDTH and "…" not in table
    header, *rows = [line.split() for line in table.splitlines() if line.strip(" ─")]
    assert {"Experiment", "dpo.beta", "dpo.hit_rate", "dpo_vs_sft.equal_length_verdict", "dpo_vs_sft.verdict"} <= set(header), (
        table
    )
    assert len(header) <= 8
    assert sorted(row[-1] for row in rows) == ["0.05", "0.1", "0.2"] and header[-1] == "dpo.beta", table
    assert table.count(VERDICT) == 2 * len(rows)
    assert json.loads((clone.folder / "metrics/dpo.json").read_text())["dpo"].keys() == set(dpo.HEADLINE["dpo"])
