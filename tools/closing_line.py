"""Ends `make repro`: how the outputs in this checkout compare with those that the last commit records, in one line.

reads   dvc.lock of the last commit and of this checkout, the outputs, docs/verified.json, docs/weights.json
writes  nothing
command python tools/closing_line.py        (exit code 0, whatever it finds: make verify is the strict check)
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import weights_digest
from compare_outputs import Result, compare, difference, read_series
from verify import ROOT, cache_of, is_known, locked, machine, output, read_record

LAST_DIGITS = 1e-3  # relative; what differs by less is the same result in other last digits


def main(root: Path) -> str:
    """The line."""
    committed = locked(root)
    if changed := changed_inputs(root):
        return f"{len(committed)} outputs, not compared with the last commit, since inputs differ: {shortened(changed)}"
    with tempfile.TemporaryDirectory() as folder:
        results = compare(committed, root, in_git(root, committed, Path(folder)), cache_of(root))
        return sentence(results, weights_digest.read(root, committed), machine(root), read_record(root))


def changed_inputs(root: Path) -> list[str]:
    """The files and parameters, other than outputs, on which the last run depended in another version than the last commit's."""
    made = locked(root)
    before = inputs(YAML(typ="safe", pure=True).load(output("git", "show", "HEAD:dvc.lock", cwd=root)), made)
    now = inputs(YAML(typ="safe", pure=True).load((root / "dvc.lock").read_text(encoding="utf-8")), made)
    return sorted({name.partition(" ")[2] for name in {**before, **now} if before.get(name) != now.get(name)})


def inputs(lock: dict[str, Any], made: dict[str, str]) -> dict[str, Any]:
    """`stage name` -> version of each input in a dvc.lock."""
    found: dict[str, Any] = {}
    for stage, entry in lock["stages"].items():
        found |= {f"{stage} {dep['path']}": dep.get("md5") for dep in entry.get("deps", []) if dep["path"] not in made}
        found |= {f"{stage} {key}": value for values in entry.get("params", {}).values() for key, value in values.items()}
    return found


def in_git(root: Path, paths: dict[str, str], folder: Path) -> Path:
    """Writes the outputs that the last commit holds into `folder`."""
    for path in output("git", "ls-tree", "-r", "--name-only", "HEAD", "--", *paths, cwd=root).splitlines():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(subprocess.check_output(["git", "show", f"HEAD:{path}"], cwd=root))
    return folder


def sentence(results: list[Result], digests: dict[str, Any], here: dict[str, Any], record: dict[str, Any]) -> str:
    """What a newcomer sees: how many outputs have the recorded bytes, how far the others are, and why."""
    same = [result for result in results if result.state == "same"]
    others = [result for result in results if result.state != "same"]
    head = f"{len(results)} outputs: {len(same)} with the recorded bytes"
    if not others:
        return head
    sizes = {result.path: size(result, digests) for result in others}
    close = [value for value in sizes.values() if value is not None and value < LAST_DIGITS]
    parts = [f"{len(close)} differ in last digits (largest {max(close):.0e}, relative)"] if close else []
    if far := [path for path, value in sizes.items() if value is not None and value >= LAST_DIGITS]:
        parts.append(f"{len(far)} differ by more ({shortened(far)})")
    if unknown := [path for path, value in sizes.items() if value is None]:
        parts.append(f"{len(unknown)} differ, with no numbers to compare ({shortened(unknown)})")
    metrics = [result.path for result in others if result.path.startswith("metrics/")]
    return (
        f"{head}, {', '.join(parts)}: {reason(here, record)}; metrics {'differ: ' + shortened(metrics) if metrics else 'equal'}"
    )


def reason(here: dict[str, Any], record: dict[str, Any]) -> str:
    """Why bytes may differ: whether this kind of machine gave the recorded ones."""
    if is_known(here, record):
        return "this kind of machine gave the recorded bytes before, so run make verify"
    recorded = " or ".join(machine["processor"] for machine in record["machines"]) or "a recorded one"
    return f"this processor is not {recorded}, but {here['processor']}"


def size(result: Result, digests: dict[str, Any]) -> float | None:
    """The largest relative difference of an output's numbers; infinite if it is missing or has others; None if it has none."""
    if result.state != "differs":
        return float("inf")
    kind = Path(result.path).suffix
    if result.reference is None:
        return weights_digest.distance_of(result, digests)
    if kind not in (".json", ".csv", ".safetensors"):
        return None
    one, other = read_series(result.reference, kind), read_series(result.found, kind)
    found = [difference(name, one.get(name), other.get(name)) for name in {**one, **other}]
    return max((apart[0] for apart in found if apart), default=0.0)


def shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


if __name__ == "__main__":
    print("==> " + main(ROOT))
