"""tools/closing_line.py and tools/weights_digest.py: what a newcomer on another machine reads after `make repro`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import closing_line
import weights_digest
from compare_outputs import Result

HERE = {"processor": "B", "instructions": "x", "threads": 1, "device": "cpu", "torch": "1", "system": "s"}
RECORD = {"machines": [{**HERE, "processor": "A"}]}


def result(path: str, found: Path, state: str = "differs", reference: Path | None = None) -> Result:
    return Result(path, "", "", state, found, reference)


def weights(folder: Path, change: float = 0.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = np.linspace(-1, 1, 60, dtype=np.float32).reshape(6, 10)
    save_file({"a": values * np.float32(1 + change), "b": values[:1].copy()}, folder / "adapter_model.safetensors")
    return folder


def test_the_digest_tells_how_far_weights_are(tmp_path):
    weights_digest_file(tmp_path)
    digests = weights_digest.read(tmp_path, {"models/dpo": "1.dir"})
    assert weights_digest.distance_of(result("models/dpo", tmp_path / "models/dpo"), digests) == 0
    far = weights(tmp_path / "other", 1e-4)
    assert 0.9e-4 < weights_digest.distance_of(result("models/dpo", far), digests) < 1.1e-4
    file = result("models/dpo/adapter_model.safetensors", far / "adapter_model.safetensors")
    assert "0.0001 apart" in weights_digest.line(file, digests)
    assert weights_digest.line(result("metrics/dpo.json", far), digests) is None
    save_file({"a": np.zeros((2, 2), np.float32)}, far / "adapter_model.safetensors")
    assert weights_digest.distance_of(result("models/dpo", far), digests) == float("inf")


def test_a_digest_of_other_bytes_than_dvc_lock_is_not_used(tmp_path):
    weights_digest_file(tmp_path)
    assert weights_digest.read(tmp_path, {"models/dpo": "2.dir"}) == {}


def weights_digest_file(root: Path) -> None:
    weights(root / "models/dpo")
    (root / "docs").mkdir()
    weights_digest.write(root, {"models/dpo": "1.dir", "metrics/dpo.json": "3"}, root)


def test_the_line_names_counts_sizes_and_the_processor(tmp_path):
    (tmp_path / "one.csv").write_text("step,value\n1,1.0\n")
    (tmp_path / "other.csv").write_text("step,value\n1,1.00001\n")
    same = result("metrics/dpo.json", tmp_path, "same")
    close = result("plots/dpo.csv", tmp_path / "other.csv", reference=tmp_path / "one.csv")
    line = closing_line.sentence([same, close], {}, HERE, RECORD)
    assert line.startswith("2 outputs: 1 with the recorded bytes, 1 differ in last digits (largest 1e-05, relative): ")
    assert "this processor is not A, but B" in line and line.endswith("metrics equal")
    assert closing_line.sentence([same], {}, HERE, RECORD) == "1 outputs: 1 with the recorded bytes"
    known = closing_line.sentence([close], {}, {**HERE, "processor": "A"}, RECORD)
    assert "gave the recorded bytes before, so run make verify" in known


def test_what_is_far_missing_or_without_numbers_is_said(tmp_path):
    (tmp_path / "one.json").write_text('{"hit": 0.5}')
    (tmp_path / "other.json").write_text('{"hit": 0.7}')
    metrics = result("metrics/score.json", tmp_path / "other.json", reference=tmp_path / "one.json")
    gone = result("plots/x.csv", tmp_path / "x.csv", "missing")
    page = result("reports/index.html", tmp_path, reference=None)
    line = closing_line.sentence([metrics, gone, page], {}, HERE, RECORD)
    assert "2 differ by more (metrics/score.json, plots/x.csv)" in line
    assert "1 differ, with no numbers to compare (reports/index.html)" in line
    assert line.endswith("metrics differ: metrics/score.json")


def test_a_changed_parameter_is_found_in_the_lock():
    def lock(beta, md5):
        deps = [{"path": "src/dpo.py", "md5": md5}, {"path": "models/sft", "md5": "x"}]
        return {"stages": {"dpo": {"cmd": "", "deps": deps, "params": {"params.yaml": {"dpo": beta}}}}}

    made = {"models/sft": "x"}
    assert closing_line.inputs(lock(1, "a"), made) == {"dpo src/dpo.py": "a", "dpo dpo": 1}
    assert closing_line.inputs(lock(2, "a"), made) != closing_line.inputs(lock(1, "a"), made)
