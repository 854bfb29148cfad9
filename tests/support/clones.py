"""Temporary clones of this repository's working tree, and commands in them.

    clone = Clone(tmp_path / "clone")         # code, data and dvc.lock as they are; no outputs
    clone = stand_in(tmp_path / "clone")      # all stages have run, but made small stand-ins of their outputs
    clone("dvc", "repro")

Stand-ins make tests of DVC's own part (staleness, sharing) take seconds: dvc.yaml is the real one, but another program plays the
`python` of its commands.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support import shelf
from support.pipeline_files import ALL_STAGES, METHODS, STAGES, declared

ROOT = Path(__file__).parents[2]

# A program named python. `python src/dpo.py` writes the outputs of the stage dpo: in each a random number, so that a
# second run writes other outputs; or the number in CONTENT.
STAND_IN = """#!PYTHON -IS
import os, random, sys
from pathlib import Path

script, *arguments = sys.argv[1:]
for path in map(Path, OUTPUTS["@".join([Path(script).stem, *arguments])]):
    if not path.suffix:
        path /= "weights"
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.environ.get("CONTENT", random.random())
    path.write_text(f'{{"{path.stem}": {{"value": {number}}}}}')
"""


class Clone:
    """A committed clone of the working tree; commands in it use this interpreter's programs."""

    def __init__(self, folder: Path, source: Path = ROOT) -> None:
        self.folder = folder
        self.environment = self.own_environment()
        subprocess.run(["git", "clone", "--quiet", source, folder], check=True)
        if source == ROOT:
            self._take_over_the_working_tree()
        (folder / ".dvc/config.local").write_text("[cache]\n    dir = cache\n")  # .dvc/cache, whatever the person's settings say

    @classmethod
    def reopen(cls, folder: Path) -> Clone:
        """The clone in `folder`, which is a copy of another clone."""
        clone = cls.__new__(cls)
        clone.folder = folder
        clone.environment = clone.own_environment()
        return clone

    def own_environment(self) -> dict[str, str]:
        """This interpreter's programs first, and none of the user's DVC and Git settings."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / "site-cache"),
            "GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@example.org",
        }  # fmt: skip
        for name in ("DVC_ROOT", "OMP_NUM_THREADS"):  # stages take as many threads as params.yaml says
            environment.pop(name, None)
        return environment

    def _take_over_the_working_tree(self) -> None:
        """Copies changed and new files and deletes removed ones, so that the tests see the working tree."""
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)
            else:
                (self.folder / name).unlink(missing_ok=True)
        self.commit("as in the working tree")

    def __call__(self, *command: str, check: bool = True) -> str:
        done = self.run(*command)
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def run(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=1200)

    def commit(self, message: str) -> None:
        self("git", "add", "--all")
        self("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def read(self, path: str) -> dict:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))

    def outputs(self) -> dict[str, bytes]:
        """The bytes of each output that DVC caches and Git ignores."""
        kept = [self.folder / path for stage in STAGES for path in sorted(declared(stage, "outs"))]
        files = [file for path in kept for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
        return {file.relative_to(self.folder).as_posix(): file.read_bytes() for file in files}


def stand_in(folder: Path) -> Clone:
    """A copy of the stand-in clone: its outputs all hold 0.5 and are committed to Git and DVC; stages run again write others."""
    place = shelf.built("stand-in", build_stand_in)
    clone = Clone.reopen(shutil.copytree(place / "clone", folder))
    clone.environment["PATH"] = f"{place / 'programs'}{os.pathsep}{clone.environment['PATH']}"
    return clone


def build_stand_in(place: Path) -> None:
    """Fills `place` with the stand-in clone and the programs that its stages call."""
    programs = place / "programs"
    programs.mkdir(parents=True)
    outputs = {stage: sorted(declared(stage, "outs", "metrics", "plots")) for stage in ALL_STAGES}
    program = STAND_IN.replace("PYTHON", sys.executable).replace("OUTPUTS", repr(outputs))
    (programs / "python").write_text(program, encoding="utf-8")
    (programs / "python").chmod(0o755)
    clone = Clone(place / "clone")
    clone.environment["PATH"] = f"{programs}{os.pathsep}{clone.environment['PATH']}"
    clone.environment["CONTENT"] = "0.5"
    clone("dvc", "repro", "dvc.yaml", METHODS)
    clone.commit("stand-in outputs")


def started(output: str) -> list[str]:
    """The stages that ran, in order; not those restored from the cache."""
    return re.findall(r"Running stage '([^']+)'", output)
