"""Where a training reports while it runs: REPORT_TO=tensorboard dvc repro (or wandb, mlflow, dvclive). By default nowhere.

An environment variable and not a parameter, since no output depends on it and a change should rerun nothing. The integrations are
transformers' own; they get the training figures and the held-out measures. Files are in experiments/: those of TensorBoard,
DVCLive and wandb (WANDB_DIR) beside the run's record, MLflow's in mlflow.db (MLFLOW_TRACKING_URI). wandb sends to its service
unless WANDB_MODE=offline.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from aligner.run.errors import InputError

VARIABLE = "REPORT_TO"
# What to install for each. The whole of mlflow asks for older versions of pinned packages: pip would go back to MLflow 1.27.
PACKAGES = {
    "none": "",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow-skinny sqlalchemy alembic",
    "dvclive": "dvclive",
}


def chosen() -> str:
    """The value of REPORT_TO; InputError for an unknown name or a package that is not installed."""
    name = os.environ.get(VARIABLE) or "none"
    if name not in PACKAGES:
        raise InputError(f"{VARIABLE} is {name!r}; known are {', '.join(PACKAGES)}")
    if PACKAGES[name] and importlib.util.find_spec(name) is None:
        raise InputError(f"{VARIABLE}={name} needs a package. Run: pip install --constraint requirements.txt {PACKAGES[name]}")
    return name


def attach(trainer, folder: Path) -> None:
    """Adds the chosen integration to a trainer. folder: for the files of those that write some."""
    name = chosen()
    if name != "none":
        trainer.add_callback(callback(name, folder))


def callback(name: str, folder: Path) -> Any:
    """transformers' callback of this name; files go to `folder`."""
    from transformers import integrations

    if name == "dvclive":
        from dvclive import Live

        return integrations.DVCLiveCallback(live=Live(str(folder), dvcyaml=None, save_dvc_exp=False, report=None))
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return integrations.TensorBoardCallback(SummaryWriter(str(folder)))
    if name == "wandb":
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DIR", str(folder.absolute()))
        return integrations.WandbCallback()
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent.absolute() / 'mlflow.db'}")
    return integrations.MLflowCallback()
