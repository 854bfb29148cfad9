"""Committed training runs of some twenty steps: a test that differs from them shows that training itself has changed.

If the change is intended (a new version of torch, transformers, trl or peft, say), rewrite the file and check its diff:

    REGENERATE_TRAJECTORIES=1 python -m pytest tests/stages/test_sft.py tests/stages/test_dpo.py -k trajectory
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "golden" / "trajectories.json"
TOLERANCE = 1e-4


def settings(stage: str) -> dict[str, Any]:
    """All parameters that a stage's curve depends on, so a change of params.yaml does not change it."""
    schedule = {"num_train_epochs": 2, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "weight_decay": 0.01}
    rest = {"max_grad_norm": 1, "logging_steps": 1, "eval_steps": 1000}
    hardware = {"learning_rate": 0.01, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    return {
        "seed": 17,
        **{f"{stage}.{key}": value for key, value in {**schedule, **rest}.items()},
        **{f"models.mini.{stage}.{key}": value for key, value in hardware.items()},
    }


def points(log_history: list[dict[str, float]]) -> dict[str, list[float]]:
    """Loss and gradient norm of every logged step of a trainer."""
    logged = [entry for entry in log_history if "grad_norm" in entry]
    return {key: [float(f"{entry[key]:.7g}") for entry in logged] for key in ("loss", "grad_norm")}


def check(name: str, log_history: list[dict[str, float]]) -> None:
    """Fails if a run differs from the committed one by more than TOLERANCE; the module's docstring says how to rewrite it."""
    found = points(log_history)
    committed = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if os.environ.get("REGENERATE_TRAJECTORIES"):
        text = json.dumps({**committed, name: found}, indent=2, sort_keys=True)
        FILE.write_text(text + "\n", encoding="utf-8", newline="\n")
    else:
        assert found == {key: pytest.approx(values, rel=TOLERANCE) for key, values in committed[name].items()}
