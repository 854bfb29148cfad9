"""requirements.txt pins exactly what is installed, and nothing that only one build of torch brings."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

LINES = (Path(__file__).parent.parent / "requirements.txt").read_text(encoding="utf-8").splitlines()
PINS = [line for line in LINES if line and not line.startswith("#")]
BROUGHT_BY_PYTHON = {"pip"}
BROUGHT_BY_CUDA_TORCH = ("nvidia-", "cuda-", "triton")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_line_is_an_exact_pin() -> None:
    for line in PINS:
        assert re.fullmatch(r"[a-z0-9._-]+==[0-9][A-Za-z0-9.]*( ; .+)?", line), line


def test_everything_installed_is_pinned_to_its_version() -> None:
    pins = {canonical(line.split("==")[0]): line.split("==")[1].split(" ")[0] for line in PINS}
    installed = {canonical(found.name): found.version.split("+")[0] for found in metadata.distributions()}
    ours = {name: version for name, version in installed.items() if not name.startswith(BROUGHT_BY_CUDA_TORCH)}
    assert {name: ours[name] for name in ours.keys() - BROUGHT_BY_PYTHON} == {
        name: pins.get(name) for name in ours.keys() - BROUGHT_BY_PYTHON
    }


def test_cuda_libraries_are_left_to_torch() -> None:
    assert [line for line in PINS if line.startswith(BROUGHT_BY_CUDA_TORCH)] == []
