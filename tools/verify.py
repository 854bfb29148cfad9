"""Runs the whole pipeline afresh in a temporary clone and compares every output with dvc.lock, byte for byte.

The clone holds the last commit, stands in a directory of its own, has an empty DVC cache and none of the outputs, so that every
stage runs. PYTHONHASHSEED, time zone and locale are others than here. What dvc.lock gives as MD5 is compared by it; where the
bytes are at hand too (in Git or in this checkout's DVC cache), by SHA-256, and a difference is told in numbers.

reads   the last commit; docs/verified.json: the kinds of machine that are known to give the bytes of dvc.lock
writes  nothing here; with --record, this kind of machine into docs/verified.json
command python tools/verify.py            also: make verify. As long as dvc repro, which it runs
exits   0 all outputs have the bytes of dvc.lock; 1 one has not, or the pipeline failed: the clone is kept; 130 interrupted
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import locale
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
RECORD = "docs/verified.json"
PATIENCE = 60  # seconds that an interrupted stage has to end by itself
SHOWN = 10  # differences of one output that are told
KIND = ("processor", "instructions", "threads", "device", "torch", "system")  # what the last bits may depend on


def main(source: Path, settings: list[str], record: bool) -> int:
    """Clones, runs, compares and tells; returns the exit code. settings: KEY=VALUE of params.yaml, changed in the clone alone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shelf = Path(tempfile.mkdtemp(prefix="verify-"))
    folder = shelf / "another directory"
    try:
        results = verified(source, folder, settings)
    except (KeyboardInterrupt, Refused) as error:
        shutil.rmtree(shelf)
        print(f"verify: {str(error) or 'interrupted; the clone is removed'}", file=sys.stderr)
        return 1 if isinstance(error, Refused) else 130
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        print(f"verify: {command} ended with exit code {error.returncode}; the clone is kept: {folder}", file=sys.stderr)
        return 1
    here = machine(folder)
    print(table(results), *told(results), *verdict(results, here, read_record(source)), sep="\n")
    if any(result.state != "same" for result in results):
        print(f"The clone is kept: {folder}")
        return 1
    shutil.rmtree(shelf)
    if record and not settings:
        write_record(source, here)
    return 0


def verified(source: Path, folder: Path, settings: list[str]) -> list[Result]:
    """The last commit of `source`, cloned into `folder` and run there: every output with its result."""
    clone(source, folder)
    refuse_outdated(folder)
    for setting in settings:
        set_parameter(folder, *setting.partition("=")[::2])
    committed = folder.parent / "committed"
    set_aside(folder, committed)
    run(folder)
    return compare(folder, committed, cache_of(source))


# ---- The run --------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """Nothing is run; the message says why, and what to do."""


def clone(source: Path, folder: Path) -> None:
    """The last commit of `source` (not its uncommitted changes) in `folder`, with a DVC cache of its own."""
    revision = output("git", "rev-parse", "HEAD", cwd=source)
    print(f"==> cloning {revision[:9]} into {folder}")
    if changed := output("git", "status", "--porcelain", cwd=source):
        print(f"    uncommitted changes ({len(changed.splitlines())} files) are left out, and so are not verified")
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", source, folder], check=True)
    subprocess.run(["git", "checkout", "--quiet", "--detach", revision], cwd=folder, check=True)
    own_cache(folder)


def own_cache(folder: Path) -> None:
    """No cache that the person's own DVC settings name is used, or stages would be restored and not run."""
    output("dvc", "cache", "dir", "--local", ".dvc/cache", cwd=folder)


def refuse_outdated(folder: Path) -> None:
    """Raises Refused when a stage's inputs are not those of dvc.lock, which then speaks of the outputs of others."""
    stages = outdated(folder)
    if stages:
        lines = [f"  {stage}: {', '.join(changes)}" for stage, changes in stages.items()]
        message = "dvc.lock is not of this commit's code, data and parameters; run dvc repro and commit what it writes"
        raise Refused("\n".join([message, *lines]))


