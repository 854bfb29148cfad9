"""tools/verify.py and compare_outputs.py: comparison, size of differences, and whole runs on a small pipeline."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from safetensors.numpy import save_file
from support.clones import Clone

import verify
from compare_outputs import MOST_LISTED, compare, difference_lines, differences, digest, listing, listing_md5

ROOT = Path(__file__).resolve().parents[2]


# ---- What is compared -----------------------------------------------------------------------------------------------

OUTPUTS = {
    "metrics/dpo.json": b'{"dpo": {"hit_rate": 0.5554}}\n',
    "plots/curve.csv": b"step,series,value\n1,training,0.5\n",
    "data/answers.jsonl": b'{"id": "a", "answer": "yes"}\n',
    "models/dpo/adapter.safetensors": b"tensors",
    "models/dpo/deeper/config.json": b"{}",
}


class Made:
    """Invented outputs in a clone: `folder` after the run, `committed` with those in Git, and a DVC cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.committed, self.cache = folder / "clone", folder / "committed", folder / "cache"
        for path, content in OUTPUTS.items():
            write(self.folder / path, content)
        outs = [{"path": path, "md5": digest(self.folder / path, "md5")} for path in OUTPUTS if "models" not in path]
        self.listing = listing(self.folder / "models/dpo")
        outs.append({"path": "models/dpo", "md5": listing_md5(self.listing)})
        self.md5 = {out["path"]: out["md5"] for out in outs}
        with (self.folder / "dvc.lock").open("w") as file:
            YAML(typ="safe").dump({"stages": {"all": {"outs": outs}}}, file)
        git(self.folder, "init", "--quiet")
        git(self.folder, "add", "dvc.lock")
        git(self.folder, "commit", "--quiet", "--message", "lock")

    def in_git(self) -> Made:
        for path in ("metrics/dpo.json", "plots/curve.csv"):
            write(self.committed / path, OUTPUTS[path])
        return self

    def in_cache(self) -> Made:
        entries = [{"md5": md5, "relpath": name} for name, md5 in self.listing.items()]
        self.keep(self.md5["models/dpo"], json.dumps(entries, sort_keys=True).encode())
        self.keep(self.md5["data/answers.jsonl"], OUTPUTS["data/answers.jsonl"])
        for name, md5 in self.listing.items():
            self.keep(md5, OUTPUTS[f"models/dpo/{name}"])
        return self

    def keep(self, md5: str, content: bytes) -> None:
        write(self.cache / "files/md5" / md5[:2] / md5[2:], content)

    def compare(self) -> dict[str, tuple[str, str]]:
        results = compare(verify.locked(self.folder), self.folder, self.committed, self.cache)
        return {result.path: (result.state, result.beside) for result in results}

    def distances(self) -> str:
        return "\n".join(difference_lines(compare(verify.locked(self.folder), self.folder, self.committed, self.cache)))


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments], cwd=folder, check=True)


def test_on_a_fresh_clone_dvc_lock_alone_is_enough(tmp_path) -> None:
    """Without a cache, outputs in Git are compared with it, all others with the MD5 in dvc.lock, folders file by file."""
    found = Made(tmp_path).in_git().compare()
    assert found == {path: ("same", "Git" if path[0] in "mp" and "models" not in path else "dvc.lock") for path in OUTPUTS}


def test_with_a_cache_the_bytes_are_compared(tmp_path) -> None:
    found = Made(tmp_path).in_git().in_cache().compare()
    assert {beside for _, beside in found.values()} == {"Git", "cache"} and {state for state, _ in found.values()} == {"same"}


@pytest.mark.parametrize("path", OUTPUTS)
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
def test_one_other_byte_is_seen(tmp_path, path: str, cached: bool) -> None:
    made = Made(tmp_path).in_git()
    if cached:
        made.in_cache()
    write(made.folder / path, bytes([OUTPUTS[path][0] ^ 1]) + OUTPUTS[path][1:])
    found = made.compare()
    named = path if cached or not path.startswith("models") else "models/dpo"  # a listing that nobody holds names no file
    assert {name for name, (state, _) in found.items() if state == "differs"} == {named}
    assert f"{named} differs:" in made.distances()
    known = cached or path.startswith(("metrics", "plots"))
    assert ("its size is unknown" in made.distances()) is not known


