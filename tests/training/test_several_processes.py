"""Training on several processes: the losses of one process, the death of any rank, checkpoints, and who writes what."""

import json
import os
import shutil
import signal
import sys
import time

import pytest
from support import killed, several
from support.workspace import Params

STAGES = ("sft", "dpo")
TOLERANCE = 1.1e-5  # 1e-5, and the last of the six digits that a curve has
# All of them start two or three processes again and again, for some ten minutes on two cores; `make test-all` runs three.
ASKED_FOR = "SEVERAL_PROCESSES"
if_asked = pytest.mark.skipif(ASKED_FOR not in os.environ, reason=f"takes minutes; to run it: {ASKED_FOR}=1")
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
@pytest.mark.parametrize(
    ("shard", "padding_free"),
    [(False, True), (True, False), pytest.param(False, False, marks=if_asked), pytest.param(True, True, marks=if_asked)],
    ids=["whole, unpadded", "sharded, padded", "whole, padded", "sharded, unpadded"],
)
def test_two_processes_have_the_losses_of_one(one, tmp_path, shard, padding_free):
    two = trained(several.prepared("plain"), tmp_path / "run", processes=2, shard=shard, padding_free=padding_free)
    for stage in STAGES:
        (record,) = (json.loads(path.read_text()) for path in (two / "experiments").glob(f"{stage}-*.json"))  # rank 0's alone
        assert record["processes"] == 2 and record["state"] == "completed"
        assert "2 processes, each with a part of the base" in several.said(two) or not shard
        difference = several.largest_difference(one, two, stage)
        print(stage, difference)
        assert difference <= TOLERANCE
        left, right = (json.loads((folder / f"metrics/{stage}.json").read_text())[stage] for folder in (one, two))
        assert right == {
            name: pytest.approx(value, abs=2e-3) if isinstance(value, float) else value for name, value in left.items()
        }


# ---- The death of a rank --------------------------------------------------------------------------------------------


def killed_at_a_step(source, folder, rank, signum, stage="sft", **changes):
    """Starts a run on three processes, sends one of them a signal after two checkpoints, and returns the exit code of the run."""
    copy(source, folder, **{"processes": 3, **changes})
    process = several.start(folder, stage, pause=0.02)
    several.wait_until(lambda: len(several.steps_of(folder, stage)) == 2, process)
    ranks = several.processes_of(folder)
    assert sorted(ranks) == list(range(Params(folder / "params.yaml", folder / "params.yaml")["models.mini.processes"]))
    os.kill(ranks[rank], signum)
    code = process.wait(120)
    deadline = time.monotonic() + 20  # init may take a moment to collect what it inherited
    while several.processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return code


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=if_asked), pytest.param(2, marks=if_asked)])
def test_a_killed_rank_ends_the_stage_and_leaves_no_process(tmp_path, rank):
    folder = tmp_path / "run"
    code = killed_at_a_step(several.prepared("plain"), folder, rank, signal.SIGKILL)
    assert several.processes_of(folder) == {}
    if rank == 0:
        assert code == -signal.SIGKILL
        return
    message = f"sft: process {rank} of 3 (RANK={rank}) was killed by SIGKILL, and the others were stopped. Resume: dvc repro"
    last = several.last_line(folder)
    assert code == 1 and last == message and "Traceback" not in several.said(folder)
    (record,) = (json.loads(path.read_text()) for path in (folder / "experiments").glob("sft-*.json"))
    assert record["state"] == "failed" and f"process {rank} of 3" in record["reason"]


@if_asked
@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_of_any_rank_saves_the_step(tmp_path, rank):
    folder = tmp_path / "run"
    code = killed_at_a_step(several.prepared("plain"), folder, rank, signal.SIGTERM, processes=2)
    last = several.last_line(folder)
    assert code == 130 and several.processes_of(folder) == {}
    assert last.startswith("sft: interrupted; step ") and "is saved. Resume: dvc repro" in last


# ---- Resuming -------------------------------------------------------------------------------------------------------


@if_asked
@needs_linux
@if_asked
@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_resumes_to_the_same_bytes_and_on_another_number_to_the_same_losses(one, tmp_path, stage):
    whole, same, other = tmp_path / "whole", tmp_path / "same", tmp_path / "other"
    source = one if stage == "dpo" else several.prepared("plain")
    copy(source, whole, processes=2)
    forget(whole, stage)
    several.run(whole, stage)
    shutil.copytree(source, tmp_path / "source")
    forget(tmp_path / "source", stage)
    assert killed_at_a_step(tmp_path / "source", same, 0, signal.SIGKILL, stage, processes=2) == -9
    shutil.copytree(same, other)
    finish(same, stage)
    assert killed.outputs(same, stage) == killed.outputs(whole, stage)
    Params(other / "params.yaml", other / "params.yaml")["models.mini.processes"] = 1
    finish(other, stage)
    assert several.largest_difference(whole, other, stage) <= TOLERANCE


def forget(folder, stage):
    """Removes a stage's outputs and all records."""
    shutil.rmtree(folder / "experiments", ignore_errors=True)
    shutil.rmtree(folder / "models" / stage, ignore_errors=True)


def finish(folder, stage):
    assert several.start(folder, stage, pause=0).wait(300) == 0, several.said(folder)
    assert f"{stage}: resumes after step" in several.said(folder)


@if_asked
@needs_linux
@if_asked
@pytest.mark.slow
def test_with_dropout_another_number_of_processes_is_refused(tmp_path):
    folder = tmp_path / "run"
    killed_at_a_step(several.prepared("plain"), folder, 0, signal.SIGKILL, processes=2, **{"lora.lora_dropout": 0.2})
    Params(folder / "params.yaml", folder / "params.yaml")["models.mini.processes"] = 1
    assert several.start(folder, "sft", pause=0).wait(300) == 1
    last = several.last_line(folder)
    assert "is a checkpoint of 2 processes, and with dropout 1 would train otherwise" in last
    assert "Set models.<name>.processes to 2, or begin anew: rm -r" in last
