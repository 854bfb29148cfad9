"""Where a training reports while it runs: REPORT_TO=tensorboard dvc repro (or wandb, mlflow, dvclive). By default nowhere.

An environment variable and not a parameter, since no output depends on it and a change should rerun nothing. The integrations are
transformers' own; they get the training figures and the held-out measures. TensorBoard's and DVCLive's files are beside the run's
record in experiments/.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from aligner.run.errors import InputError

VARIABLE = "REPORT_TO"
PACKAGES = {"none": None, "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "dvclive": "dvclive"}


def chosen() -> str:
    """The value of REPORT_TO; InputError for an unknown name or a package that is not installed."""
    name = os.environ.get(VARIABLE) or "none"
    if name not in PACKAGES:
        raise InputError(f"{VARIABLE} is {name!r}; known are {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    if package and importlib.util.find_spec(package) is None:
        raise InputError(f"{VARIABLE}={name} needs a package. Run: pip install --constraint requirements.txt {package}")
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
    return {"wandb": integrations.WandbCallback, "mlflow": integrations.MLflowCallback}[name]()
