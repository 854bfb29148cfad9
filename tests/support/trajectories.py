"""Training runs of some twenty steps, committed: a test that differs from them has found a change of the training itself.

When such a change is meant (another version of torch, transformers, trl or peft, say), write the file anew and look at its diff:

    REGENERATE_TRAJECTORIES=1 python -m pytest tests/test_sft.py tests/test_dpo.py -k trajectory
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
    """Every parameter that the curve of a stage depends on, so that tuning params.yaml moves none."""
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
    """Fails where a run leaves the committed one by more than a ten-thousandth; see above for how to write it anew."""
    found = points(log_history)
    committed = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if os.environ.get("REGENERATE_TRAJECTORIES"):
        text = json.dumps({**committed, name: found}, indent=2, sort_keys=True)
        FILE.write_text(text + "\n", encoding="utf-8", newline="\n")
    else:
        assert found == {key: pytest.approx(values, rel=TOLERANCE) for key, values in committed[name].items()}