@pytest.mark.parametrize("path", OUTPUTS)
def test_a_missing_output_is_seen(tmp_path, path: str) -> None:
    made = Made(tmp_path).in_git().in_cache()
    (made.folder / path).unlink()
    assert {name: state for name, (state, _) in made.compare().items() if state != "same"} == {path: "missing"}


def test_a_missing_folder_and_an_extra_file_are_seen(tmp_path) -> None:
    made = Made(tmp_path).in_cache()
    write(made.folder / "models/dpo/training_args.bin", b"x")
    assert made.compare()["models/dpo/training_args.bin"][0] == "extra"
    for file in (made.folder / "models/dpo").rglob("*.*"):
        file.unlink()
    assert [state for path, (state, _) in made.compare().items() if path.startswith("models")] == ["missing", "missing"]


def test_what_git_or_the_cache_holds_must_be_what_dvc_lock_names(tmp_path) -> None:
    made = Made(tmp_path).in_git().in_cache()
    write(made.committed / "metrics/dpo.json", b'{"dpo": {"hit_rate": 0.6}}\n')
    made.keep(made.md5["data/answers.jsonl"], b"{}\n")
    found = made.compare()
    assert found["metrics/dpo.json"][0] == "Git holds other bytes than dvc.lock"
    assert found["data/answers.jsonl"][0] == "the cache holds other bytes than dvc.lock"


def test_the_name_of_a_folder_is_dvc_s_own() -> None:
    lock = (ROOT / "models/base/dvc.lock").read_text(encoding="utf-8")
    assert listing_md5(listing(ROOT / "models/base/weights")) in re.findall(r"md5: (\w+\.dir)", lock)


# ---- How far apart --------------------------------------------------------------------------------------------------


def distance(tmp_path, kind: str, one: bytes, other: bytes) -> list[str]:
    write(tmp_path / "one", one)
    write(tmp_path / "other", other)
    return differences(tmp_path / "one", tmp_path / "other", kind)


def test_metrics_key_by_key_the_furthest_first(tmp_path) -> None:
    one = {"dpo": {"hit_rate": 0.5, "loss": 100.0, "verdict": "better", "same": 1.0}, "gone": 1}
    other = {"dpo": {"hit_rate": 0.25, "loss": 101.0, "verdict": "worse", "same": 1.0}}
    assert distance(tmp_path, ".json", json.dumps(one).encode(), json.dumps(other).encode()) == [
        "gone: is missing",
        "dpo.verdict: worse, not better",
        "dpo.hit_rate: 0.25, not 0.5: 0.25 apart, relative 0.5",
        "dpo.loss: 101.0, not 100.0: 1 apart, relative 0.01",
    ]


def test_curves_series_by_series(tmp_path) -> None:
    """The largest difference is 0.5, in a series with a maximum of 4."""
    one = b"step,series,value\n1,training,4\n2,training,1\n1,held out,3\n"
    other = b"step,series,value\n1,training,4\n2,training,1.5\n1,held out,3\n"
    assert distance(tmp_path, ".csv", one, other) == ["value of training: up to 0.5 apart, relative 0.12; 1 of 2 values differ"]


def test_tensors_one_by_one(tmp_path) -> None:
    one = {"a": np.array([1.0, -2.0], dtype=np.float32), "b": np.zeros((2, 2), dtype=np.float32), "c": np.ones(3)}
    other = {"a": np.array([1.0, -2.5], dtype=np.float32), "b": np.zeros((2, 3), dtype=np.float32), "c": np.ones(3)}
    save_file(one, tmp_path / "x")
    save_file(other, tmp_path / "y")
    assert distance(tmp_path, ".safetensors", (tmp_path / "x").read_bytes(), (tmp_path / "y").read_bytes()) == [
        "b: 2×3 values, expected 2×2",
        "a: up to 0.5 apart, relative 0.25; 1 of 2 values differ",
    ]


def test_answers_field_by_field(tmp_path) -> None:
    one = b'{"id": "a", "answer": "yes"}\n{"id": "b", "answer": "no"}\n{"id": "c", "answer": "no"}\n'
    assert distance(tmp_path, ".jsonl", one, one.replace(b"no", b"maybe", 1)) == ["answer: 1 of 3 differ"]


