"""Checkpoints: a killed training resumes and ends with the same bytes; damage, locks, and old and foreign checkpoints."""

import csv
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML
from support import killed, shelf
from support.workspace import REPOSITORY, Workspace

from aligner.run.errors import InputError
from aligner.run.params import Dpo, StageParams
from aligner.run.stage import RESTORE
from aligner.training import checkpoints

STAGES = ("sft", "dpo")
METHODS = ("kto", "orpo", "reward", "grpo")
FULL_DISK = OSError(28, "No space left on device")
KILLS = dict.fromkeys(STAGES, 10) | dict.fromkeys(METHODS, 2)


@pytest.fixture(scope="module")
def whole():
    """A folder in which all of them ran to their end without interruption: the bytes to compare with."""
    return shelf.built("trained", run_to_the_end)


def run_to_the_end(folder):
    killed.prepare(folder)
    for stage in (*STAGES, "unpaired", *METHODS):
        assert killed.finish(killed.start(stage, folder, seconds=1000)) == 0, said(folder)


@pytest.fixture
def again(whole, tmp_path):
    """Makes a copy of that folder, without the outputs of a stage."""

    def copy(stage):
        folder = tmp_path / f"{stage} again"
        shutil.copytree(whole, folder)
        for name in killed.outputs(folder, stage):
            (folder / name).unlink()
        shutil.rmtree(folder / "experiments")
        return folder

    return copy


def said(folder):
    return (folder / "said.txt").read_text(encoding="utf-8")


def steps_of(folder, stage):
    """The steps of the intact checkpoints of the run in `folder`."""
    run = killed.run_folder(folder, stage)
    return (
        [checkpoints.step_of(path) for path in checkpoints.finished_checkpoints(run) if checkpoints.find_damage(path) is None]
        if run
        else []
    )


def stop(stage, folder, signum=signal.SIGTERM):
    """Starts a stage, sends a signal once it has two checkpoints, and returns its exit code."""
    process = killed.start(stage, folder, slowly=0.01)
    killed.wait_for(lambda: len(steps_of(folder, stage)) == 2, process)
    os.kill(process.pid, signum)
    return killed.finish(process)


# ---- The same bytes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", KILLS)
def test_a_stage_that_is_killed_again_and_again_ends_with_the_same_bytes(whole, again, stage):
    folder, times = again(stage), KILLS[stage]
    kills = killed.kill_and_rerun(stage, folder, times, killed.steps_of_curve(whole, stage))
    print(kills)
    assert sum(kill["while writing"] for kill in kills) >= times // 2
    steps = [kill["saved step"] for kill in kills]
    assert steps == sorted(steps) and steps[-1] >= steps[0] + times
    assert killed.outputs(folder, stage) == killed.outputs(whole, stage)
    assert steps_of(folder, stage) == [] and killed.run_folder(folder, stage) is None


@pytest.mark.slow
def test_what_is_resumed_is_hard_to_resume(whole):
    """It has dropout, an epoch that ends in the middle, interruptions between two lines of the log, and a model that learns."""
    (record,) = (json.loads(path.read_text()) for path in (whole / "experiments").glob("sft-*.json"))
    assert record["params"]["lora"]["lora_dropout"] > 0 and record["earlier_steps"] == 0
    assert record["params"]["sft"]["train_sampling_strategy"] == "batch_rebalance"
    with (whole / "plots/sft.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["series"] == "training"]
    assert {int(row["step"]) % 3 for row in rows} == {0} and len(rows) > 10
    assert float(rows[-1]["value"]) < float(rows[0]["value"]) - 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sft", {"sft.train_sampling_strategy": "random"}),
        ("sft", {"lora.lora_dropout": 0}),
        ("sft", {"models.mini.sft.per_device_train_batch_size": 2}),
        ("dpo", {"dpo.loss_type": "ipo"}),
        ("kto", {"kto.undesirable_weight": 0.5}),
        ("orpo", {"orpo.beta": 0.5}),
        ("reward", {"reward.center_rewards_coefficient": 0.5}),
        ("grpo", {"grpo.temperature": 1.5}),
    ],
)
def test_a_run_goes_on_from_any_step(whole, tmp_path, monkeypatch, stage, changes):
    """Within an epoch, at its end, at a line of the log, between two lines, and before the last step."""
    workspace = Workspace.reopen(shutil.copytree(whole, tmp_path / "run"), monkeypatch)
    workspace.params.update(changes)
    workspace.run(stage)
    uninterrupted = killed.outputs(workspace.folder, stage)
    assert uninterrupted != killed.outputs(whole, stage)
    every_step(monkeypatch)
    write, earlier = checkpoints.write, 0
    for stop in (1, 2, 3, 4, 13, "last"):

        def write_and_stop(trainer, path, stop=stop):
            write(trainer, path)
            if trainer.state.global_step == (trainer.state.max_steps - 1 if stop == "last" else stop):
                raise SystemError("power cut")

        with monkeypatch.context() as patch, pytest.raises(SystemError, match="power cut"):
            patch.setattr(checkpoints, "write", write_and_stop)
            workspace.run(stage)
        earlier, before = steps_of(workspace.folder, stage)[-1], earlier
        assert earlier > before and stop in (earlier, "last")
    assert workspace.run(stage).fields["earlier_steps"] == earlier
    assert killed.outputs(workspace.folder, stage) == uninterrupted