def outdated(folder: Path) -> dict[str, list[str]]:
    """For each stage, what changed since dvc.lock was written: files, parameters, its command. Missing outputs do not count."""
    made = set(locked(folder))
    found = {}
    for stage, entries in json.loads(output("dvc", "status", "--json", cwd=folder)).items():
        changes = []
        for entry in entries:
            if isinstance(entry, str):
                changes += [entry]
            else:
                for path, change in entry.get("changed deps", {}).items():
                    names = change if isinstance(change, dict) else [path]
                    changes += [name for name in names if name not in made]
        if changes:
            found[stage] = changes
    return found


def set_parameter(folder: Path, key: str, value: str) -> None:
    """One value of the clone's params.yaml; the key must exist."""
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    *parents, last = key.split(".")
    section = params
    for name in parents:
        section = section.get(name) if isinstance(section, dict) else None
    if not isinstance(section, dict) or last not in section:
        raise Refused(f"{key} is not a parameter of params.yaml")
    section[last] = YAML(typ="safe").load(value)
    yaml.dump(params, folder / "params.yaml")


def set_aside(folder: Path, committed: Path) -> None:
    """Moves the outputs that Git holds out of the clone, so that what is there afterwards was made by the run."""
    for path in locked(folder):
        if (folder / path).exists():
            (committed / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / path, committed / path)


def run(folder: Path) -> None:
    """`dvc repro` to its end; interrupted, it waits for the stage to end, so that nothing goes on behind its back."""
    environment = elsewhere(folder)
    print("==> dvc repro with " + ", ".join(f"{name}={environment[name]}" for name in ("PYTHONHASHSEED", "TZ", "LC_ALL")))
    running = subprocess.Popen(["dvc", "repro"], cwd=folder, env=environment, start_new_session=True)
    try:
        code = running.wait()
    except KeyboardInterrupt:
        end(running)
        raise
    if code:
        raise subprocess.CalledProcessError(code, ["dvc", "repro"])


