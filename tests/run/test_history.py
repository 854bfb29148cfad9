"""src/runs.py: the table of recorded runs and the differences of two."""

from __future__ import annotations

import argparse
import io
import json

import pytest

import runs
from aligner.run import history
from aligner.run.errors import InputError
from aligner.run.record import Run


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    names = []
    for beta, state in ((0.1, "completed"), (0.2, "failed")):
        run = Run("dpo")
        run.note(params={"dpo": {"beta": beta}}, metrics={"dpo": {"validation_loss": 0.5 + beta}}, seed=17)
        run.finish(state, "out of memory" if state == "failed" else None)
        names.append(run.path.stem)
    Run("sft").finish("completed")
    (tmp_path / "experiments" / "broken.json").write_text("{")
    return names


def shown(**changes) -> list[str]:
    out = io.StringIO()
    runs.main(argparse.Namespace(**{"stage": None, "last": 0, "diff": None, **changes}), out)
    return out.getvalue().splitlines()


def test_the_table_has_a_line_for_each_run_with_its_end(records):
    header, *lines = shown()
    assert header.split()[:2] == ["id", "stage"] and len(lines) == 3
    first = next(line for line in lines if records[0] in line)
    assert "beta 0.1" in first and "validation_loss 0.6" in first and first.endswith("completed")
    assert any(line.endswith("failed: out of memory") for line in lines)
    assert len(shown(stage="sft")) == 2 and len(shown(last=1)) == 2


def test_diff_shows_what_differs_and_nothing_else(records):
    text = "\n".join(shown(diff=records))
    assert "params.dpo.beta" in text and "0.2" in text and "reason" in text
    assert "seed" not in text and "started" not in text and "versions" not in text


def test_a_stage_alone_is_its_newest_run_and_an_unknown_name_an_error(records):
    found = history.read_all()
    assert history.find(found, "dpo")["params"]["dpo"]["beta"] == 0.2
    with pytest.raises(InputError, match="no run is called 'kto'"):
        history.find(found, "kto")


def test_without_records_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="dvc repro"):
        shown()


def test_a_record_is_json_of_one_object(records):
    assert json.loads((history.FOLDER / f"{records[0]}.json").read_text())["stage"] == "dpo"
