"""Runs the whole pipeline afresh in a temporary clone and compares every output with dvc.lock, byte for byte.

The clone is of the last commit, in another directory, with an empty DVC cache and no outputs, so that every stage runs; its
PYTHONHASHSEED, time zone and locale differ from those here. Outputs are compared by the MD5 in dvc.lock, and by SHA-256 if the
expected bytes are in Git or in this checkout's DVC cache; the report then gives the size of a difference.

reads   the last commit; docs/verified.json (machines that are known to reproduce dvc.lock byte for byte), docs/weights.json
writes  nothing here; with --record, this machine into docs/verified.json and the digest of the weights into docs/weights.json
command python tools/verify.py            or: make verify. It runs dvc repro and takes as long
exits   0 if all outputs have the bytes of dvc.lock; 1 if one differs or the pipeline failed (the clone is kept); 130 interrupted
"""

from __future__ import annotations

import argparse
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
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import weights_digest
from compare_outputs import Result, compare, difference_lines

ROOT = Path(__file__).resolve().parent.parent
RECORD = "docs/verified.json"
GRACE_SECONDS = 60  # time for an interrupted stage to end by itself
KIND = ("processor", "instructions", "threads", "device", "torch", "system")  # the last bits of a result may depend on these


def main(source: Path, settings: list[str], record: bool) -> int:
    """Clones, runs, compares, reports; returns the exit code. settings: KEY=VALUE of params.yaml, changed only in the clone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shelf = Path(tempfile.mkdtemp(prefix="verify-"))
    folder = shelf / "another directory"
    try:
        results = run_afresh(source, folder, settings)
    except (KeyboardInterrupt, Refused) as error:
        shutil.rmtree(shelf)
        print(f"verify: {str(error) or 'interrupted; the clone is removed'}", file=sys.stderr)
        return 1 if isinstance(error, Refused) else 130
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        print(f"verify: {command} ended with exit code {error.returncode}; the clone is kept: {folder}", file=sys.stderr)
        return 1
    here = machine(folder)
    digests = weights_digest.read(source, locked(source))
    far = difference_lines(results, lambda result: weights_digest.line(result, digests))
    print(table(results), *far, *verdict(results, here, read_record(source)), sep="\n")
    if any(result.state != "same" for result in results):
        print(f"The clone is kept: {folder}")
        return 1
    if record and not settings:
        write_record(source, here)
        weights_digest.write(source, locked(folder), folder)
    shutil.rmtree(shelf)
    return 0


def run_afresh(source: Path, folder: Path, settings: list[str]) -> list[Result]:
    """Clones the last commit of `source` into `folder`, runs it there, and compares every output."""
    clone(source, folder)
    refuse_outdated(folder)
    for setting in settings:
        set_parameter(folder, *setting.partition("=")[::2])
    committed = folder.parent / "committed"
    set_aside(folder, committed)
    run(folder)
    return compare(locked(folder), folder, committed, cache_of(source))


# ---- The run --------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """Nothing was run; the message gives the reason and the next command."""


def clone(source: Path, folder: Path) -> None:
    """Clones the last commit of `source`, without uncommitted changes, into `folder`, with its own DVC cache."""
    revision = output("git", "rev-parse", "HEAD", cwd=source)
    print(f"==> cloning {revision[:9]} into {folder}")
    if changed := output("git", "status", "--porcelain", cwd=source):
        print(f"    uncommitted changes ({len(changed.splitlines())} files) are left out and not verified")
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", source, folder], check=True)
    subprocess.run(["git", "checkout", "--quiet", "--detach", revision], cwd=folder, check=True)
    own_cache(folder)


def own_cache(folder: Path) -> None:
    """Gives the clone its own cache; with the user's cache, DVC would restore stages instead of running them."""
    output("dvc", "cache", "dir", "--local", ".dvc/cache", cwd=folder)


def refuse_outdated(folder: Path) -> None:
    """Raises Refused if a stage's inputs differ from those in dvc.lock, since its outputs could not be compared."""
    stages = outdated(folder)
    if stages:
        lines = [f"  {stage}: {', '.join(changes)}" for stage, changes in stages.items()]
        message = "dvc.lock belongs to other code, data or parameters than this commit's; run dvc repro and commit its results"
        raise Refused("\n".join([message, *lines]))


def outdated(folder: Path) -> dict[str, list[str]]:
    """For each stage of dvc.yaml, the files, parameters and commands that changed since dvc.lock. Missing outputs are ignored."""
    made = set(locked(folder))
    found = {}
    for stage, entries in json.loads(output("dvc", "status", "--json", "dvc.yaml", cwd=folder)).items():
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
    """Changes one value in the clone's params.yaml; the key must exist."""
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
    """Moves the outputs in Git out of the clone, so every output that exists afterwards was made by the run."""
    for path in locked(folder):
        if (folder / path).exists():
            (committed / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / path, committed / path)


