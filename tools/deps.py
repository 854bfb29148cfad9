"""Writes the code that each stage imports into the `deps` of the pipelines, since DVC follows no imports (dvc#9195).

reads   dvc.yaml, pipelines/dvc.yaml (whose stages run in the root), src/
writes  both: in each stage's `deps`, the Python files below src/; every other line stays as it is
command PYTHONPATH=src python tools/deps.py            with --check: changes nothing; exit code 1 if a list is out of date
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from aligner.run.imports import code_of

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = (ROOT / "dvc.yaml", ROOT / "pipelines/dvc.yaml")
# A stage's command, followed by the list of its deps.
DEPS = re.compile(
    r"(?P<head> cmd: python (?P<script>src/\w+\.py)[^\n]*\n(?P<indent> +)deps:\n)(?P<deps>(?:(?P=indent)- [^\n]+\n)+)"
)


def main(check: bool) -> int:
    outdated = 0
    for pipeline in PIPELINES:
        before = pipeline.read_text(encoding="utf-8")
        after = with_deps(before, ROOT)
        outdated += after != before
        if not check:
            pipeline.write_text(after, encoding="utf-8", newline="\n")
    return int(check and outdated > 0)


def with_deps(pipeline: str, root: Path) -> str:
    """The text of a dvc.yaml with the code in each stage's deps brought up to date; its paths are relative to `root`."""
    return DEPS.sub(
        lambda stage: stage["head"] + "".join(f"{stage['indent']}- {dep}\n" for dep in deps_of(stage, root)), pipeline
    )


def deps_of(stage: re.Match[str], root: Path) -> list[str]:
    listed = [line.strip().removeprefix("- ") for line in stage["deps"].splitlines()]
    others = [dep for dep in listed if not (dep.startswith("src/") and dep.endswith(".py"))]
    code = code_of(root / stage["script"], root / "src")
    return sorted([*others, *(path.relative_to(root).as_posix() for path in code)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when a list is out of date")
    raise SystemExit(main(parser.parse_args().check))