def every_step(monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)


# ---- Interruptions --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "signum"), [("sft", signal.SIGTERM), ("dpo", signal.SIGINT)])
def test_sigterm_and_ctrl_c_save_the_step_and_say_how_to_go_on(whole, again, stage, signum):
    folder = again(stage)
    assert stop(stage, folder, signum) == 130
    *_, noticed, last = said(folder).splitlines()
    step, steps = steps_of(folder, stage)[-1], killed.steps_of_curve(whole, stage)
    assert noticed == f"{stage}: finishing and saving this step; interrupt again to stop at once"
    assert last == f"{stage}: interrupted; step {step} of {steps} is saved. Resume: dvc repro   (or undo: {RESTORE})"
    (record,) = (json.loads(path.read_text()) for path in (folder / "experiments").iterdir())
    assert (record["state"], record["reason"]) == ("interrupted", f"step {step} of {steps} is saved")
    assert killed.finish(killed.start(stage, folder)) == 0
    assert f"{stage}: resumes after step {step}" in said(folder)
    assert killed.outputs(folder, stage) == killed.outputs(whole, stage)


# ---- Damage ---------------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])


def empty(path):
    path.write_bytes(b"")


def zero(path):
    path.write_bytes(bytes(len(path.read_bytes())))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {"truncated": truncate, "no bytes": empty, "zeros": zero, "a flipped bit": flip, "missing": Path.unlink}
FILES = {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "progress.json"}
FILES |= {"adapter_config.json", "provenance.json", "SHA256SUMS"}


@pytest.fixture(scope="module")
def stopped():
    """A folder in which sft was stopped after a few steps."""
    return shelf.built("stopped", run_a_few_steps)


def run_a_few_steps(folder):
    killed.prepare(folder)
    assert stop("sft", folder) == 130, said(folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_every_file_is_seen(stopped, tmp_path, damage):
    newest = checkpoints.finished_checkpoints(killed.run_folder(stopped, "sft"))[-1]
    assert {path.name for path in newest.iterdir()} == FILES and checkpoints.find_damage(newest) is None
    for name in sorted(FILES):
        copy = shutil.copytree(newest, tmp_path / name / newest.name)
        DAMAGES[damage](copy / name)
        assert (problem := checkpoints.find_damage(copy)) is not None, f"{name}, {damage}"
        assert name in problem or name == "SHA256SUMS"


def test_sums_must_be_those_of_every_file(stopped, tmp_path):
    copy = shutil.copytree(checkpoints.finished_checkpoints(killed.run_folder(stopped, "sft"))[-1], tmp_path / "step-1")
    lines = (copy / "SHA256SUMS").read_text().splitlines(keepends=True)
    (copy / "SHA256SUMS").write_text("".join(lines[:-1]))
    assert checkpoints.find_damage(copy) == "trainer_state.json does not hold the bytes that were written"


def test_sums_of_nothing_are_no_checkpoint(tmp_path):
    (tmp_path / "SHA256SUMS").write_bytes(b"")
    assert checkpoints.find_damage(tmp_path) == "progress.json is missing"


def test_sums_are_those_of_sha256sum(stopped):
    newest = checkpoints.finished_checkpoints(killed.run_folder(stopped, "sft"))[-1]
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=newest).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*DAMAGES, "both"])
def test_the_checkpoint_before_a_damaged_one_is_taken(whole, stopped, tmp_path, damage):
    folder = shutil.copytree(stopped, tmp_path / "run")
    before, newest = checkpoints.finished_checkpoints(killed.run_folder(folder, "sft"))
    for path in (before, newest) if damage == "both" else (newest,):
        DAMAGES.get(damage, flip)(path / "optimizer.pt")
    assert killed.finish(killed.start("sft", folder, seconds=1000)) == 0
    assert f"{newest.name} is damaged (optimizer.pt" in said(folder)
    assert ("resumes after" in said(folder)) == (damage != "both")
    assert (f"resumes after step {checkpoints.step_of(before)}, " in said(folder)) == (damage != "both")
    assert killed.outputs(folder, "sft") == killed.outputs(whole, "sft")