def end(running: subprocess.Popen) -> None:
    """Interrupts a process and all that it started; kills what has not ended after PATIENCE seconds."""
    os.killpg(running.pid, signal.SIGINT)
    try:
        running.wait(PATIENCE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def elsewhere(folder: Path) -> dict[str, str]:
    """The environment of the run: another hash seed, time zone and locale than here, and this interpreter's programs first."""
    return {
        **program_path(),
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site-cache"),
        "PYTHONHASHSEED": str(secrets.randbelow(2**32)),
        "TZ": "FAR-13:45" if os.environ.get("TZ") != "FAR-13:45" else "FAR+9:30",
        "LC_ALL": another_locale(),
    }


def another_locale() -> str:
    """A locale of this system that is not in use: one of a language if there is one, as it may write numbers another way."""
    used = locale.setlocale(locale.LC_ALL)
    current = {used.split(";")[0].partition("=")[2] or used, os.environ.get("LC_ALL"), os.environ.get("LANG")}
    installed = output("locale", "-a").splitlines() if shutil.which("locale") else []
    others = sorted(({"C", *installed} - current) or {"C"}, key=lambda name: (name.startswith(("C", "POSIX", "en")), name))
    return others[0]


def program_path() -> dict[str, str]:
    """This environment with the folder of this interpreter first on the path: its dvc, and its python for the stages."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {name: value for name, value in os.environ.items() if name != "DVC_ROOT"} | {"PATH": path}


def output(*command: str, cwd: Path | None = None) -> str:
    """What a short command prints; raises CalledProcessError with its own message on the screen when it fails."""
    return subprocess.run(command, cwd=cwd, env=program_path(), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


# ---- The comparison -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """An output of the fresh run beside what dvc.lock names.

    state: same, differs, missing (not made), extra (made, but not in dvc.lock), or that of dvc.lock while Git or the cache
    holds other bytes.
    """

    path: str
    sha256: str
    beside: str  # what it was compared with: Git, cache, or dvc.lock where only its MD5 is known
    state: str
    found: Path
    reference: Path | None  # the expected bytes, where they are at hand


def compare(folder: Path, committed: Path, cache: Path) -> list[Result]:
    """Every output in dvc.lock of the clone's last commit with the one that stands in the clone; folders file by file."""
    return [
        result
        for path, md5 in locked(folder).items()
        for result in (of_folder if md5.endswith(".dir") else of_file)(folder, path, md5, committed, cache)
    ]


def locked(folder: Path) -> dict[str, str]:
    """Path and MD5 of every output in dvc.lock as committed (of a folder: the MD5 of its listing, with .dir at the end)."""
    lock = YAML(typ="safe", pure=True).load(output("git", "show", "HEAD:dvc.lock", cwd=folder))
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", [])}


def of_file(folder: Path, path: str, md5: str, committed: Path, cache: Path) -> list[Result]:
    cached = cache / "files" / "md5" / md5[:2] / md5[2:]
    beside, reference = next(
        ((name, file) for name, file in (("Git", committed / path), ("cache", cached)) if file.is_file()), ("dvc.lock", None)
    )
    found = folder / path
    if not found.is_file():
        return [Result(path, "", beside, "missing", found, reference)]
    sha256 = digest(found, "sha256")
    if digest(found, "md5") != md5:
        state = "differs"
    elif reference and digest(reference, "sha256") != sha256:
        state = f"{'Git' if beside == 'Git' else 'the cache'} holds other bytes than dvc.lock"
    else:
        state = "same"
    return [Result(path, sha256, beside, state, found, reference)]


def of_folder(folder: Path, path: str, md5: str, committed: Path, cache: Path) -> list[Result]:
    """Its files one by one, if the listing that dvc.lock names is in the cache or is that of the folder found; else the whole."""
    found = folder / path
    here = listing(found)
    expected = cached_listing(cache, md5) or (here if listing_md5(here) == md5 else None)
    if expected is None:
        return [Result(path, hashlib.sha256(json.dumps(here).encode()).hexdigest(), "dvc.lock", "differs", found, None)]
    results = [
        result for name, file_md5 in expected.items() for result in of_file(folder, f"{path}/{name}", file_md5, committed, cache)
    ]
    extra = [name for name in here if name not in expected]
    return results + [Result(f"{path}/{name}", digest(found / name, "sha256"), "", "extra", found / name, None) for name in extra]


def listing(folder: Path) -> dict[str, str]:
    """Relative path and MD5 of every file in a folder, in DVC's order."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: digest(files[name], "md5") for name in sorted(files)}


def listing_md5(files: dict[str, str]) -> str:
    """DVC's name of a folder: the MD5 of its listing as JSON."""
    entries = [{"md5": md5, "relpath": name} for name, md5 in files.items()]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def cached_listing(cache: Path, md5: str) -> dict[str, str] | None:
    file = cache / "files" / "md5" / md5[:2] / md5[2:]
    if not file.is_file() or digest(file, "md5") != md5.removesuffix(".dir"):
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(file.read_bytes())}


def digest(file: Path, algorithm: str) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def cache_of(source: Path) -> Path:
    return source / output("dvc", "cache", "dir", cwd=source)


# ---- How far two outputs are apart ----------------------------------------------------------------------------------


def differences(reference: Path, found: Path, kind: str) -> list[str]:
    """One line for each value, series, tensor or field whose values differ, the furthest apart first. kind: the file's suffix."""
    try:
        one, other = read_series(reference, kind), read_series(found, kind)
    except (ValueError, KeyError, OSError):  # damaged, or not what its name says
        one, other = of_bytes(reference), of_bytes(found)
    lines = [difference(name, one.get(name), other.get(name)) for name in {**one, **other}]
    apart = sorted(filter(None, lines), key=lambda line: -line[0])
    rest = [f"and {len(apart) - SHOWN} more"] if len(apart) > SHOWN else []
    return [text for _, text in apart[:SHOWN]] + rest or ["the same values, written in another way"]


