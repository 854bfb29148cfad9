"""Ours against stock trl 1.16, side by side on this machine: SFT, DPO, generation, prepare, and the pipeline as a whole.

Stock is trl, transformers and peft as they come, with the settings that suit a CPU best (float32, no checkpointing, the reference
log-probabilities of DPO computed once): not trl's defaults, which are many times slower. Both ways train from the same ids,
samples and seeds, each in a process of its own, and take turns step by step; a ratio is the median over steps of stock's time
over ours, with an exact 95% interval of that median. A third way, helped, is stock with what is known to help it: a process that
keeps freed memory, as ours does (aligner/model/runtime.py), and for SFT transformers' own remedy against padding
(train_sampling_strategy: batch_rebalance, over two micro-batches a step). The second data set, skewed, is made from the default
rows by a rule: answers are cut, or lengthened by those of the following rows, to lengths drawn from a lognormal distribution
(sigma 1) with the default mean.

A first part runs the pipeline from nothing in a temporary clone of the working tree, and then three times when nothing is stale.
The other parts take its data and adapters; with --skip-repro, those of the working tree.

command make bench          or: PYTHONPATH=src python benchmarks/bench.py [--quick] [--skip-repro]
It prints a table, and as its last line a JSON document: the figures of TARGETS by dotted names, and all others in sections.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import chain, cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from ruamel.yaml import YAML

import flops
from legs import ROOT, Leg, take_turns

# The first figures of the document, each with its target on two quiet cores, if it has one.
TARGETS: dict[str, tuple[str, float] | None] = {
    "sft.speedup": ("at least", 2.0),
    "sft.max_loss_difference": ("at most", 1e-4),
    "sft.mfu": ("at least", 0.4),
    "dpo.speedup": ("at least", 1.8),
    "dpo.max_loss_difference": ("at most", 1e-4),
    "dpo.mfu": None,
    "generate.speedup": ("at least", 5.0),
    "prepare.speedup": ("at least", 5.0),
    "repro.cold_s": ("at most", 180.0),
    "repro.noop_s": ("at most", 2.0),
}
BOUNDS = TARGETS | {"sft.skewed.speedup": TARGETS["sft.speedup"], "dpo.skewed.speedup": TARGETS["dpo.speedup"]}
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "dvc")
STAGES = ("prepare", "sft", "dpo", "generate", "score")
WARM_UP = 2
MODEL = "dpo"
SIGMA = 1.0


def main(options: argparse.Namespace) -> None:
    started = time.monotonic()
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    threads: int = options.threads or params["models"][params["model"]]["threads"] or os.cpu_count() or 1
    found: dict[str, Any] = {"machine": machine(threads)}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        home = ROOT
        if not options.skip_repro:
            home = clone(scratch / "clone")
            found["repro"] = repro(home)
        require_outputs(home)
        for kind in ("sft", "dpo"):
            found[kind] = training(kind, params, home, scratch, threads, 7 if options.quick else 50)
        found["generate"] = generation(home, scratch, threads, *((6, 5) if options.quick else (48, 5)))
    found["prepare"] = preparing(300 if options.quick else 2000)
    found["seconds"] = round(time.monotonic() - started, 1)
    show(found)
    print(json.dumps(document(found)))


# ---- Arithmetic ------------------------------------------------------------------------------------------------------


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval that holds the median of independent draws with at least this confidence, whatever their distribution.

    Between the k-th smallest and the k-th largest value, where k is the largest number with P(Binomial(n, 1/2) < k) at most half
    of what may be missed; fewer than six values cannot promise 95%, and their range is what there is.
    """
    n, ordered = len(values), sorted(values)
    tails = [sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(1, n // 2 + 1)]
    k = max(1, sum(tail <= (1 - confidence) / 2 for tail in tails))
    return ordered[k - 1], ordered[n - k]


def ratio(over: list[float], under: list[float]) -> dict[str, Any]:
    """The median ratio of measurements from the same rounds, and its interval."""
    quotients = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": median(quotients), "interval": median_interval(quotients), "n": len(quotients)}


def skewed(kind: str, rows: list[dict[str, Any]], longest: int, seed: int) -> list[dict[str, Any]]:
    """`rows` with answers of lognormal lengths (see above), at least 2 tokens long and no row longer than `longest`."""
    columns = {"sft": ("answer",), "dpo": ("chosen_ids", "rejected_ids")}[kind]
    parts = [split(row) if kind == "sft" else dict(row) for row in rows]
    rng = random.Random(seed)
    for column in columns:
        answers = [part[column] for part in parts]
        centre = math.log(sum(map(len, answers)) / len(answers)) - SIGMA**2 / 2
        for place, part in enumerate(parts):
            room = longest - len(part["prompt_ids"])
            length = min(max(2, round(rng.lognormvariate(centre, SIGMA))), room)
            stream = chain.from_iterable(answer[:-1] for answer in islice(cycle(answers), place, None))
            part[column] = [*islice(stream, length - 1), answers[place][-1]]
    return [join(part) if kind == "sft" else part for part in parts]


def split(row: dict[str, Any]) -> dict[str, Any]:
    """Prompt and answer of an SFT row: the tokens before the first trained one, and the rest."""
    start = next(place for place, label in enumerate(row["labels"]) if label != -100)
    return {"id": row["id"], "prompt_ids": row["input_ids"][:start], "answer": row["input_ids"][start:]}


def join(part: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `split` for a row whose answer is trained as a whole."""
    prompt, answer = part["prompt_ids"], part["answer"]
    return {"id": part["id"], "input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


# ---- Training --------------------------------------------------------------------------------------------------------


def training(kind: str, params: dict[str, Any], home: Path, scratch: Path, threads: int, steps: int) -> dict[str, Any]:
    """Measures one stage on both data sets; the headline is from the default data, the loss difference is the larger one."""
    entry = params["models"][params["model"]]
    config = json.loads((ROOT / entry["path"] / "config.json").read_text(encoding="utf-8"))
    shape = flops.llama(config, params["lora"]["r"])
    batch = entry[kind]["per_device_train_batch_size"] * entry[kind]["gradient_accumulation_steps"]
    prepared = read_rows(home / f"data/prepared/{kind}_train.jsonl")[: steps * batch]
    steps = min(steps, len(prepared) // batch)
    sets = {"default": prepared, "skewed": skewed(kind, prepared, entry["max_length"], params["seed"])}
    found = {}
    for name, rows in sets.items():
        path = write_rows(scratch / f"{kind}-{name}.jsonl", rows)
        description = {"rows": path, "params": ROOT / "params.yaml", "adapter": home / "models/sft" if kind == "dpo" else None}
        found[name] = comparison(kind, race(kind, description, threads, steps, f"{kind}, {name} data"), shape)
    difference = max(each["max_loss_difference"] for each in found.values())
    return {**{key: found["default"][key] for key in ("speedup", "mfu")}, "max_loss_difference": difference, **found}


def race(kind: str, description: dict[str, Any], threads: int, steps: int, shown: str) -> dict[str, list[dict[str, Any]]]:
    """Runs all ways and the matrix products in turn, step by step."""
    ways = ("ours", "stock", "helped")
    with contextlib.ExitStack() as running:
        legs = [running.enter_context(Leg(way, threads, kind=kind, way=way, **description)) for way in ways]
        legs.append(running.enter_context(Leg("matmul", threads, kind="matmul", params=description["params"])))
        starts = {leg.name: leg.go() for leg in legs}
        answers = take_turns(legs, steps, shown)
    return {name: [starts[name], *answers[name]] for name in starts}


def comparison(kind: str, answers: dict[str, list[dict[str, Any]]], shape: flops.Shape) -> dict[str, Any]:
    """The figures of one comparison. The first answer of each leg is its start; the first WARM_UP steps are not timed.

    mfu counts every different token once (a pair's prompt, too), so it cannot be raised by saving work;
    mfu_as_stacked counts the prompt of a pair twice, as trl lays it out.
    """
    starts = {name: leg[0] for name, leg in answers.items()}
    steps = {name: leg[1:] for name, leg in answers.items()}
    timed = {name: leg[WARM_UP:] for name, leg in steps.items()}
    walls = {name: [step["wall"] for step in leg] for name, leg in timed.items()}
    rates = [step["flops"] / step["wall"] for step in timed["matmul"]]
    rows = [step["rows"] for step in timed["stock"]]
    tokens = list(map(flops.tokens, rows))
    needed = {once: [flops.training(shape, step, prompt_once=once) for step in rows] for once in (True, False)}
    found: dict[str, Any] = {"steps": len(steps["ours"]), "matmul_gflops": median(rates) / 1e9, "ways": {}}
    for way in (name for name in answers if name != "matmul"):
        found["ways"][way] = {
            "tokens_per_s": median(n / wall for n, wall in zip(tokens, walls[way], strict=True)),
            "step_s": median(walls[way]),
            "step_cpu_s": median(step["cpu"] for step in timed[way]),
            "mfu": utilisation(needed[True], walls[way], rates),
            "peak_mb": max(step["peak_mb"] for step in steps[way]),
            "losses": [step["loss"] for step in steps[way]],
        }
        if way != "ours":
            found["ways"][way]["fill"] = sum(tokens) / sum(step["slots"] for step in timed[way])
            found["ways"][way]["ours_is_faster"] = ratio(walls[way], walls["ours"])["median"]
    ours, stock = found["ways"]["ours"], found["ways"]["stock"]
    faster = ratio(walls["stock"], walls["ours"])
    found |= {"speedup": faster["median"], "speedup_interval": faster["interval"], "timed_steps": faster["n"]}
    found["speedup_cpu"] = ratio(*([step["cpu"] for step in timed[way]] for way in ("stock", "ours")))["median"]
    found["max_loss_difference"] = max(abs(a - b) for a, b in zip(ours["losses"], stock["losses"], strict=True))
    found["mfu"] = ours["mfu"]
    if kind == "dpo":
        found["mfu_as_stacked"] = utilisation(needed[False], walls["ours"], rates)
        found["reference_s"] = {way: starts[way]["reference"] for way in ("ours", "stock")}
        for clock, name in (("wall", "speedup_with_reference"), ("cpu", "speedup_with_reference_cpu")):
            whole = {way: starts[way]["reference"][clock] + sum(step[clock] for step in steps[way]) for way in ("ours", "stock")}
            found[name] = whole["stock"] / whole["ours"]
    return found


def utilisation(needed: Sequence[float], walls: list[float], rates: list[float]) -> float:
    """MFU: needed FLOPs over those that matrix products would have made in the same time, at the rate of the same round."""
    return median(work / (wall * rate) for work, wall, rate in zip(needed, walls, rates, strict=True))


# ---- Generation and prepare ------------------------------------------------------------------------------------------


def generation(home: Path, scratch: Path, threads: int, count: int, rounds: int) -> dict[str, Any]:
    """The stage's batches beside transformers' generate, one prompt at a time; the answers must be equal."""
    rows = read_rows(home / "data/prepared/prompts.jsonl")[:count]
    path = write_rows(scratch / "prompts.jsonl", rows)
    description = {"rows": path, "params": ROOT / "params.yaml", "adapter": home / "models" / MODEL}
    with contextlib.ExitStack() as running:
        ways = ("ours", "stock")
        legs = [running.enter_context(Leg(way, threads, kind="generate", way=way, **description)) for way in ways]
        for leg in legs:
            leg.go()
        answers = take_turns(legs, rounds, "generation")
    reference = answers["stock"][0]["answers"]
    given = [reply["answers"] for each in answers.values() for reply in each]
    different = [key for key, answer in reference.items() if any(one[key] != answer for one in given)]
    if different:
        raise SystemExit(f"benchmark: answers depend on the batch: {', '.join(different)}")
    tokens = sum(answer["answer_tokens"] for answer in reference.values())
    walls = {way: [reply["wall"] for reply in each] for way, each in answers.items()}
    faster = ratio(walls["stock"], walls["ours"])
    return {
        "speedup": faster["median"],
        "speedup_interval": faster["interval"],
        "prompts": len(rows),
        "rounds": rounds,
        "tokens_per_s": {way: tokens / median(seconds) for way, seconds in walls.items()},
        "speedup_cpu": ratio(*([reply["cpu"] for reply in answers[way]] for way in ("stock", "ours")))["median"],
        "peak_mb": {way: max(reply["peak_mb"] for reply in each) for way, each in answers.items()},
    }


def preparing(rows: int) -> dict[str, Any]:
    """Rows per second from text to ids beside trl's own preparation through datasets.map (benchmarks/prepare_rows.py)."""
    from prepare_rows import speedup

    return speedup(size=rows, runs=5)


# ---- The pipeline ----------------------------------------------------------------------------------------------------


def clone(folder: Path) -> Path:
    """Clones the working tree, including uncommitted changes, with its own empty DVC cache."""
    run(["git", "clone", "--quiet", ROOT, folder], ROOT)
    for name in output(["git", "ls-files", "-co", "--exclude-standard"]).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".dvc/config.local").write_text("[cache]\n    dir = cache\n", encoding="utf-8")
    run(["git", "add", "--all"], folder)
    run(["git", "commit", "--quiet", "--allow-empty", "--message", "as in the working tree"], folder)
    return folder


def repro(folder: Path, times: int = 3) -> dict[str, Any]:
    """`dvc repro` from nothing, and then with nothing to do; wall seconds by stage from the run records.

    A stage's record begins after its first imports, so what `--help` takes is added. startup_share: that time and the phase
    `load` (imports, model, data) of the whole; an upper bound of the share of imports.
    """
    cold, _ = timed(["dvc", "repro"], folder)
    again = [timed(["dvc", "repro"], folder) for _ in range(times)]
    if any("up to date" not in said for _, said in again):
        raise SystemExit(f"benchmark: dvc repro found something to do after a full run:\n{again[-1][1][-2000:]}")
    helps = {
        stage: median(timed([sys.executable, f"src/{stage}.py", "--help"], folder)[0] for _ in range(times)) for stage in STAGES
    }
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "experiments").glob("*.json")]
    records.sort(key=lambda record: record["started"])
    stages = {record["stage"]: stage_times(record["seconds"], helps[record["stage"].split("@")[0]]) for record in records}
    return {"cold_s": cold, "noop_s": median(seconds for seconds, _ in again), "help_s": helps, "stages": stages}


def stage_times(seconds: dict[str, float], first: float) -> dict[str, float]:
    total = seconds["total"] + first
    return {"seconds": total, "startup_share": (first + seconds.get("load", 0.0)) / total}


def timed(command: list[Any], folder: Path) -> tuple[float, str]:
    """Wall seconds and output of a command."""
    started = time.monotonic()
    said = run(command, folder)
    return time.monotonic() - started, said


def run(command: list[Any], folder: Path) -> str:
    """Runs a command with this interpreter's programs first on the path; ends the benchmark when it fails."""
    someone = {"GIT_AUTHOR_NAME": "bench", "GIT_COMMITTER_NAME": "bench"}
    address = {"GIT_AUTHOR_EMAIL": "bench@example.org", "GIT_COMMITTER_EMAIL": "bench@example.org"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **someone, **address, "PATH": path, "DVC_SITE_CACHE_DIR": str(folder.parent / "site-cache")}
    environment.pop("DVC_ROOT", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"benchmark: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def output(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


# ---- The report ----------------------------------------------------------------------------------------------------


def machine(threads: int) -> dict[str, Any]:
    """The machine and library versions that the figures depend on."""
    return {
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "revision": output(["git", "rev-parse", "HEAD"]).strip(),
        "dirty": bool(output(["git", "status", "--porcelain", "--untracked-files=no"]).strip()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def document(found: dict[str, Any]) -> dict[str, Any]:
    """The JSON document: TARGETS by dotted names (null where a part was skipped) before the sections."""
    return {**{name: rounded(value_of(found, name)) for name in TARGETS}, **rounded(found)}


def value_of(found: dict[str, Any], name: str) -> float | None:
    value: Any = found
    for part in name.split("."):
        value = value.get(part) if value else None
    return value


def rounded(value: Any) -> Any:
    """Five significant digits; losses keep all of theirs in differences, which are small numbers."""
    if isinstance(value, dict):
        return {key: item if key == "losses" else rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def show(found: dict[str, Any]) -> None:
    """Prints the table."""
    here = found["machine"]
    print(f"{here['cpus']} cores, {here['threads']} threads, load {here['load_at_start']:.1f} at the start, {here['system']}")
    print(f"\n{'':24}{'ours':>12}{'stock':>12}{'helped':>12}")
    for kind in ("sft", "dpo"):
        for name in ("default", "skewed"):
            for line in compared(f"{kind}, {name}", found[kind][name]):
                print(line)
    speeds = found["generate"]["tokens_per_s"]
    print(f"{'generate: tokens/s':24}{speeds['ours']:12.0f}{speeds['stock']:12.0f}   (stock: one prompt at a time)")
    rates = [1e6 / found["prepare"][f"{way}_us"] for way in ("prepare", "stock")]
    print(f"{'prepare: rows/s':24}{rates[0]:12.0f}{rates[1]:12.0f}   (stock: trl's preparation, datasets.map)")
    for stage, spent in found.get("repro", {}).get("stages", {}).items():
        print(f"dvc repro, {stage:13}{spent['seconds']:12.1f} s, {spent['startup_share']:.0%} of it until the model is there")
    print()
    for name, bound in BOUNDS.items():
        print(target_line(name, value_of(found, name), bound))
    for name, interval in intervals(found):
        print(f"{name:28}95% interval of the median {interval[0]:.2f} to {interval[1]:.2f}")


def compared(title: str, found: dict[str, Any]) -> Iterator[str]:
    """Lines of one comparison."""
    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        "real tokens/s": lambda way: f"{way['tokens_per_s']:.0f}",
        "seconds a step": lambda way: f"{way['step_s']:.3f}",
        "CPU seconds a step": lambda way: f"{way['step_cpu_s']:.3f}",
        "MFU": lambda way: f"{way['mfu']:.1%}",
        "share not padding": lambda way: f"{way['fill']:.0%}" if "fill" in way else "",
        "peak memory, MB": lambda way: f"{way['peak_mb']:.0f}",
        "ours is faster": lambda way: f"{way['ours_is_faster']:.2f} x" if "ours_is_faster" in way else "",
    }
    yield f"{title} data: {found['steps']} steps, products of matrices at {found['matmul_gflops']:.0f} GFLOP/s"
    for name, cell in lines.items():
        yield f"  {name:22}" + "".join(f"{cell(way):>12}" for way in found["ways"].values())
    if "reference_s" in found:
        spent = found["reference_s"]
        yield f"  {'reference pass, s':22}{spent['ours']['wall']:12.1f}{spent['stock']['wall']:12.1f}"
        yield f"  {'speedup with it':22}{found['speedup_with_reference']:12.2f}"


def target_line(name: str, value: float | None, target: tuple[str, float] | None) -> str:
    """One line: a figure, and whether it reaches its target."""
    shown = f"{name:28}{'not run' if value is None else f'{value:.4g}':>12}"
    if value is None or target is None:
        return shown
    direction, bound = target
    met = value >= bound if direction == "at least" else value <= bound
    return f"{shown}   {direction} {bound:g}: {'yes' if met else 'NO'}"


def intervals(found: dict[str, Any]) -> Iterator[tuple[str, tuple[float, float]]]:
    for kind in ("sft", "dpo"):
        for name in ("default", "skewed"):
            yield f"{kind}.{name}.speedup", found[kind][name]["speedup_interval"]
    yield "generate.speedup", found["generate"]["speedup_interval"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def require_outputs(home: Path) -> None:
    for name in ("data/prepared/sft_train.jsonl", "data/prepared/dpo_train.jsonl", "models/sft", "models/dpo"):
        if not (home / name).exists():
            raise SystemExit(f"benchmark: {name} is missing. Run: dvc repro (or leave --skip-repro out)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps and prompts, to see that it runs; too few for claims")
    parser.add_argument("--skip-repro", action="store_true", help="leave the pipeline out, use the working tree's outputs")
    parser.add_argument("--threads", type=int, help="CPU threads; params.yaml's when left out")
    main(parser.parse_args())