def test_no_pickle_of_a_checkpoint_can_run_code(stopped, tmp_path):
    """Whoever can write a checkpoint and its sums still cannot run code."""
    import pickle
    import zipfile

    folder = shutil.copytree(stopped, tmp_path / "run")
    newest = checkpoints.finished_checkpoints(killed.run_folder(folder, "sft"))[-1]

    class Bomb:
        def __reduce__(self):
            return os.mkdir, ("exploded",)

    with zipfile.ZipFile(newest / "optimizer.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(), protocol=2))
        archive.writestr("archive/version", "3\n")
    sums = "".join(f"{checkpoints.sha256(path)}  {path.name}\n" for path in sorted(newest.iterdir()) if path.name != "SHA256SUMS")
    (newest / "SHA256SUMS").write_text(sums)
    assert checkpoints.find_damage(newest) is None
    assert killed.finish(killed.start("sft", folder)) == 1
    assert "Weights only load failed" in said(folder) and not (folder / "exploded").exists()


# ---- A full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_message_and_the_last_checkpoint_stays(whole, tmp_path, monkeypatch, stage):
    folder = shutil.copytree(whole, tmp_path / "run")
    workspace = Workspace.reopen(folder, monkeypatch)
    every_step(monkeypatch)
    sync = checkpoints.sync

    def full_at_step_5(path):
        if path.name == "step-5.unfinished":
            raise FULL_DISK
        sync(path)

    with monkeypatch.context() as patch, pytest.raises(InputError) as error:
        patch.setattr(checkpoints, "sync", full_at_step_5)
        workspace.run(stage)
    path = killed.run_folder(folder, stage).relative_to(folder) / "step-5"
    assert str(error.value) == (
        f"checkpoint {path} could not be written (No space left on device); the checkpoint of step 4 is kept. "
        "Free some space, then: dvc repro"
    )
    assert killed.checkpoint_names(folder, stage) == {"step-3", "step-4"} and steps_of(folder, stage) == [3, 4]
    workspace.run(stage)
    assert killed.outputs(folder, stage) == killed.outputs(whole, stage)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [8_000, 40_000])
def test_a_write_that_the_system_refuses_is_one_message(again, largest):
    """With a limit on file sizes, safetensors and torch raise errors that are not OSError."""
    folder = again("sft")
    assert killed.finish(killed.start("sft", folder, largest=largest)) == 1
    assert "could not be written (" in said(folder) and "there is no earlier one. Free some space" in said(folder)
    assert "Traceback" not in said(folder) and killed.checkpoint_names(folder, "sft") == set()


# ---- Locks ----------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from aligner.training import checkpoints
with checkpoints.alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A lock, and the process that holds it."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run.lock")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield tmp_path / "run.lock", process
        process.kill()


def test_a_lock_tells_who_holds_it(holder, monkeypatch):
    lock, process = holder
    monkeypatch.setattr(checkpoints, "LOCK_TIMEOUT", 0.1)
    with pytest.raises(InputError) as error, checkpoints.alone(lock):
        pass
    assert f"is training this stage: pid {process.pid} on {platform.node()}, since 20" in str(error.value)
    assert "dvc repro" in str(error.value)


def test_the_lock_of_a_killed_process_is_taken_over(holder):
    lock, process = holder
    process.kill()
    process.wait()
    assert lock.exists() and f"pid {process.pid} " in lock.with_suffix(".holder").read_text()
    with checkpoints.alone(lock):
        assert f"pid {os.getpid()} " in lock.with_suffix(".holder").read_text()
    assert not lock.exists() and not lock.with_suffix(".holder").exists()


def test_a_lock_is_given_back_whatever_happens(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), checkpoints.alone(tmp_path / "run.lock"):
            raise ZeroDivisionError


