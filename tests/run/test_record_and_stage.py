"""Run records and endings of stages: their fields, states and messages, and what a record must never hold."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.workspace import REPOSITORY

from aligner.run.errors import InputError
from aligner.run.params import Score, StageParams
from aligner.run.record import LIBRARIES, Run, git_state, installed
from aligner.run.stage import RESTORE, run_stage

FIELDS = {"peak_memory_mb", "stage", "state", "started", "command", "git", "host", "python", "versions", "seconds"}
SECRETS = {
    "HF_TOKEN": "hf_secretsecretsecret",
    "AWS_SECRET_ACCESS_KEY": "aws+secret/key",
    "WANDB_API_KEY": "0123456789secret",
    "SOME_VARIABLE": "a value of no library",
}
FULL_DISK = OSError(28, "No space left on device")
AUTHOR = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory outside any Git repository; restores the signal handler that run_stage replaces."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def record(folder="."):
    """The only record in `folder`."""
    (path,) = Path(folder, "experiments").iterdir()
    return json.loads(path.read_text(encoding="utf-8"))


def raising(error):
    def main(run):
        raise error

    return main


def ended(main, capsys):
    """Exit code and standard error of a stage that fails."""
    with pytest.raises(SystemExit) as caught:
        run_stage("sft", main)
    return caught.value.code, capsys.readouterr().err


# ---- The fields of a record --------------------------------------------------------------------------------------------


def test_a_completed_run_tells_what_a_person_would_ask(capsys):
    def main(run):
        run.note(params=Score(tie_threshold=0, alpha=0.05, equivalence_margin=0.1), device="cpu")
        run.phase("load")

    run_stage("sft", main)
    written = record()
    assert set(written) == FIELDS | {"params", "device"}
    assert written["stage"] == "sft" and written["state"] == "completed" and "reason" not in written
    assert written["params"] == {"tie_threshold": 0, "alpha": 0.05, "equivalence_margin": 0.1} and written["device"] == "cpu"
    assert set(written["seconds"]) == {"load", "total"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", written["started"])
    assert set(written["host"]) == {"name", "system", "cpus"} and written["python"].count(".") == 2
    assert set(written["versions"]) == set(LIBRARIES)
    assert capsys.readouterr() == ("", "")


def test_the_record_is_there_while_the_stage_runs():
    seen = []
    run_stage("sft", lambda run: seen.append(record()["state"]))
    assert seen == ["running"] and record()["state"] == "completed"


def test_phases_add_up(monkeypatch):
    clock = iter([10.0, 11.5, 14.0, 14.25])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    run = Run("sft")
    assert (run.phase("load"), run.phase("train")) == (1.5, 2.5)
    run.finish("completed")
    assert record()["seconds"] == {"load": 1.5, "train": 2.5, "total": 4.25}


def test_every_run_has_a_file_of_its_own():
    for stage in ("sft", "sft", "generate@dpo"):
        run_stage(stage, lambda run: None)
    names = sorted(path.name for path in Path("experiments").iterdir())
    assert len(names) == 3 and all(re.fullmatch(r"(sft|generate@dpo)-\d{8}T\d{6}\.\d{6}Z\.json", name) for name in names)


def test_the_command_is_told_without_the_folder_of_the_checkout(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/somebody/checkout/src/generate.py", "dpo"])
    assert Run("generate@dpo").fields["command"] == ["generate.py", "dpo"]


def test_versions_are_read_without_importing():
    versions = installed(["numpy", "no-such-library"])
    assert re.match(r"\d+\.\d+", versions["numpy"]) and versions["no-such-library"] is None


def test_git_is_told_where_there_is_one(folder):
    assert git_state() == {"revision": None, "dirty": None}
    for command in (["init", "--quiet"], ["add", "file"], ["commit", "--quiet", "--message", "first"]):
        (folder / "file").write_text("one", encoding="utf-8")
        subprocess.run(["git", *AUTHOR, *command], check=True, cwd=folder)
    clean = git_state()
    (folder / "untracked").write_text("", encoding="utf-8")
    assert re.fullmatch(r"[0-9a-f]{40}", clean["revision"]) and clean["dirty"] is False and git_state() == clean
    (folder / "file").write_text("two", encoding="utf-8")
    assert git_state() == {**clean, "dirty": True}


def test_a_machine_without_git_is_no_obstacle(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state() == {"revision": None, "dirty": None}


def test_records_go_to_the_main_checkout(folder, monkeypatch):
    """DVC runs queued experiments in a copy that it deletes; DVC_ROOT is the main checkout even there."""
    monkeypatch.setenv("DVC_ROOT", str(folder / "main"))
    run_stage("sft", lambda run: None)
    assert record(folder / "main")["state"] == "completed" and not (folder / "experiments").exists()


def test_no_value_of_the_environment_stands_in_a_record(folder, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run_stage("sft", lambda run: run.note(params=StageParams.model_construct(seed=17)))
    with pytest.raises(SystemExit):
        run_stage("dpo", raising(InputError("some reason")))
    text = "".join(path.read_text(encoding="utf-8") for path in (folder / "experiments").iterdir())
    assert '"seed": 17' in text and "some reason" in text
    assert [name for name, value in SECRETS.items() if value in text or name in text] == []


# ---- How a run ends -------------------------------------------------------------------------------------------------


def test_what_a_person_can_mend_is_one_message(capsys):
    code, shown = ended(raising(InputError("params.yaml: dpo.beta must be > 0, got -1")), capsys)
    assert (code, shown) == (1, "sft: params.yaml: dpo.beta must be > 0, got -1\n")
    assert record()["state"] == "failed" and record()["reason"] == "params.yaml: dpo.beta must be > 0, got -1"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (FileNotFoundError(2, "No such file or directory", "data/x"), "No such file or directory: data/x"),
        (FULL_DISK, "No space left on device"),
        (ConnectionError("the line is dead"), "the line is dead"),
    ],
)
def test_what_the_system_refuses_is_one_message(capsys, error, shown):
    assert ended(raising(error), capsys) == (1, f"sft: {shown}. Fix this, then: dvc repro\n")
    assert record()["state"] == "failed" and record()["reason"] == str(error)


def test_an_interruption_is_no_failure(capsys):
    code, shown = ended(raising(KeyboardInterrupt()), capsys)
    assert code == 130 and "Traceback" not in shown
    assert shown.startswith("sft: interrupted;") and "dvc repro" in shown and RESTORE in shown
    assert record()["state"] == "interrupted" and "reason" not in record()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("another"), AssertionError("a third"), SystemExit(3)])
def test_a_bug_keeps_its_traceback(capsys, error):
    with pytest.raises(type(error)) as caught:
        run_stage("sft", raising(error))
    assert caught.value is error and capsys.readouterr().err == ""
    assert record()["state"] == "crashed" and record()["reason"] == f"{type(error).__name__}: {error}"


def run_in_process(folder, body):
    """A stage in a separate process; `body` is the body of its main."""
    code = f"import sys, time\nfrom aligner.run.stage import run_stage\ndef main(run):\n    {body}\nrun_stage('sft', main)\n"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_stage_as_ctrl_c_does(folder, sent):
    with run_in_process(folder, "print('ready', flush=True); time.sleep(60)") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 130
    assert shown.startswith("sft: interrupted;") and shown.count("\n") == 1
    assert record(folder)["state"] == "interrupted"


def test_a_killed_stage_is_left_as_running(folder):
    """A process cannot record kill -9, but the record says that the run began."""
    with run_in_process(folder, "print('ready', flush=True); time.sleep(60)") as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
    assert record(folder)["state"] == "running"


def test_a_bug_shows_its_traceback_and_fails_the_stage(folder):
    with run_in_process(folder, "raise RuntimeError('a bug')") as process:
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 1 and "Traceback" in shown and "RuntimeError: a bug" in shown


# ---- The file itself ------------------------------------------------------------------------------------------------


def test_a_record_is_replaced_in_one_step(monkeypatch):
    """A write that fails half way leaves the previous record intact."""
    run = Run("sft")
    run.note(device="cpu")
    write = Path.write_text

    def half(path, text, **options):
        write(path, text[: len(text) // 2], **options)
        raise FULL_DISK

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        run.finish("completed")
    written = json.loads(run.path.read_text(encoding="utf-8"))
    assert written["state"] == "running" and "device" not in written


def test_nothing_is_left_beside_the_record():
    run_stage("sft", lambda run: None)
    assert [path.suffix for path in Path("experiments").iterdir()] == [".json"]


@pytest.mark.parametrize("error", [InputError("the reason"), FULL_DISK])
def test_a_record_that_cannot_be_written_does_not_hide_the_reason(monkeypatch, capsys, error):
    """A full disk fails the stage and then its record: still one message."""

    def main(run):
        monkeypatch.setattr(Run, "write", raising(FULL_DISK))
        raise error

    code, shown = ended(main, capsys)
    assert code == 1 and shown.startswith(f"sft: {error.strerror if error is FULL_DISK else error}") and shown.count("\n") == 1


def test_a_folder_for_records_that_cannot_be_made_is_one_message(folder, capsys):
    (folder / "experiments").write_text("a file is in the way", encoding="utf-8")
    code, shown = ended(lambda run: None, capsys)
    assert code == 1 and shown == "sft: File exists: experiments. Fix this, then: dvc repro\n"


def test_an_interrupt_that_a_library_turns_into_an_error_is_still_an_interrupt(tmp_path, monkeypatch, capsys):
    """As for Ctrl-C during an import inside a bare `except:`."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))

    def main(run):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except BaseException:
            raise ModuleNotFoundError("No module named 'version'") from None

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            run_stage("sft", main)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert ended.value.code == 130
    assert "sft: interrupted" in capsys.readouterr().err
    (path,) = (tmp_path / "experiments").glob("sft-*.json")
    assert json.loads(path.read_text())["state"] == "interrupted"