def difference(name: str, expected: np.ndarray | None, found: np.ndarray | None) -> tuple[float, str] | None:
    """How far a series is from the expected one, relative to its largest value, and a line that says so; None if nowhere."""
    if expected is None or found is None:
        return np.inf, f"{name}: {'not expected' if expected is None else 'is missing'}"
    if expected.shape != found.shape:
        return np.inf, f"{name}: {shape(found)} values, expected {shape(expected)}"
    if expected.dtype.kind != "f" or found.dtype.kind != "f":
        unequal = np.array([str(a) != str(b) for a, b in zip(expected.flat, found.flat, strict=True)])
        return (unequal.mean(), words(name, expected, found, unequal)) if unequal.any() else None
    unequal = (expected != found) & ~(np.isnan(expected) & np.isnan(found))
    if not unequal.any():
        return None
    gap = np.abs(expected - found)[unequal].max()
    scale = np.nanmax(np.abs(expected), initial=0)
    relative = gap / scale if scale else np.inf
    line = f"{gap:.2g} apart, relative {relative:.2g}"
    if unequal.size == 1:
        return relative, f"{name}: {found.item()}, not {expected.item()}: {line}"
    return relative, f"{name}: up to {line}; {unequal.sum():,} of {unequal.size:,} values differ"


def words(name: str, expected: np.ndarray, found: np.ndarray, unequal: np.ndarray) -> str:
    if unequal.size == 1:
        return f"{name}: {found.item()}, not {expected.item()}"
    return f"{name}: {unequal.sum():,} of {unequal.size:,} differ"


def shape(values: np.ndarray) -> str:
    return "×".join(map(str, values.shape))


def read_series(file: Path, kind: str) -> dict[str, np.ndarray]:
    """The content as named series: float arrays for numbers, arrays of objects for all else."""
    readers = {".json": of_json, ".csv": of_csv, ".safetensors": of_tensors, ".jsonl": of_rows}
    return readers.get(kind, of_lines)(file)


def of_json(file: Path) -> dict[str, np.ndarray]:
    """Each value under its dotted name."""
    return {name: array([value]) for name, value in flat(json.loads(file.read_bytes()))}


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield name, value
    else:
        for key, item in items:
            yield from flat(item, f"{name}.{key}" if name else str(key))


def of_csv(file: Path) -> dict[str, np.ndarray]:
    """Each column of numbers, one series for every combination of the columns of text: `value of training`."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows:
        return of_lines(file)
    measures = [column for column in rows[0] if all(is_number(row[column]) for row in rows)]
    columns: dict[str, list[float]] = {}
    for row in rows:
        labels = ", ".join(value for column, value in row.items() if column not in measures)
        for column in measures:
            columns.setdefault(f"{column} of {labels}" if labels else column, []).append(float(row[column]))
    return {name: array(values) for name, values in columns.items()}


def is_number(text: str | None) -> bool:
    return bool(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|nan|[-+]?inf", text or "", re.IGNORECASE))


def of_tensors(file: Path) -> dict[str, np.ndarray]:
    """Each tensor, in double precision."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.double().numpy() for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise ValueError(error) from error


def of_rows(file: Path) -> dict[str, np.ndarray]:
    """Each field over all rows of a JSON-lines file, as text."""
    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    fields = dict.fromkeys(field for row in rows for field in row)
    return {field: array([json.dumps(row.get(field)) for row in rows]) for field in fields}


def of_lines(file: Path) -> dict[str, np.ndarray]:
    return {"lines": array(file.read_text(encoding="utf-8").splitlines())}


def of_bytes(file: Path) -> dict[str, np.ndarray]:
    return {"bytes": np.frombuffer(file.read_bytes(), dtype=np.uint8)}


def array(values: list[Any]) -> np.ndarray:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return np.array(values, dtype=float if numbers else object)


# ---- The machine ----------------------------------------------------------------------------------------------------


