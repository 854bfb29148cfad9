"""REPORT_TO: none by default, a clear line for what is missing, and transformers' own callbacks."""

from __future__ import annotations

import os

import pytest

from aligner.run.errors import InputError
from aligner.training import reporting
from aligner.training.loop import write_curves


def test_nothing_is_reported_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv(reporting.VARIABLE, raising=False)
    reporting.attach(None, tmp_path)  # touches no trainer
    assert reporting.chosen() == "none"


def test_an_unknown_name_or_missing_package_is_one_line(monkeypatch):
    monkeypatch.setenv(reporting.VARIABLE, "tensorbord")
    with pytest.raises(InputError, match="known are none, tensorboard, wandb, mlflow, dvclive"):
        reporting.chosen()
    monkeypatch.setenv(reporting.VARIABLE, "wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install .* wandb"):
        reporting.chosen()
    monkeypatch.setenv(reporting.VARIABLE, "mlflow")
    with pytest.raises(InputError, match="pip install .* mlflow-skinny sqlalchemy alembic"):
        reporting.chosen()


@pytest.mark.parametrize(
    ("name", "integration", "variable"),
    [("wandb", "WandbCallback", "WANDB_DIR"), ("mlflow", "MLflowCallback", "MLFLOW_TRACKING_URI")],
)
def test_files_are_in_experiments_unless_a_variable_names_another_place(name, integration, variable, tmp_path, monkeypatch):
    from transformers import integrations

    monkeypatch.setattr(integrations, integration, lambda: None)
    monkeypatch.setenv(variable, "")  # so that it is restored
    monkeypatch.delenv(variable)
    reporting.callback(name, tmp_path / "experiments/sft-1")
    assert str(tmp_path / "experiments") in os.environ[variable]
    monkeypatch.setenv(variable, "elsewhere")
    reporting.callback(name, tmp_path / "experiments/sft-1")
    assert os.environ[variable] == "elsewhere"


def test_curves_can_be_watched_while_they_grow(tmp_path):
    log = [{"step": 0, "validation_loss": 2.0}]
    path, series = tmp_path / "curve.csv", {"loss": "training", "validation_loss": "held out"}
    write_curves(log, {path: series})
    assert path.read_text() == "step,series,value\n0,held out,2.0\n"
    write_curves([*log, {"step": 1, "loss": 1.5}], {path: series})
    assert path.read_text() == "step,series,value\n1,training,1.5\n0,held out,2.0\n"
