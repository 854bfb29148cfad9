"""README.md's commands for sharing, with a local folder as remote and small stand-ins for the outputs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from support.clones import ROOT, Clone, stand_in, started

pytestmark = pytest.mark.slow


def name_remote(clone: Clone, store: Path) -> None:
    """Runs README's commands with `store` in place of their folder."""
    commands = re.findall(r"^(dvc remote [^#\n]+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        clone(*(str(store) if "/" in word else word for word in shlex.split(command)))


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Clone:
    """All stages have run, and score twice; committed, but not pushed."""
    folder = tmp_path_factory.mktemp("sharing")
    clone = stand_in(folder / "clone")
    clone("dvc", "repro", "--force", "--single-item", "score")
    clone.commit("other figures")
    name_remote(clone, folder / "store")
    return clone


@pytest.fixture(scope="module")
def store(origin: Clone) -> Path:
    """A remote with all outputs of `origin`."""
    assert "files pushed" in origin("dvc", "push")
    return origin.folder.parent / "store"


@pytest.fixture
def colleague(origin: Clone, store: Path, tmp_path) -> Clone:
    """A fresh clone that names the same remote."""
    clone = Clone(tmp_path / "clone", origin.folder)
    name_settings(origin, clone)
    return clone


def name_settings(origin: Clone, clone: Clone) -> None:
    settings = Path(".dvc/config.local")
    (clone.folder / settings).write_bytes((origin.folder / settings).read_bytes())


def test_a_colleague_pulls_and_has_nothing_to_run(origin: Clone, store: Path, tmp_path) -> None:
    clone = Clone(tmp_path / "clone", origin.folder)
    name_remote(clone, store)
    assert clone.outputs() == {}
    clone("dvc", "pull")
    assert clone.outputs() == origin.outputs() and len(clone.outputs()) == 21
    output = clone("dvc", "repro")
    assert started(output) == [] and "up to date" in output
    assert clone("git", "status", "--porcelain") == ""
    changed = re.findall(r"^(metrics/\S+) +(\S+)", clone("dvc", "metrics", "diff", "HEAD~1"), flags=re.MULTILINE)
    assert changed == [("metrics/score.json", "score.value")]


def stored(store: Path, md5: str) -> Path:
    return store / "files" / "md5" / md5[:2] / md5[2:]


def locked(clone: Clone, path: str) -> str:
    """The MD5 of an output in dvc.lock; of a folder, with .dir at its end."""
    return re.findall(rf"path: {path}\n +hash: md5\n +md5: (\S+)", (clone.folder / "dvc.lock").read_text(encoding="utf-8"))[0]


def of_a_file(origin: Clone, store: Path) -> Path:
    return stored(store, locked(origin, "data/generated/base.jsonl"))


def of_the_listing_of_a_folder(origin: Clone, store: Path) -> Path:
    return stored(store, locked(origin, "models/dpo"))


def in_a_folder(origin: Clone, store: Path) -> Path:
    listing = of_the_listing_of_a_folder(origin, store).read_text(encoding="utf-8")
    return stored(store, re.findall(r'"md5": "(\w+)"', listing)[0])


def restore(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("find", "left"),
    [(of_a_file, 0.5), (in_a_folder, 0.5), (in_a_folder, None), (of_the_listing_of_a_folder, 0.5)],
    ids=["a file cut short", "a folder's file cut short", "a folder's file missing", "a folder's listing cut short"],
)
def test_a_pull_of_what_is_not_whole_says_so_and_leaves_no_wrong_output(
    origin: Clone, colleague: Clone, store: Path, find: Callable[[Clone, Path], Path], left: float | None
) -> None:
    """Pulled files are whole or absent; after a repair, the same command pulls the rest. left: the share that remains."""
    content = find(origin, store)
    before = content.read_bytes()
    content.unlink()
    if left is not None:
        content.write_bytes(before[: int(left * len(before))])
    done = colleague.run("dvc", "pull")
    restore(content, before)
    assert done.returncode != 0 and "ERROR" in done.stderr and "Traceback" not in done.stderr
    assert any(name in done.stderr for name in (content.parent.name + content.name, "models/dpo", "data/generated/base.jsonl"))
    found, expected = colleague.outputs(), origin.outputs()
    assert len(found) < len(expected) and found.items() <= expected.items()
    colleague("dvc", "pull")
    assert colleague.outputs() == expected


def test_a_push_that_cannot_be_written_is_refused_and_done_again_later(origin: Clone, tmp_path) -> None:
    """A file blocks one folder of the remote: everything pushed before is whole."""
    clone = stand_in(tmp_path / "clone")
    name_remote(clone, tmp_path / "store")
    blocked = stored(tmp_path / "store", locked(clone, "models/dpo")).parent
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"")
    done = clone.run("dvc", "push")
    assert done.returncode != 0 and f"'{blocked}" in done.stderr and "Traceback" not in done.stderr
    assert clone.outputs() == stand_in(tmp_path / "another").outputs()
    blocked.unlink()
    clone("dvc", "push")
    colleague = Clone(tmp_path / "colleague", clone.folder)
    name_settings(clone, colleague)
    colleague("dvc", "pull")
    assert colleague.outputs() == clone.outputs()
