"""Progress where the output is no terminal: one line every few seconds, and none for what ends at once."""

from __future__ import annotations

import io
import time
import weakref

import pytest
from tqdm import tqdm

from aligner.run import terminal


@pytest.fixture(autouse=True)
def no_other_bar(monkeypatch):
    """A bar that an earlier test of this process left open would take part."""
    monkeypatch.setattr(tqdm, "_instances", weakref.WeakSet())


def run_bar(monkeypatch, seconds: float, steps: int, pause: float) -> list[str]:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "SECONDS", seconds)
    monkeypatch.setattr("sys.stderr", out)
    with terminal.bar("dpo", steps, "step") as progress:
        for step in range(steps):
            time.sleep(pause)
            progress.set_postfix_str(f"loss {step}", refresh=False)
            progress.update()
    return list(filter(None, out.getvalue().splitlines()))  # tqdm ends with an empty line


def test_a_long_work_shows_lines_with_loss_and_time_left(monkeypatch):
    lines = run_bar(monkeypatch, 0.05, 10, 0.03)
    assert 3 <= len(lines) <= 9
    assert all(line.startswith("dpo: ") and "left" in line and "loss" in line and "\r" not in line for line in lines)


def test_a_short_work_shows_nothing(monkeypatch):
    assert run_bar(monkeypatch, 10, 3, 0) == []


def test_a_stage_says_that_it_works_while_no_bar_does(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(terminal, "SECONDS", 0.05)
    monkeypatch.setattr("sys.stderr", out)
    with terminal.alive("dpo"):
        time.sleep(0.18)
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 4 and all(line.startswith("dpo: working, ") for line in lines)
    time.sleep(0.1)
    assert out.getvalue().splitlines() == lines  # it ends with the stage