def test_pages_line_by_line_and_damaged_files_byte_by_byte(tmp_path) -> None:
    assert distance(tmp_path, ".md", b"a\nb\n", b"a\nc\n") == ["lines: 1 of 2 differ"]
    assert distance(tmp_path, ".json", b"{}", b"{") == ["bytes: 1 values, expected 2"]
    assert distance(tmp_path, ".safetensors", b"12345678", b"12345679") == ["bytes: 1 of 8 differ"]
    assert distance(tmp_path, ".json", b'{"a": 1}', b'{"a":1}') == ["the same values, written differently"]


def test_not_a_number_is_a_difference_unless_both_are(tmp_path) -> None:
    assert distance(tmp_path, ".json", b'{"a": NaN, "b": 1.0}', b'{"a": NaN, "b": 1}') == ["the same values, written differently"]
    assert distance(tmp_path, ".json", b'{"a": 1.0}', b'{"a": NaN}') == ["a: nan, not 1.0: nan apart, relative nan"]


def test_only_the_furthest_are_told(tmp_path) -> None:
    one, other = ({str(key): shift + key for key in range(15)} for shift in (1, 2))
    lines = distance(tmp_path, ".json", json.dumps(one).encode(), json.dumps(other).encode())
    assert len(lines) == MOST_LISTED + 1 and lines[0].startswith("0: 2.0, not 1.0") and lines[-1] == "and 5 more"


# ---- The machine ----------------------------------------------------------------------------------------------------


def test_a_machine_is_known_by_its_kind() -> None:
    here = verify.machine(ROOT)
    assert set(verify.KIND) < set(here) and here["threads"] >= 1
    assert verify.is_known({**here, "python": "3.99"}, {"machines": [here]})
    for name in verify.KIND:
        assert not verify.is_known({**here, name: "another"}, {"machines": [here]})


def test_the_record_holds_the_machines_of_one_lock(tmp_path) -> None:
    made = Made(tmp_path)
    (made.folder / "docs").mkdir()
    one = {**dict.fromkeys(verify.KIND, "x"), "python": "3.11.7"}
    other = {**one, "processor": "y"}
    for here in (one, other, one):
        verify.write_record(made.folder, here)
    assert verify.read_record(made.folder)["machines"] == [one, other]
    (made.folder / "dvc.lock").write_text("stages: {}\n")
    git(made.folder, "commit", "--quiet", "--all", "--message", "another lock")
    verify.write_record(made.folder, other)
    assert verify.read_record(made.folder)["machines"] == [other]


def test_the_committed_record_has_the_fields_of_a_machine() -> None:
    record = verify.read_record(ROOT)
    assert record["machines"] and re.fullmatch(r"[0-9a-f]{64}", record["dvc.lock"])
    assert all(set(known) == set(verify.machine(ROOT)) for known in record["machines"])


def test_the_run_is_elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TZ", "FAR-13:45")
    monkeypatch.setenv("DVC_ROOT", "/nowhere")
    one, other = verify.elsewhere(tmp_path), verify.elsewhere(tmp_path)
    assert one["TZ"] != "FAR-13:45" and one["LC_ALL"] != os.environ.get("LC_ALL") and "DVC_ROOT" not in one
    assert one["PYTHONHASHSEED"] != other["PYTHONHASHSEED"]


# ---- Whole runs -----------------------------------------------------------------------------------------------------

# A pipeline of one stage. HABIT says how it goes wrong, if it does.
STAGE = """
import json, os, sys, time
from pathlib import Path

habit = os.environ.get("HABIT")
fresh = os.environ.get("TZ", "").startswith("FAR")
if habit == "failing" and fresh:
    sys.exit("no luck today")
if habit == "slow" and fresh:
    Path(os.environ["STARTED"]).write_text(str(os.getpid()))
    time.sleep(300)
out = Path("out")
out.mkdir()
words = sorted({"mean", "median", "mode", "range", "sum"}, key=hash if habit == "careless" else None)
(out / "words.json").write_text(json.dumps(words))
(out / "folder.json").write_text(json.dumps({"folder": os.getcwd() if habit == "careless" else "."}))
zone = time.strftime("%z") if habit == "careless" else "+0000"
Path("metrics.json").write_text(json.dumps({"run": {"offset": int(zone), "value": 0.5}}))
"""
PIPELINE = """
stages:
  make:
    cmd: python stage.py
    deps: [stage.py]
    params: [model]
    outs: [out]
    metrics: [metrics.json: {cache: false}]
"""