def locked(folder: Path) -> dict[str, str]:
    """Path and MD5 of every output in the committed dvc.lock. A folder's MD5 is that of its listing and ends in .dir."""
    lock = YAML(typ="safe", pure=True).load(output("git", "show", "HEAD:dvc.lock", cwd=folder))
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", [])}


def run(folder: Path) -> None:
    """Runs `dvc repro`. If interrupted, it waits for the stage to end, so that no process is left running."""
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
    """Interrupts a process and its children; kills those that have not ended after GRACE_SECONDS."""
    os.killpg(running.pid, signal.SIGINT)
    try:
        running.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def elsewhere(folder: Path) -> dict[str, str]:
    """The run's environment: hash seed, time zone and locale differ from those here; this interpreter's programs come first."""
    return {
        **program_path(),
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site-cache"),
        "PYTHONHASHSEED": str(secrets.randbelow(2**32)),
        "TZ": "FAR-13:45" if os.environ.get("TZ") != "FAR-13:45" else "FAR+9:30",
        "LC_ALL": another_locale(),
    }


def another_locale() -> str:
    """An installed locale other than the current one, if possible of another language, which may format numbers differently."""
    used = locale.setlocale(locale.LC_ALL)
    current = {used.split(";")[0].partition("=")[2] or used, os.environ.get("LC_ALL"), os.environ.get("LANG")}
    installed = output("locale", "-a").splitlines() if shutil.which("locale") else []
    others = sorted(({"C", *installed} - current) or {"C"}, key=lambda name: (name.startswith(("C", "POSIX", "en")), name))
    return others[0]


def cache_of(source: Path) -> Path:
    return source / output("dvc", "cache", "dir", cwd=source)


def program_path() -> dict[str, str]:
    """This environment with the interpreter's folder first on the path, so its dvc and python are used."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {name: value for name, value in os.environ.items() if name != "DVC_ROOT"} | {"PATH": path}


def output(*command: str, cwd: Path | None = None) -> str:
    """The output of a short command; raises CalledProcessError when it fails, with the command's own message on the terminal."""
    return subprocess.run(command, cwd=cwd, env=program_path(), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


# ---- The machine ----------------------------------------------------------------------------------------------------


def machine(folder: Path) -> dict[str, Any]:
    """The last bits of a result may depend on these: processor, torch's instruction set, threads, device, torch's build."""
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
    """The processor's name; on Linux also vendor, family and model, since virtual machines often hide the name."""
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        fields = dict(re.findall(r"^(vendor_id|cpu family|model|model name)\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE))
        if len(fields) == 4:
            return "{model name} ({vendor_id}, family {cpu family}, model {model})".format_map(fields)
    if platform.system() == "Darwin":
        return output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or platform.machine()


def read_record(source: Path) -> dict[str, Any]:
    """Reads docs/verified.json: the SHA-256 of a dvc.lock, and the machines on which a fresh run reproduced it."""
    file = source / RECORD
    return json.loads(file.read_bytes()) if file.is_file() else {"dvc.lock": None, "machines": []}


def write_record(source: Path, here: dict[str, Any]) -> None:
    """Adds this machine to docs/verified.json, and removes the machines of an earlier dvc.lock."""
    lock = hashlib.sha256(subprocess.check_output(["git", "show", "HEAD:dvc.lock"], cwd=source)).hexdigest()
    record = read_record(source)
    machines = record["machines"] if record["dvc.lock"] == lock else []
    if not is_known(here, {"machines": machines}):
        machines = [*machines, here]
    text = json.dumps({"dvc.lock": lock, "machines": machines}, indent=2, ensure_ascii=False) + "\n"
    (source / RECORD).write_text(text, encoding="utf-8", newline="\n")
    print(f"{RECORD} names this machine: commit it")


def is_known(here: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether a machine of this kind is on record for the bytes of dvc.lock."""
    return any(all(known[name] == here[name] for name in KIND) for known in record["machines"])


# ---- The report ----------------------------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    width = max(len("output"), *(len(result.path) for result in results))
    rows = [("output", "SHA-256 of the fresh run", "beside", "result")]
    rows += [(result.path, result.sha256, result.beside, result.state) for result in results]
    return "\n".join(f"{path:{width}s}  {sha256:64s}  {beside:8s}  {state}" for path, sha256, beside, state in rows)


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
    parser.add_argument("--record", action="store_true", help=f"if all bytes agree, add this machine to {RECORD}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter's value in the clone, to test its effect: models.mini.threads=1",
    )
    arguments = parser.parse_args()
    sys.exit(main(ROOT, arguments.set, arguments.record))