def machine(folder: Path) -> dict[str, Any]:
    """What the last bits may depend on: processor and the instructions that torch uses of it, threads, device, torch's build."""
    import torch

    settings = model_settings(folder)
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": settings.get("threads") or torch.get_num_threads(),
        "device": device(settings.get("device", "auto")),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def model_settings(folder: Path) -> dict[str, Any]:
    params = YAML(typ="safe", pure=True).load(folder / "params.yaml") or {}
    return params.get("models", {}).get(params.get("model"), {})


def device(wanted: str) -> str:
    """cpu, or the name of the accelerator that the stages used."""
    import torch

    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if wanted in ("auto", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def processor() -> str:
    """Its name; on Linux with vendor, family and model, since virtual machines often hide the name."""
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        fields = dict(re.findall(r"^(vendor_id|cpu family|model|model name)\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE))
        if len(fields) == 4:
            return "{model name} ({vendor_id}, family {cpu family}, model {model})".format_map(fields)
    if platform.system() == "Darwin":
        return output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or platform.machine()


def read_record(source: Path) -> dict[str, Any]:
    """docs/verified.json: the SHA-256 of a dvc.lock, and the machines on which a fresh run gave its bytes."""
    file = source / RECORD
    return json.loads(file.read_bytes()) if file.is_file() else {"dvc.lock": None, "machines": []}


def write_record(source: Path, here: dict[str, Any]) -> None:
    """Adds this machine; of another dvc.lock, the machines of the one before go."""
    lock = hashlib.sha256(subprocess.check_output(["git", "show", "HEAD:dvc.lock"], cwd=source)).hexdigest()
    record = read_record(source)
    machines = record["machines"] if record["dvc.lock"] == lock else []
    if not is_known(here, {"machines": machines}):
        machines = [*machines, here]
    text = json.dumps({"dvc.lock": lock, "machines": machines}, indent=2, ensure_ascii=False) + "\n"
    (source / RECORD).write_text(text, encoding="utf-8", newline="\n")
    print(f"{RECORD} names this machine: commit it")


def is_known(here: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether a machine of this kind has given the bytes of dvc.lock before."""
    return any(all(known[name] == here[name] for name in KIND) for known in record["machines"])


# ---- What is told ---------------------------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    width = max(len("output"), *(len(result.path) for result in results))
    rows = [("output", "SHA-256 of the fresh run", "beside", "result")]
    rows += [(result.path, result.sha256, result.beside, result.state) for result in results]
    return "\n".join(f"{path:{width}s}  {sha256:64s}  {beside:8s}  {state}" for path, sha256, beside, state in rows)


def told(results: list[Result]) -> Iterator[str]:
    """For each output that differs, how far."""
    for result in results:
        if result.state == "differs":
            yield f"\n{result.path} differs:"
            if result.reference is None:
                yield "  how far is not known: the expected bytes are neither in Git nor in the DVC cache (dvc pull, if shared)"
            else:
                yield from (f"  {line}" for line in differences(result.reference, result.found, Path(result.path).suffix))


def verdict(results: list[Result], here: dict[str, Any], record: dict[str, Any]) -> Iterator[str]:
    same = sum(result.state == "same" for result in results)
    yield f"\n{same} of {len(results)} outputs have the bytes of dvc.lock"
    yield "this machine: " + described(here)
    if same == len(results):
        return
    if is_known(here, record):
        yield f"A machine of this kind gave the bytes of dvc.lock ({RECORD}): a difference here is a fault."
    else:
        yield f"{RECORD} does not name this kind of machine, so last digits may differ (docs/reproducibility.md). It names:"
        yield from [f"  {described(known)}" for known in record["machines"]] or ["  none"]


def described(here: dict[str, Any]) -> str:
    return ", ".join(
        [here["processor"], here["instructions"], f"{here['threads']} threads", f"on {here['device']}"]
        + [f"torch {here['torch']}", f"Python {here['python']}", here["system"]]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help=f"when all bytes agree, name this machine in {RECORD}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value of a parameter in the clone, to see what depends on it: models.mini.threads=1",
    )
    arguments = parser.parse_args()
    sys.exit(main(ROOT, arguments.set, arguments.record))