class Small(Clone):
    """A repository with that pipeline, run once and committed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        subprocess.run(["git", "init", "--quiet", folder], check=True)
        self.folder = folder
        self.environment = self.own_environment()
        self("dvc", "init", "--quiet")
        for name, text in {
            "stage.py": STAGE,
            "dvc.yaml": PIPELINE,
            "params.yaml": "model: small\nmodels:\n  small:\n    device: cpu\n    threads: 1\n",
            ".gitignore": "/out\n",
            "docs/README.md": "",
        }.items():
            write(folder / name, text.encode())
        self("dvc", "repro")
        self.commit("results")


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Small:
    return Small(tmp_path_factory.mktemp("verify") / "small")


@pytest.fixture
def small(template: Small, tmp_path) -> Small:
    """A repository with committed results, whose stage has no bad habit yet."""
    clone = copy.copy(template)
    clone.folder = shutil.copytree(template.folder, tmp_path / "small")
    return clone


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """The folder of verify's clones."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(verify.tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.slow
def test_an_honest_pipeline_is_verified_and_recorded(small: Small, shelf, capfd) -> None:
    (small.folder / "notes.txt").write_text("uncommitted")
    assert verify.main(small.folder, [], record=True) == 0
    said = capfd.readouterr().out
    assert "3 of 3 outputs have the bytes of dvc.lock" in said and "uncommitted changes (1 files) are left out" in said
    for file in ("out/words.json", "out/folder.json", "metrics.json"):
        assert re.search(rf"^{file} +{digest(small.folder / file, 'sha256')}  (cache|Git) +same$", said, re.MULTILINE)
    assert verify.read_record(small.folder)["machines"][0]["threads"] == 1
    assert list(shelf.iterdir()) == []


@pytest.mark.slow
def test_hash_order_directory_and_time_zone_are_found_out(tmp_path, shelf, capfd, monkeypatch) -> None:
    monkeypatch.setenv("HABIT", "careless")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    small = Small(tmp_path / "small")
    assert verify.main(small.folder, [], record=True) == 1
    said = capfd.readouterr().out
    assert "0 of 3 outputs" in said and "run.offset: 1345.0, not 0.0: 1.3e+03 apart" in said and "run.value" not in said
    assert f"{verify.RECORD} does not name this kind of machine" in said and not (small.folder / verify.RECORD).exists()
    kept = Path(re.search(r"^The clone is kept: (.*)$", said, re.MULTILINE)[1])
    assert (kept / "out/words.json").is_file() and kept.is_relative_to(shelf)


@pytest.mark.slow
def test_a_failing_stage_leaves_its_clone(small: Small, shelf, capfd, monkeypatch) -> None:
    monkeypatch.setenv("HABIT", "failing")
    assert verify.main(small.folder, ["models.small.threads=2"], record=False) == 1
    said = capfd.readouterr().err
    assert "no luck today" in said and "dvc repro ended with exit code" in said and "the clone is kept: " in said
    kept = next(shelf.glob("*/*/params.yaml"))
    assert "threads: 2" in kept.read_text() and not (kept.parent / "metrics.json").exists()
    assert "threads: 1" in (small.folder / "params.yaml").read_text()


@pytest.mark.slow
def test_what_cannot_be_verified_is_refused_before_it_runs(small: Small, shelf, capfd) -> None:
    assert verify.main(small.folder, ["models.smal.threads=2"], record=False) == 1
    assert "models.smal.threads is not a parameter of params.yaml" in capfd.readouterr().err
    (small.folder / "stage.py").write_text(STAGE + "# edited\n")
    (small.folder / "params.yaml").write_text("model: another\n")
    small.commit("no repro")
    assert verify.main(small.folder, [], record=False) == 1
    said = capfd.readouterr().err
    assert "run dvc repro and commit" in said and "make: stage.py, model" in said
    assert list(shelf.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_it_leaves_nothing_behind(small: Small, tmp_path, number: signal.Signals) -> None:
    """Neither a clone nor a running stage."""
    started, temporary = tmp_path / "started", tmp_path / "temporary"
    temporary.mkdir()
    code = f"import sys, verify; sys.exit(verify.main(verify.Path({str(small.folder)!r}), [], False))"
    environment = {**os.environ, "HABIT": "slow", "STARTED": str(started), "TMPDIR": str(temporary)}
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT / "tools")},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (started.is_file() and started.read_text()):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(number)
    said = running.communicate(timeout=90)[1]
    assert running.returncode == 130 and "interrupted; the clone is removed" in said
    assert list(temporary.glob("verify-*")) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
