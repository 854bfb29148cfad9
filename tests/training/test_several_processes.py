"""Training on several processes: the losses of one process, the death of any rank, checkpoints, and who writes what."""

import json
import os
import shutil
import signal
import sys

import pytest
from ruamel.yaml import YAML
from support import killed, several
from support.workspace import Params

STAGES = ("sft", "dpo")
TOLERANCE = 1.1e-5  # 1e-5, and the last of the six digits that a curve has
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")


def copy(source, folder, **changes):
    """A copy of a workspace with changed parameters; keys without a dot are those of the model's entry."""
    shutil.copytree(source, folder)
    values = {key if "." in key else f"models.mini.{key}": value for key, value in changes.items()}
    Params(folder / "params.yaml", folder / "params.yaml").update(values)
    return folder


def trained(source, folder, **changes):
    copy(source, folder, **changes)
    for stage in STAGES:
        several.run(folder, stage)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A workspace in which both stages trained on one process."""
    return trained(several.prepared("plain"), tmp_path_factory.mktemp("one") / "run", processes=1)


# ---- The same losses ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("padding_free", [True, False], ids=["unpadded", "padded"])
def test_two_processes_have_the_losses_of_one(one, tmp_path, shard, padding_free):
    two = trained(several.prepared("plain"), tmp_path / "run", processes=2, shard=shard, padding_free=padding_free)
    for stage in STAGES:
        difference = several.largest_difference(one, two, stage)
        print(stage, difference)
        assert difference <= TOLERANCE
        left, right = (json.loads((folder / f"metrics/{stage}.json").read_text())[stage] for folder in (one, two))
        assert right == {name: pytest.approx(value, abs=2e-3) if isinstance(value, float) else value for name, value in left.items()}