@pytest.mark.slow
def test_a_second_trainer_of_the_stage_is_kept_out_whatever_its_parameters(again):
    folder = again("sft")
    first = killed.start("sft", folder, slowly=0.05)
    killed.wait_for(lambda: killed.checkpoint_names(folder, "sft"), first)
    os.kill(first.pid, signal.SIGSTOP)
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("weight_decay: 0.01", "weight_decay: 0.2"))
    assert killed.finish(killed.start("sft", folder)) == 1
    assert f"sft: another process is training this stage: pid {first.pid} on " in said(folder)
    first.kill()
    first.join()
    assert killed.finish(killed.start("sft", folder)) == 0 and "resumes" not in said(folder)


# ---- The identity of a run ------------------------------------------------------------------------------------------------


def test_whatever_determines_a_run_is_in_its_fingerprint(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("1")
    Path("adapter").mkdir()
    Path("adapter/weights").write_text("2")
    shutil.copytree(REPOSITORY / "src", "src", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(checkpoints, "SOURCE", tmp_path / "src")

    def now(stage="sft", names=("rows.jsonl", "adapter"), beta=0.1):
        params = StageParams.model_construct(dpo=Dpo.model_construct(beta=beta), seed=17)
        return checkpoints.run_fingerprint(stage, [Path(name) for name in names], params=params)

    found = [now(), now("dpo"), now(names=["rows.jsonl"]), now(beta=0.2), now(beta="0.1")]
    for path in ("rows.jsonl", "adapter/weights", "src/sft.py", "src/aligner/training/loop.py", "src/aligner/model/chat.py"):
        Path(path).write_text(Path(path).read_text(encoding="utf-8") + "\n", encoding="utf-8")
        found.append(now())
    Path("adapter/weights").rename("adapter/weights.bin")
    found.append(now())
    for target, name, value in (
        (checkpoints, "installed", lambda names: {"torch": "2.14.0"}),
        (platform, "python_version", lambda: "3.14.0"),
        (platform, "machine", lambda: "arm64"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "of tomorrow"),
        (torch.cuda, "device_count", lambda: 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            patch.setattr(torch.cuda, "get_device_name", lambda index: "some GPU")
            found.append(now())
    assert len(set(found)) == len(found)
    assert now() == now() == found[10]
    for path in ("src/aligner/report/page.py", "src/dpo.py", "src/aligner/run/imports.py"):  # sft's outputs depend on none
        Path(path).write_text(Path(path).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert now() == found[10]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_its_run_by_parameters_data_base_and_adapter(whole, tmp_path, monkeypatch, stage):
    """The folder in which it runs does not matter."""
    names = [name_of_run(whole, tmp_path / "same", monkeypatch, stage), name_of_run(whole, tmp_path / "else", monkeypatch, stage)]
    assert names[0] == names[1]

    def edited(path):
        return lambda workspace: (workspace.folder / path).write_bytes(b" " + (workspace.folder / path).read_bytes())

    changes = [lambda workspace: workspace.params.update({f"{stage}.max_grad_norm": 0.5})]
    changes += [lambda workspace: workspace.params.update({"models.mini.threads": 2})]
    changes += [edited(f"data/prepared/{stage}_train.jsonl"), edited(f"data/prepared/{stage}_validation.jsonl")]
    changes += [edited("models/sft/adapter_config.json")] if stage == "dpo" else [edited("models/base/weights/config.json")]
    for number, change in enumerate(changes):
        with pytest.MonkeyPatch.context() as patch:
            names.append(name_of_run(whole, tmp_path / str(number), patch, stage, change))
    assert len(set(names)) == len(changes) + 1
    with pytest.MonkeyPatch.context() as patch:
        other = name_of_run(whole, tmp_path / "irrelevant", patch, stage, lambda w: w.params.update({"generate.top_p": 0.5}))
    assert other == names[0]


class Named(Exception):
    """Carries the name of a run out of a stage before training."""


def name_of_run(whole, folder, monkeypatch, stage, change=lambda workspace: None):
    def keep(stage, run):
        raise Named(run)

    workspace = Workspace.reopen(shutil.copytree(whole, folder), monkeypatch)
    change(workspace)
    monkeypatch.setattr(checkpoints, "locked", keep)
    with pytest.raises(Named) as named:
        workspace.run(stage)
    return str(named.value)


# ---- What is kept and what is deleted ---------------------------------------------------------------------------------------


def runs(folder, ages):
    """Makes folders of runs whose last checkpoint has the given age in days."""
    for name, days in ages.items():
        (folder / name / "step-1").mkdir(parents=True)
        os.utime(folder / name, (time.time() - days * 86400,) * 2)


def test_the_newest_runs_of_two_weeks_stay(tmp_path):
    runs(tmp_path, {"a": 1, "b": 13, "c": 15, "d": 0, "e": 2, "f": 3, "own": 99})
    (tmp_path / "own/step-7.unfinished").mkdir()
    checkpoints.clean_up(tmp_path / "own")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "d", "e", "f", "own"}
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["step-1"]
    runs(tmp_path / "few", {"b": 13, "c": 15})
    checkpoints.clean_up(tmp_path / "few/own")
    assert {path.name for path in (tmp_path / "few").iterdir()} == {"b"}


def test_a_run_that_somebody_trains_stays_however_old(holder, monkeypatch):
    lock, process = holder
    monkeypatch.setattr(checkpoints, "LOCK_TIMEOUT", 0.1)
    runs(lock.parent, {"run": 99, "other": 99})
    checkpoints.clean_up(lock.parent / "own")
    assert lock.with_suffix("").is_dir() and not (lock.parent / "other").exists()
    process.kill()
    process.wait()
    checkpoints.clean_up(lock.parent / "own")
    assert not lock.with_suffix("").exists()


def test_checkpoints_go_when_the_outputs_are_written_and_stay_otherwise(tmp_path, monkeypatch):
    """In the main checkout, even for an experiment that DVC runs in a copy."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    folder = tmp_path / "main/.cache/checkpoints/sft/name"
    with pytest.raises(ZeroDivisionError), checkpoints.locked("sft", "name") as kept:
        assert kept.folder == folder
        (folder / "step-1").mkdir(parents=True)
        raise ZeroDivisionError
    assert (folder / "step-1").is_dir()
    with checkpoints.locked("sft", "name"):
        pass
    assert not folder.exists() and list(folder.parent.iterdir()) == []


def test_two_checkpoints_are_kept(stopped):
    assert len(steps_of(stopped, "sft")) == checkpoints.KEPT_CHECKPOINTS == 2


def test_writing_takes_at_most_a_hundredth_of_the_time(tmp_path, monkeypatch):
    """A checkpoint that takes 2 s is written every 200 s, one that takes 0.1 s every 30 s."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    kept = checkpoints.Checkpoints("sft", tmp_path)
    for seconds, next_one in ((2, 202), (0.1, 30.1)):
        started = clock[0]

        def write(trainer, path, seconds=seconds):
            clock[0] += seconds

        monkeypatch.setattr(checkpoints, "write", write)
        kept.save(SimpleNamespace(state=SimpleNamespace(global_step=1, max_steps=9)))
        assert kept.next_due == pytest.approx(started + next_one)


# ---- dvc itself -----------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(again):
    """A Git and DVC repository with the real sft stage only, which writes a checkpoint at every step."""
    folder = again("sft")
    shutil.copytree(REPOSITORY / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvc/config", ".dvcignore", ".gitignore", "requirements.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(REPOSITORY / name, folder / name)
    pipeline = YAML(typ="safe", pure=True).load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))
    with (folder / "dvc.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump({"stages": {"sft": pipeline["stages"]["sft"]}}, file)
    module = folder / "src/aligner/training/checkpoints.py"
    text = module.read_text(encoding="utf-8").replace("SECONDS = 30.0", "SECONDS = 0.0").replace("SHARE = 0.01", "SHARE = 1e9")
    module.write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def dvc_repro(folder):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site-cache"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("DVC_ROOT", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["dvc", "repro", "sft"], cwd=folder, env=environment, start_new_session=True, **pipes)


@pytest.mark.slow
def test_a_killed_dvc_leaves_a_training_that_keeps_a_second_one_out(whole, repository):
    """The child of a killed dvc survives. The next dvc repro names the process that trains; after its end, a third resumes."""
    first = dvc_repro(repository)
    deadline = time.monotonic() + 900
    while not steps_of(repository, "sft"):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.01)
    child = int((repository / ".cache/checkpoints/sft.holder").read_text().split()[1])
    os.kill(child, signal.SIGSTOP)  # else it would finish before the second one begins
    first.kill()
    first.wait()

    second = dvc_repro(repository)
    shown = second.communicate(timeout=900)[0]
    assert second.returncode != 0 and "Traceback" not in shown
    assert f"sft: another process is training this stage: pid {child} on {platform.node()}, since " in shown

    os.kill(child, signal.SIGKILL)
    third = dvc_repro(repository)
    shown = third.communicate(timeout=900)[0]
    assert third.returncode == 0, shown
    assert "sft: resumes after step" in shown
    assert killed.outputs(repository, "sft") == killed.outputs(whole, "sft")