# ---- Deferred interrupts -------------------------------------------------------------------------------------------------------

DEFERRING = """
import sys, time
from aligner.run.stage import deferred_interrupt, interrupted, run_stage
def main(run):
    with deferred_interrupt('sft: one moment'):
        print('ready', flush=True)
        for _ in range(600):
            if interrupted() and {answer}: raise KeyboardInterrupt('step 7 is saved')
            time.sleep(0.1)
            if interrupted() and {leave}: break
run_stage('sft', main)
"""


def deferring(folder, answer=False, leave=False):
    code = DEFERRING.format(answer=answer, leave=leave)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_deferred_interrupt_lets_the_stage_end_by_itself(folder):
    with deferring(folder, answer=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 130
    assert shown == f"\nsft: one moment\nsft: interrupted; step 7 is saved. Resume: dvc repro   (or undo: {RESTORE})\n"
    assert (record(folder)["state"], record(folder)["reason"]) == ("interrupted", "step 7 is saved")


def test_deferred_interrupt_ends_with_a_second_signal(folder):
    with deferring(folder) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() + process.stderr.readline() == "\nsft: one moment\n"
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 130 and shown.startswith("sft: interrupted; the inputs are unchanged")


def test_deferred_interrupt_raises_at_the_end_of_its_block(folder):
    with deferring(folder, leave=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 130 and "sft: interrupted; the inputs are unchanged" in shown
