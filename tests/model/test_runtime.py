"""The process that a model runs in: switches that libraries read when they load are set before torch loads."""

import os
import subprocess
import sys

import pytest
from support.workspace import REPOSITORY

from aligner.model import runtime

# Stops a stage where it sets the environment, and says whether torch has been loaded by then.
PROBE = """
import sys
from types import SimpleNamespace
from aligner.model import runtime
def stop():
    raise SystemExit("torch" in sys.modules or "numpy" in sys.modules)
runtime.set_environment = stop
import {stage}
{stage}.main(SimpleNamespace(note=lambda **fields: None), *{arguments})
"""
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_CBWR", "CI")


@pytest.mark.parametrize(("stage", "arguments"), [("sft", []), ("dpo", []), ("generate", ["base"])])
def test_runtime_is_set_before_torch_loads(stage, arguments):
    code = PROBE.format(stage=stage, arguments=arguments)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_runtime_environment_keeps_what_the_user_has_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    runtime.set_environment()
    kept = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    assert kept == {"OMP_WAIT_POLICY": "ACTIVE", "MKL_CBWR": "AUTO", "CI": "1"}
    assert (os.environ["TOKENIZERS_PARALLELISM"], os.environ["HF_HUB_DISABLE_TELEMETRY"]) == ("false", "1")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    runtime.set_environment()
    assert os.environ["GOMP_SPINCOUNT"] == "30000" and "OMP_WAIT_POLICY" not in os.environ
